"""What fits together and what does not, found by looking into it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import quietly
from tests.sentencepiece_model import make_chat_model
from tests.tiny import make_base, make_model, make_tokenizer
from yayan.check import Check
from yayan.corpus.pack import Pack
from yayan.errors import UserError
from yayan.fits import look
from yayan.stage import execute
from yayan.train.pretrain import Pretrain
from yayan.weights.gguf_file import write_gguf


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, shards packed for it, and an adapter trained on it."""
    root = tmp_path_factory.mktemp("fits")
    make_base(root / "model", padding=2)
    (root / "zh.jsonl").write_text(json.dumps({"text": "你好世界 abc " * 9}))
    execute(Pack(out=root / "shards", tokenizer=root / "model", corpus=[root / "zh.jsonl"]), quietly)
    stage = Pretrain(out=root / "adapter", model=root / "model", shards=[root / "shards"], steps=1, rank=2)
    execute(stage.__class__(**{**vars(stage), "sequence_length": 16}), quietly)
    return root


def test_what_was_made_for_each_other_fits(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [made / name for name in ("model", "adapter", "shards")]
    things, troubles = look(paths)
    assert [thing.kind for thing in things] == ["model", "adapter", "shards"]
    assert troubles == []
    assert things[0].facts["rows_without_tokens"] == 2
    Check(recipe=str(paths[0]), changes=[str(path) for path in paths[1:]]).run()
    assert "They fit together." in capsys.readouterr().out


def test_a_gguf_file_and_its_model(tmp_path: Path) -> None:
    model = make_chat_model(tmp_path / "model")
    write_gguf(model, tmp_path / "model.gguf", "F16")
    assert look([model, tmp_path / "model.gguf"])[1] == []
    (model / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert any("another chat template" in trouble for trouble in look([model, tmp_path / "model.gguf"])[1])


def with_nan(folder: Path) -> None:
    name = next(path.name for path in folder.glob("*.safetensors"))
    tensors = load_file(folder / name)
    tensors[min(tensors)][0, 0] = torch.nan
    save_file(tensors, folder / name, metadata={"format": "pt"})


def with_end(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 7}))


def with_licence(folder: Path) -> None:
    (folder / "LICENSE-CC-BY-NC-4.0").write_text("not for sale")


@pytest.mark.parametrize(
    ("thing", "change", "sentence"),
    [
        ("model", with_nan, "holds NaN or infinity"),
        ("adapter", with_nan, "holds NaN or infinity"),
        ("model", with_end, "ends a text with 7, the tokenizer with 2"),
        ("model", lambda folder: (folder / "tokenizer.json").unlink(), "it has no tokenizer"),
        ("model", with_licence, "forbids commercial use"),
    ],
)
def test_what_is_wrong_with_one_is_said(
    made: Path, tmp_path: Path, thing: str, change: Any, sentence: str
) -> None:
    change(shutil.copytree(made / thing, tmp_path / thing))
    if thing == "model" and "tokenizer" in sentence and "has no" in sentence:
        for file in (tmp_path / thing).glob("tokenizer*"):
            file.unlink()
    troubles = look([tmp_path / thing])[1]
    assert any(sentence in trouble for trouble in troubles), troubles
    with pytest.raises(UserError, match="not fit"):
        Check(recipe=str(tmp_path / thing)).run()


def test_what_does_not_belong_together_is_said(made: Path, tmp_path: Path) -> None:
    size = make_tokenizer(tmp_path / "other", new=["你好"])
    make_model(tmp_path / "other", rows=size, hidden_size=32)
    troubles = "\n".join(look([tmp_path / "other", made / "adapter", made / "shards", made / "model"])[1])
    assert "does not fit" in troubles
    assert "another tokenizer" in troubles
    make_tokenizer(tmp_path / "words", new=["你好", "世界", "界你"])
    assert any("grow the model" in trouble for trouble in look([tmp_path / "words", made / "model"])[1])


def test_what_cannot_be_looked_at_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is there"):
        look([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="this is no model"):
        look([made])
    broken = shutil.copytree(made / "model", tmp_path / "broken")
    make_model(broken, rows=300, num_hidden_layers=1)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(UserError, match="do not fit together"):
        look([broken])
