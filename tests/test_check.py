"""`yayan check` against counts that are known, and against recipes that do not hold together."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conftest import SHARED, needs_shared
from yayan.check import check_what_exists, forecast_road
from yayan.errors import UserError
from yayan.model.size import size_of
from yayan.recipe import find_recipe, read_recipe, stages_of

RECIPES = Path(__file__).parents[1] / "recipes"
LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_counted_as_transformers_has_them(kind: str, tied: bool) -> None:
    config = AutoConfig.for_model(
        kind,
        vocab_size=101,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        tie_word_embeddings=tied,
    )
    model = AutoModelForCausalLM.from_config(config)
    assert size_of(config.to_dict()).parameters == sum(value.numel() for value in model.parameters())


@needs_shared
def test_the_reference_road_of_7b_has_the_reference_counts(tmp_path: Path) -> None:
    """612.9 M trained parameters: 159.9 M of LoRA, 453.0 M of both ends (Chinese-LLaMA-Alpaca-2's own setting)."""
    base = tmp_path / "Llama-2-7b-hf"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(LLAMA_2_7B))
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SHARED / "base" / "en-base-21m" / name, base / name)
    text = SHARED / "data" / "zh-weekly" / "heldout.jsonl.xz"
    chats = SHARED / "data" / "sft-zh-alpaca" / "heldout.jsonl.xz"
    changes = [f"base={base}", f"zh=[{text}]", f"chats=[{chats}]", f"heldout={{zh: {text}}}"]
    stages = stages_of(read_recipe(RECIPES / "llama-2-7b-to-zh.yaml", changes))
    check_what_exists(stages)
    forecasts = forecast_road(stages)
    cost = forecasts["pretrain"].cost
    assert cost is not None
    assert cost.trained_parameters == 159_907_840 + 2 * 55_296 * 4096
    assert forecasts["grow"].disk_bytes == pytest.approx(2 * 6.929e9, rel=0.001)
    assert 20e9 < cost.memory_bytes < 48e9


@needs_shared
def test_the_reference_road_of_7b_to_16k_is_checked(tmp_path: Path) -> None:
    """PI of factor 4: the settings go down the road to the chat model."""
    base = tmp_path / "chinese-llama-2-7b"
    base.mkdir()
    save_file(
        {"model.norm.weight": torch.ones(4096)}, base / "model.safetensors"
    )  # a header is all that is looked at
    (base / "config.json").write_text(json.dumps(LLAMA_2_7B))
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SHARED / "base" / "en-base-21m" / name, base / name)
    text = SHARED / "data" / "zh-novels-classical" / "heldout.jsonl.xz"
    chats = SHARED / "data" / "sft-zh-alpaca" / "heldout.jsonl.xz"
    changes = [f"base={base}", f"long=[{text}]", f"short=[{text}]", f"chats=[{chats}]"]
    stages = stages_of(
        read_recipe(RECIPES / "llama-2-7b-16k.yaml", [*changes, f"heldout={{long: {text}, short: {text}}}"])
    )
    check_what_exists(stages)
    forecasts = forecast_road(stages)
    config = forecasts["merge-chat"].config
    assert config is not None
    assert config["max_position_embeddings"] == 16_384
    assert config["rope_parameters"] == {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
    cost = forecasts["pretrain"].cost
    assert cost is not None
    assert 20e9 < cost.memory_bytes < 80e9
    assert forecasts["stretch"].disk_bytes == pytest.approx(2 * 6.738e9, rel=0.001)


def test_the_quickstart_is_checked_without_running_it(tmp_path: Path) -> None:
    stages = stages_of(read_recipe(find_recipe("quickstart"), [f"out={tmp_path / 'q'}"]))
    check_what_exists(stages)
    forecasts = forecast_road(stages)
    config = forecasts["sft"].config
    assert config is not None
    assert config["vocab_size"] == 4096
    assert not list(tmp_path.iterdir())


def test_a_step_that_cannot_be_is_found_before_anything_runs(tmp_path: Path) -> None:
    recipe = tmp_path / "bad.yaml"
    recipe.write_text("road:\n  vocab: {corpus: [sample:en-train.jsonl], size: 7}\n")
    with pytest.raises(UserError, match="size is 7"):
        check_what_exists(stages_of(read_recipe(recipe)))
