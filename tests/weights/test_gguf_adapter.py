"""A LoRA adapter beside a GGUF file predicts what the merged model does; what llama.cpp cannot add is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.sentencepiece_model import make_chat_model
from tests.weights.test_merge import BOTH_ENDS, make_adapter
from yayan.engine.llamacpp import LlamaCpp
from yayan.errors import UserError
from yayan.weights.gguf_adapter import write_gguf_adapter
from yayan.weights.gguf_file import write_gguf
from yayan.weights.stream import open_tensors

IDS = [1, *range(20, 50)]
ROWS = 500


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"))


def make_model(folder: Path, **settings: Any) -> Path:
    """A model folder `base` and its file in float32, so that nothing is rounded."""
    make_chat_model(folder / "base", **settings)
    write_gguf(folder / "base", folder / "base.gguf", "F32")
    return folder / "base"


def logprobs(engine: LlamaCpp, name: str) -> dict[int, float]:
    """Of all tokens after IDS; EOS is taken, which changes nothing of what is told."""
    body = {"prompt": IDS, "n_predict": 1, "n_probs": ROWS, "logit_bias": [[engine.header.eos, 1000.0]]}
    answer = engine.ask("/completion", body | {"temperature": 0} | engine.asked_of(name))
    return {item["id"]: item["logprob"] for item in answer["completion_probabilities"][0]["top_logprobs"]}


def by_peft(base: Path, adapter: Path | None) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(base).double()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0, -1].log_softmax(-1)


def assert_alike(found: dict[int, float], wanted: torch.Tensor) -> None:
    assert len(found) == ROWS
    assert torch.tensor([found[i] for i in range(ROWS)]).sub(wanted.float()).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_equals_peft(family: str, tmp_path: Path) -> None:
    base = make_model(tmp_path, family=family)
    options: list[dict[str, Any]] = [
        {},
        {"use_rslora": True, "rank_pattern": {"v_proj": 5}},
        {"target_modules": ["k_proj", "lm_head"]},
    ]
    adapters = {f"a{i}": make_adapter(base, tmp_path / f"a{i}", seed=i, **o) for i, o in enumerate(options)}
    wanted = {name: by_peft(base, folder) for name, folder in {"base": None, **adapters}.items()}
    assert (wanted["a0"] - wanted["base"]).abs().max() > 0.5
    with LlamaCpp(base.with_suffix(".gguf"), threads=1, exact=True, adapters=adapters) as engine:
        for name in ("base", "a0", "a1", "a0", "base", "a2"):  # in one place, with the same beginning
            assert_alike(logprobs(engine, name), wanted[name])


def test_the_file_holds_the_pairs_alone(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "a", target_modules=["v_proj"])
    write_gguf_adapter(adapter, base.with_suffix(".gguf"), tmp_path / "a.gguf")
    numbers = sum(spec.elements for spec in open_tensors(adapter, "adapter_model").specs.values())
    assert 4 * numbers <= (tmp_path / "a.gguf").stat().st_size < 4 * numbers + 2048


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"modules_to_save": ["lm_head"]}, "rows of the two ends"),
        ({"trainable_token_indices": BOTH_ENDS}, "rows of the two ends"),
        ({"use_dora": True}, "lengths"),
    ],
)
def test_what_is_more_than_pairs_is_refused(
    options: dict[str, Any], sentence: str, base: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(base, tmp_path / "a", **options)
    with pytest.raises(UserError, match=f"LoRA pairs alone, this adapter has {sentence}.*merge it first"):
        write_gguf_adapter(adapter, base.with_suffix(".gguf"), tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_other_positions_are_refused(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "a")
    scaled = {"rope_scaling": {"type": "linear", "factor": 4.0}}
    (adapter / "config.json").write_text(json.dumps(scaled))
    with pytest.raises(UserError, match="other positions"):
        write_gguf_adapter(adapter, base.with_suffix(".gguf"), tmp_path / "a.gguf")


def test_an_adapter_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"hidden_size": 96, "head_dim": 8}, "does not fit"),
        ({"num_hidden_layers": 4}, "which the base does not have"),
    ]
    for settings, sentence in cases:
        other = make_chat_model(tmp_path / sentence, **settings)
        adapter = make_adapter(other, tmp_path / f"{sentence}-a")
        with pytest.raises(UserError, match=sentence):
            write_gguf_adapter(adapter, base.with_suffix(".gguf"), tmp_path / "a.gguf")
