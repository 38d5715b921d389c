"""Merging against PEFT's own `merge_and_unload`, with adapters that PEFT wrote."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.tiny import make_base, make_model, make_tokenizer
from yayan.errors import UserError, WorkError
from yayan.model.load import load_model
from yayan.stage import execute
from yayan.tokenizer import load_tokenizer
from yayan.weights.adapter import read_adapter
from yayan.weights.merge import Merge, merge_adapters
from yayan.weights.merge_proof import largest_difference, recompute_rows
from yayan.weights.stream import open_tensors

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NEW_ROWS = [3, 269, 270]
BOTH_ENDS = {"embed_tokens": NEW_ROWS, "lm_head": NEW_ROWS}


def make_adapter(base: Path, folder: Path, *, seed: int = 0, **options: Any) -> Path:
    """An adapter of random values, written by PEFT."""
    settings = {"r": 3, "lora_alpha": 7, "target_modules": PROJECTIONS} | options
    model = get_peft_model(load_model(base), LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(seed)
    for value in model.parameters():
        if value.requires_grad:
            value.data = torch.randn(value.shape, generator=generator) * 0.1
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def merged_by_peft(base: Path, adapters: list[Path], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    model = load_model(base, dtype)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model.state_dict()


def assert_bitwise(folder: Path, wanted: dict[str, torch.Tensor]) -> None:
    found = load_file(folder / "model.safetensors")
    assert set(wanted) - set(found) <= {"lm_head.weight"}  # a tied head is not in the file
    for name, value in found.items():
        assert value.dtype == wanted[name].dtype
        assert torch.equal(value, wanted[name]), name


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_base(folder, padding=2)
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return make_adapter(base, tmp_path / "adapter", trainable_token_indices=BOTH_ENDS)


OPTIONS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True, "trainable_token_indices": BOTH_ENDS},
    "some modules": {"target_modules": ["q_proj", "down_proj"]},
    "head": {"target_modules": ["k_proj", "lm_head"]},
    "ranks": {"rank_pattern": {"v_proj": 2, "layers.1.mlp.up_proj": 5}},
    "rows of both ends": {"trainable_token_indices": BOTH_ENDS},
    "rows of the input": {"trainable_token_indices": NEW_ROWS},
    "whole ends": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "a whole end": {"modules_to_save": ["lm_head"], "trainable_token_indices": NEW_ROWS},
    "rows alone": {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": NEW_ROWS}},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_equals_peft_bit_for_bit(tmp_path: Path, options: dict[str, Any], dtype: torch.dtype) -> None:
    """In bfloat16 as well: PEFT too rounds the float32 sum once."""
    make_base(tmp_path / "base", padding=2, dtype=dtype)
    adapter = make_adapter(tmp_path / "base", tmp_path / "adapter", **options)
    (tmp_path / "out").mkdir()
    merge_adapters(tmp_path / "base", [adapter], tmp_path / "out")
    assert_bitwise(tmp_path / "out", merged_by_peft(tmp_path / "base", [adapter], dtype))


def make_published(folder: Path, rows: int) -> dict[str, torch.Tensor]:
    """An adapter as the reference project publishes them: of peft 0.3, both ends whole and grown, its tokenizer."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(5)
    shapes = {"model.embed_tokens.weight": (rows, 24), "lm_head.weight": (rows, 24)}
    for layer in range(2):
        shapes |= {f"model.layers.{layer}.self_attn.q_proj.lora_A.weight": (3, 24)}
        shapes |= {f"model.layers.{layer}.self_attn.q_proj.lora_B.weight": (24, 3)}
    tensors = {
        f"base_model.model.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()
    }
    torch.save({name: value.half() for name, value in tensors.items()}, folder / "adapter_model.bin")
    settings = {
        "base_model_name_or_path": "Llama-2-7b-hf",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 128.0,
        "lora_dropout": 0.05,
        "modules_to_save": ["embed_tokens", "lm_head"],
        "peft_type": "LORA",
        "r": 3,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return {name: value.half().float() for name, value in tensors.items()}


def test_a_published_adapter_brings_its_rows_and_its_tokenizer(tmp_path: Path) -> None:
    make_base(tmp_path / "base", dtype=torch.float16)
    model = load_model(tmp_path / "base", torch.float16)
    (tmp_path / "base" / "model.safetensors").unlink()
    state = model.state_dict() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}
    torch.save(state, tmp_path / "base" / "pytorch_model.bin")
    rows = model.config.vocab_size + 3
    tensors = make_published(tmp_path / "adapter", rows)
    stage = Merge(base=tmp_path / "base", adapter=[tmp_path / "adapter"], out=tmp_path / "out")
    assert_refused(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out", "no tokenizer for them")
    make_tokenizer(tmp_path / "adapter", new=["你好", "世界", "界你", "你世"])
    assert_refused(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out", "tokens for 2")
    make_tokenizer(tmp_path / "adapter", new=["你好", "世界", "界你"])
    record = execute(stage)
    assert record["metrics"]["old_rows"] == rows - 3
    merged = load_model(tmp_path / "out", torch.float16)
    assert merged.config.vocab_size == rows == load_tokenizer(tmp_path / "out").size
    for name, value in merged.state_dict().items():
        wanted = state[name].float()
        if f"base_model.model.{name}" in tensors:
            wanted = tensors[f"base_model.model.{name}"]
        if "q_proj" in name:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            product = tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"]
            wanted = wanted + product.mul(128.0 / 3)
        assert torch.equal(value, wanted.half()), name


def test_a_weight_adds_so_much_of_an_adapter(base: Path, tmp_path: Path) -> None:
    """As much as an adapter whose alpha is that much smaller."""
    half = make_adapter(base, tmp_path / "half", lora_alpha=3.5)
    full, other = make_adapter(base, tmp_path / "full"), make_adapter(base, tmp_path / "other", seed=1)
    stage = Merge(base=base, adapter=[full, other], weight=[0.5, 1], out=tmp_path / "out")
    execute(stage)
    assert_bitwise(tmp_path / "out", merged_by_peft(base, [half, other], torch.float32))
    rows = make_adapter(base, tmp_path / "rows", trainable_token_indices=BOTH_ENDS)
    for adapters, weights, sentence in (
        ([full, other], [1.0], "1 weights for 2 adapters"),
        ([rows], [0.5], "gives values, not differences"),
    ):
        with pytest.raises(UserError, match=sentence):
            execute(Merge(base=base, adapter=adapters, weight=weights, out=tmp_path / "no"))


def test_what_replaces_what_another_has_changed_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    whole = make_adapter(base, tmp_path / "whole", modules_to_save=["lm_head"])
    assert_refused(base, [adapter, whole], tmp_path / "out", r"lm_head\.weight is replaced by this adapter")
    other = make_adapter(base, tmp_path / "other", modules_to_save=["lm_head"])
    assert_refused(base, [whole, other], tmp_path / "out", r"lm_head\.weight is replaced by this adapter")
    (tmp_path / "both").mkdir()
    merge_adapters(base, [whole, adapter], tmp_path / "both")
    assert_bitwise(tmp_path / "both", merged_by_peft(base, [whole, adapter], torch.float32))


def test_ends_of_different_heights_are_refused(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    rows = load_tokenizer(tmp_path / "base").size + 3
    make_published(tmp_path / "adapter", rows)
    tensors = torch.load(tmp_path / "adapter" / "adapter_model.bin", weights_only=True)
    del tensors["base_model.model.lm_head.weight"]
    torch.save(tensors, tmp_path / "adapter" / "adapter_model.bin")
    assert_refused(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out", "the two ends have")


@pytest.mark.parametrize("indices", [NEW_ROWS, {"embed_tokens": NEW_ROWS}, BOTH_ENDS])
def test_tied_ends_stay_tied(tmp_path: Path, indices: object) -> None:
    make_base(tmp_path / "base", padding=2, tied=True)
    adapter = make_adapter(tmp_path / "base", tmp_path / "adapter", trainable_token_indices=indices)
    (tmp_path / "out").mkdir()
    merge_adapters(tmp_path / "base", [adapter], tmp_path / "out")
    assert_bitwise(tmp_path / "out", merged_by_peft(tmp_path / "base", [adapter], torch.float32))
    model = load_model(tmp_path / "out")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    before, after = load_model(tmp_path / "base"), model.get_output_embeddings().weight
    assert not torch.equal(before.get_output_embeddings().weight[NEW_ROWS], after[NEW_ROWS])


def test_a_tied_matrix_stored_twice_is_changed_twice(tmp_path: Path) -> None:
    make_base(tmp_path / "base", tied=True)
    adapter = make_adapter(tmp_path / "base", tmp_path / "adapter", trainable_token_indices=NEW_ROWS)
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "out").mkdir()
    merge_adapters(tmp_path / "base", [adapter], tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
    assert not torch.equal(merged["lm_head.weight"], tensors["lm_head.weight"])


@pytest.mark.parametrize("tied", [False, True])
def test_rows_alone_equal_peft(tmp_path: Path, tied: bool) -> None:
    make_base(tmp_path / "base", padding=2, tied=tied)
    ends = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    config = TrainableTokensConfig(task_type="CAUSAL_LM", target_modules=ends, token_indices=NEW_ROWS)
    model = get_peft_model(load_model(tmp_path / "base"), config)
    for value in model.parameters():
        if value.requires_grad:
            value.data += 0.5
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    (tmp_path / "out").mkdir()
    merge_adapters(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out")
    assert_bitwise(tmp_path / "out", merged_by_peft(tmp_path / "base", [tmp_path / "adapter"], torch.float32))


def test_adapters_follow_one_another(base: Path, tmp_path: Path) -> None:
    adapters = [
        make_adapter(base, tmp_path / "1", trainable_token_indices=BOTH_ENDS),
        make_adapter(base, tmp_path / "2", seed=1, use_rslora=True, trainable_token_indices=[270, 5]),
    ]
    (tmp_path / "out").mkdir()
    merge_adapters(base, adapters, tmp_path / "out")
    assert_bitwise(tmp_path / "out", merged_by_peft(base, adapters, torch.float32))


def test_the_sum_of_two_adapters_is_rounded_once(tmp_path: Path) -> None:
    make_base(tmp_path / "base", dtype=torch.bfloat16)
    adapters = [make_adapter(tmp_path / "base", tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    (tmp_path / "out").mkdir()
    merge_adapters(tmp_path / "base", adapters, tmp_path / "out")
    exact = merged_by_peft(tmp_path / "base", adapters, torch.float32)
    assert_bitwise(tmp_path / "out", {name: value.bfloat16() for name, value in exact.items()})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_number_format_can_be_chosen(tmp_path: Path, dtype: str) -> None:
    make_base(tmp_path / "base", dtype=torch.bfloat16)
    adapter = make_adapter(tmp_path / "base", tmp_path / "adapter", trainable_token_indices=NEW_ROWS)
    stage = Merge(base=tmp_path / "base", adapter=[adapter], dtype=dtype, out=tmp_path / "out")  # type: ignore[arg-type]
    metrics = execute(stage)["metrics"]
    exact = merged_by_peft(tmp_path / "base", [adapter], torch.float32)
    target = getattr(torch, dtype)
    assert_bitwise(tmp_path / "out", {name: value.to(target) for name, value in exact.items()})
    assert metrics["dtype"] == dtype
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


def test_the_stage_writes_a_model_folder(base: Path, adapter: Path, tmp_path: Path) -> None:
    (base / "chat_template.jinja").write_text("of the base")
    (adapter / "chat_template.jinja").write_text("of the adapter")
    record = execute(Merge(base=base, adapter=[adapter], out=tmp_path / "out"))
    (base / "chat_template.jinja").unlink()
    out = tmp_path / "out"
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"):
        assert json.loads((out / name).read_text()) == json.loads((base / name).read_text())
    assert (out / "chat_template.jinja").read_text() == "of the adapter"
    metrics = record["metrics"]
    assert metrics["tensors_merged"] == 2 * len(PROJECTIONS) + 2
    assert metrics["token_rows"] == 2 * len(NEW_ROWS)
    assert metrics["rows_recomputed"] == 8 * metrics["tensors_merged"] + 8 * 2
    assert 0 < metrics["largest_error"] <= 1
    assert metrics["largest_difference_of_logprobs"] < 1e-4
    logits, wanted = (
        model(torch.tensor([[1, 269, 3, 270]])).logits
        for model in (load_model(out), PeftModel.from_pretrained(load_model(base), adapter))
    )
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)


def test_an_adapter_that_was_trained_at_length_brings_its_positions(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    """In the form in which Chinese-LLaMA-2's adapters of 16,384 positions say it."""
    scaling = {"type": "linear", "factor": 4.0}
    said = {"max_position_embeddings": 64, "rope_scaling": scaling, "vocab_size": 9}
    (adapter / "config.json").write_text(json.dumps(said))
    execute(Merge(base=base, adapter=[adapter], out=tmp_path / "out"))
    rotary = load_model(tmp_path / "out").model.rotary_emb
    assert torch.equal(rotary.inv_freq * 4, load_model(base).model.rotary_emb.inv_freq)
    assert load_model(tmp_path / "out").config.vocab_size == load_model(base).config.vocab_size


def test_shards_are_the_same_model(base: Path, adapter: Path, tmp_path: Path) -> None:
    for name, size in (("one", 1 << 30), ("many", 10_000)):
        (tmp_path / name).mkdir()
        merge_adapters(base, [adapter], tmp_path / name, max_shard_bytes=size)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    one, many = load_model(tmp_path / "one").state_dict(), load_model(tmp_path / "many").state_dict()
    assert all(torch.equal(one[name], many[name]) for name in one)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"])
def test_the_check_sees_wrong_weights(base: Path, adapter: Path, tmp_path: Path, name: str) -> None:
    """Written from the base without the adapter, or with a value off by a thousandth."""
    source = open_tensors(base)
    opened = [read_adapter(adapter, source.specs, tied=False)]
    (tmp_path / "out").mkdir()
    merge_adapters(base, [adapter], tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    right = load_file(file)
    for wrong in (source.read(name), right[name] * 1.001):
        save_file(right | {name: wrong.contiguous()}, file)
        with pytest.raises(WorkError, match="not those of base and adapters"):
            recompute_rows(source, opened, open_tensors(tmp_path / "out"), [name])


FIRST = "base_model.model.model.layers.0.self_attn.q_proj"
ROWS = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


def test_the_check_sees_another_prediction(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    merge_adapters(base, [adapter], tmp_path / "out")
    edit_tensors(adapter, lambda tensors: tensors[f"{FIRST}.lora_B.weight"].mul_(-50))
    with pytest.raises(WorkError, match="predicts something else"):
        largest_difference(base, [adapter], tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value", "tensor"),
    [
        (f"{FIRST}.lora_B.weight", float("nan"), r"model\.layers\.0\.self_attn\.q_proj\.weight"),
        (ROWS, float("inf"), r"model\.embed_tokens\.weight"),
        (ROWS, float("-inf"), r"model\.embed_tokens\.weight"),
    ],
)
def test_values_that_are_no_numbers_are_found(
    base: Path, adapter: Path, tmp_path: Path, key: str, value: float, tensor: str
) -> None:
    edit_tensors(adapter, lambda tensors: tensors[key].view(-1)[4:5].fill_(value))
    with pytest.raises(WorkError, match=rf"NaN or infinity \({tensor}\)"):
        execute(Merge(base=base, adapter=[adapter], out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def edit_tensors(adapter: Path, edit) -> None:  # type: ignore[no-untyped-def]
    tensors = load_file(adapter / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, adapter / "adapter_model.safetensors")


def edit_config(adapter: Path, **changes: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_refused(base: Path, adapters: list[Path], out: Path, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        execute(Merge(base=base, adapter=adapters, out=out))
    assert not out.exists()
    assert not out.with_name(out.name + ".partial").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"use_dora": True}, "lengths None do not fit its pair"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"bias": "all"}, "LoRA with bias = all"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = pissa"),
        ({"peft_type": "IA3"}, "an adapter of type IA3 is not merged"),
        ({"trainable_token_indices": None}, "do not say which"),
        ({"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": NEW_ROWS}}, "do not fit 2 ids"),
        ({"trainable_token_indices": {"embed_tokens": [1, 2, 999], "lm_head": NEW_ROWS}}, "up to id 999"),
    ],
)
def test_a_config_that_is_not_plain_lora_is_refused(
    base: Path, adapter: Path, tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    edit_config(adapter, **changes)
    assert_refused(base, [adapter], tmp_path / "out", sentence)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda t: t.pop(f"{FIRST}.lora_B.weight"), r"does not fit model\.layers\.0\.self_attn\.q_proj"),
        (lambda t: t.pop(f"{FIRST}.lora_A.weight"), r"does not fit model\.layers\.0\.self_attn\.q_proj"),
        (lambda t: t.update({f"{FIRST}.lora_magnitude_vector": torch.ones(24)}), "do not fit its pair for"),
        (lambda t: t.update({"lora_A.weight": torch.ones(24)}), "of an unknown kind"),
        (
            lambda t: t.update({f"{FIRST.replace('0', '9')}.lora_A.weight": torch.ones(3, 24)}),
            "layers.9.self_attn.q_proj.weight, which the base does not have",
        ),
        (lambda t: t.update({ROWS: torch.ones(3, 23)}), r"rows of shape \(3, 23\) do not fit"),
        (lambda t: t.clear(), "holds no tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    base: Path, adapter: Path, tmp_path: Path, edit: object, sentence: str
) -> None:
    edit_tensors(adapter, edit)
    assert_refused(base, [adapter], tmp_path / "out", sentence)


def test_another_width_or_vocabulary_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    make_model(tmp_path / "wide", rows=280, hidden_size=32)
    assert_refused(tmp_path / "wide", [adapter], tmp_path / "out", "does not fit")
    make_model(tmp_path / "few", rows=270)
    assert_refused(tmp_path / "few", [adapter], tmp_path / "out", r"up to id 270, .* has 270 rows")


def test_another_tokenizer_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    make_tokenizer(adapter, ["你好"])
    assert_refused(base, [adapter], tmp_path / "out", "the adapter has a tokenizer of 272 ids, the base")
    shutil.copy(base / "tokenizer.json", adapter)
    execute(Merge(base=base, adapter=[adapter], out=tmp_path / "out"))


def test_wrong_paths_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert_refused(base, [], out, "nothing to merge")
    assert_refused(base, [base], out, r"there is no adapter_config\.json")
    assert_refused(adapter, [adapter], out, r"it has no config\.json")
    assert_refused(base, [tmp_path / "nowhere"], out, "there is no such file or folder")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert_refused(base, [adapter], out, "truncated or damaged")
