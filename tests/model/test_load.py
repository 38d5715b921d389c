"""Loading a model folder: the same model as `transformers` gives, or one sentence."""

import json
from collections.abc import Callable
from io import StringIO
from logging import StreamHandler
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MistralConfig, Qwen2Config, Qwen3Config
from transformers.utils import logging

from tests.tiny import make_model
from yayan.errors import UserError
from yayan.model.load import load_model, read_config

IDS = torch.tensor([[1, 5, 7, 2, 30]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_model(tmp_path, rows=31, dtype=torch.bfloat16)
    return tmp_path


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_the_model_of_transformers(folder: Path, dtype: torch.dtype) -> None:
    model, theirs = load_model(folder, dtype), AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    assert not model.training
    assert model.dtype == dtype
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(IDS).logits, theirs(IDS).logits)


@pytest.mark.parametrize("config_class", [MistralConfig, Qwen2Config, Qwen3Config])
@pytest.mark.parametrize("tied", [False, True])
def test_other_families(tmp_path: Path, config_class: type, tied: bool) -> None:
    config = config_class(
        vocab_size=31,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        tie_word_embeddings=tied,
    )
    theirs = AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert torch.equal(model(IDS).logits, theirs(IDS).logits)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


def test_says_nothing_and_leaves_the_log_as_it_was(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No bar for a good folder; for a bad one our sentence and not also the table of `transformers`."""
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    said = StringIO()
    handler = StreamHandler(said)
    logging.add_handler(handler)
    load_model(folder)
    change_tensors(folder, add_one)
    with pytest.raises(UserError):
        load_model(folder)
    logging.remove_handler(handler)
    assert (*capfd.readouterr(), said.getvalue()) == ("", "", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def change_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def drop_norm(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.norm.weight"]


def drop_two(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.norm.weight"], tensors["lm_head.weight"]


def add_one(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.extra.weight"] = torch.zeros(3)


def shorten_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:29].clone()


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (drop_norm, r"model\.norm\.weight is missing \("),
        (drop_two, r"lm_head\.weight is missing and 1 more"),
        (add_one, r"model\.extra\.weight is unknown"),
        (shorten_head, r"lm_head\.weight is \(29, 24\) instead of \(31, 24\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    folder: Path, edit: Callable[[dict[str, torch.Tensor]], None], sentence: str
) -> None:
    change_tensors(folder, edit)
    with pytest.raises(UserError, match=sentence):
        load_model(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(folder)


def test_pickles_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(folder)


def test_code_in_the_folder_is_not_run(folder: Path) -> None:
    (folder / "modeling.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass M: pass\n")
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling.M", "AutoConfig": "modeling.M"})
    load_model(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, r"not a model folder, it has no config\.json"),
        ("{", "not JSON"),
        ("\udcff", "not JSON"),
        ("[1]", "not a JSON object"),
        ("{}", "a model of type without a model_type"),
        ('{"model_type": "gpt2"}', "a model of type gpt2 is not supported"),
        ('{"model_type": "llama", "quantization_config": {"bits": 4}}', "this model is quantised"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, text: str | None, sentence: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    for read in (read_config, load_model):
        with pytest.raises(UserError, match=sentence):
            read(tmp_path)


def test_a_path_where_nothing_is_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is there"):
        load_model(tmp_path / "nowhere")


def test_read_config_gives_the_file_as_it_is(folder: Path) -> None:
    assert read_config(folder) == json.loads((folder / "config.json").read_text())
