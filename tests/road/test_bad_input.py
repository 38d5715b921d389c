"""Wrong questions of every kind, as at the terminal: one sentence with the place, exit code 2, nothing written."""

import gzip
import json
import shutil
import socket
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from tests.byte_level import write_folder
from tests.sentencepiece_model import TEXTS, make_chat_model
from yayan.cli import main
from yayan.corpus.pack import Pack
from yayan.stage import execute
from yayan.train.pretrain import Pretrain
from yayan.vocab.grow import Grow
from yayan.vocab.learn import Vocab
from yayan.weights.gguf_file import write_gguf


def quietly(line: str) -> None:
    """Nobody reads what a fixture says."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good thing of each kind, and the bad ones."""
    root = tmp_path_factory.mktemp("made")
    make_chat_model(root / "base")
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (root / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    corpus = [root / "texts.jsonl"]
    execute(Vocab(out=root / "vocab", base=root / "base", corpus=corpus, size=520, smallest_count=1), quietly)
    execute(Grow(out=root / "grown", model=root / "base", tokenizer=root / "vocab"), quietly)
    execute(Pack(out=root / "shards", tokenizer=root / "base", corpus=corpus), quietly)
    training = Pretrain(
        out=root / "adapter",
        model=root / "base",
        shards=[root / "shards"],
        rows="all",
        rank=2,
        steps=1,
        sequence_length=16,
        batch_size=1,
        threads=1,
    )
    execute(training, quietly)
    write_gguf(root / "base", root / "model.gguf", "F16")
    (root / "cut.gguf").write_bytes((root / "model.gguf").read_bytes()[:1000])
    make_bad_texts(root)
    make_bad_models(root)
    return root


def make_bad_texts(root: Path) -> None:
    (root / "folder").mkdir()
    (root / "empty.txt").touch()
    (root / "gb.txt").write_bytes("雅言\n标准".encode("gb18030"))
    (root / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (root / "other.jsonl").write_text('{"n": 1}\n')
    (root / "cut.txt.gz").write_bytes(gzip.compress("\n".join(TEXTS).encode())[:200])


def make_bad_models(root: Path) -> None:
    write_folder(root / "unigram", Tokenizer(models.Unigram([("a", -1.0), ("</s>", -2.0)], 0, False)))
    config = (root / "base" / "config.json").read_text()
    (root / "config-only").mkdir()
    (root / "config-only" / "config.json").write_text(config)
    changes = {
        "no-json": "{",
        "gpt2": '{"model_type": "gpt2"}',
        "no-sizes": '{"model_type": "llama"}',
        "odd-size": json.dumps(json.loads(config) | {"hidden_size": "many"}),
        "misfit": json.dumps(json.loads(config) | {"num_hidden_layers": 5}),
    }
    for name, text in changes.items():
        shutil.copytree(root / "base", root / name)
        (root / name / "config.json").write_text(text)
    shutil.copytree(root / "base", root / "cut")
    weights = root / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


CASES = [
    # the words of the command
    ("vocabb", "did you mean vocab"),
    ("pack --tokenizer base --corpos texts.jsonl --out OUT", "--corpus"),
    ("vocab --corpus texts.jsonl --size many --out OUT", "--size"),
    ("grow --model base --tokenizer vocab --init random --out OUT", "mean_of_pieces"),
    # texts
    ("pack --tokenizer base --corpus missing.txt --out OUT", "missing.txt"),
    ("pack --tokenizer base --corpus sample:missing --out OUT", "zh-train.jsonl"),
    ("pack --tokenizer base --corpus empty.txt --out OUT", "empty.txt"),
    ("vocab --corpus folder --size 600 --out OUT", "folder"),
    ("vocab --corpus gb.txt --size 600 --out OUT", "gb.txt:1"),
    ("pack --tokenizer base --corpus broken.jsonl --out OUT", "broken.jsonl:2"),
    ("eval bits --model base --text.a other.jsonl --out OUT", "no field is called text"),
    ("pack --tokenizer base --corpus cut.txt.gz --out OUT", "cut.txt.gz"),
    (
        "vocab --base base --corpus texts.jsonl --size 600 --scripts latin --out OUT",
        "nothing that could become",
    ),
    ("vocab --base base --corpus texts.jsonl --size 600 --scripts korean --out OUT", "hangul"),
    ("vocab --base base --corpus texts.jsonl --size 600 --include missing.txt --out OUT", "missing.txt"),
    ("vocab --base base --corpus texts.jsonl --size 600 --include gb.txt --out OUT", "gb.txt"),
    ("vocab --base base --corpus texts.jsonl --size 600 --exclude folder --out OUT", "folder"),
    ("vocab --base base --corpus texts.jsonl --size 600 --include texts.jsonl --out OUT", "no word of han"),
    # models and tokenizers
    ("vocab --base unigram --corpus texts.jsonl --size 600 --out OUT", "kind Unigram"),
    ("vocab --base folder --corpus texts.jsonl --size 600 --out OUT", "no tokenizer"),
    ("vocab --base gpt2 --corpus texts.jsonl --size 600 --curve --out OUT", "type gpt2"),
    ("grow --model folder --tokenizer vocab --out OUT", "not a model folder"),
    ("merge --base config-only --adapter adapter --out OUT", "model.safetensors"),
    ("gguf --model no-json --out OUT", "not JSON"),
    ("gguf --model gpt2 --out OUT", "gpt2"),
    ("eval bits --model no-sizes --text.a texts.jsonl --out OUT", "vocab_size is missing"),
    ("gguf --model odd-size --out OUT", "hidden_size is many"),
    ("eval bits --model misfit --text.a texts.jsonl --out OUT", "is missing"),
    ("merge --base cut --adapter adapter --out OUT", "truncated"),
    ("grow --model grown --tokenizer base --out OUT", "yayan vocab --base"),
    ("pretrain --model grown --shards shards --out OUT", "another tokenizer"),
    ("merge --base grown --adapter adapter --out OUT", "another model"),
    ("eval report --folders base --out OUT", "yayan.json"),
    ("chat cut.gguf", "cut.gguf"),
    # numbers
    ("pretrain --model base --shards shards --learning-rate nan --out OUT", "learning_rate is nan"),
    ("pretrain --model base --shards shards --rank 0 --out OUT", "rank is 0"),
    ("pretrain --model base --shards shards --seed -1 --out OUT", "seed is -1"),
    ("vocab --corpus texts.jsonl --size 99999999999999999999 --out OUT", "size is 9999"),
    ("vocab --base base --corpus texts.jsonl --size 600 --temperature nan --out OUT", "temperature is nan"),
    ("vocab --base base --corpus texts.jsonl --size 600 --most-changed nan --out OUT", "most_changed is nan"),
    ("vocab --base base --corpus texts.jsonl --size 600 --weights inf --out OUT", "weights is inf"),
    (
        "vocab --base base --corpus texts.jsonl --size 600 --weights 1 --weights 2 --out OUT",
        "2 weights for 1",
    ),
    ("vocab --base base --corpus texts.jsonl --size 500 --out OUT", "500 ids are taken"),
    ("serve model.gguf --port 99999", "--port"),
    ("chat model.gguf --context 0", "context"),
    # outputs
    ("pack --tokenizer base --corpus texts.jsonl --out texts.jsonl", "texts.jsonl"),
    ("pack --tokenizer base --corpus texts.jsonl --out texts.jsonl/OUT", "texts.jsonl/OUT"),
    ("pack --tokenizer base --corpus texts.jsonl --out base", "did not make it"),
    ("pack --tokenizer vocab --corpus texts.jsonl --out shards", "tokenizer is another one"),
    ("pack --tokenizer base --corpus texts.jsonl --out grown/OUT", "inside the finished folder"),
    ("pack --tokenizer base --corpus empty.txt --out new/deep/OUT", "empty.txt"),
]


def refused(command: list[str], root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused; the sentence that it was refused with."""
    before = sorted(root.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main(command)
    *begun, sentence = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2, sentence
    assert sentence.startswith("yayan: ")
    assert "--debug" not in sentence
    assert all(line.endswith(": begins") for line in begun)
    assert sorted(root.rglob("*")) == before, "something was written"
    return sentence


@pytest.mark.parametrize(("command", "words"), CASES, ids=[command for command, _ in CASES])
def test_a_wrong_question_is_one_sentence(
    made: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    words: str,
) -> None:
    monkeypatch.chdir(made)
    assert words in refused(command.split(), made, capsys)


def test_a_port_in_use_is_named(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sentence = refused(["serve", str(made / "model.gguf"), f"--port={port}"], made, capsys)
    assert str(port) in sentence


RECIPES = [
    ("", "a mapping with a `road`"),
    ("- vocab\n", "a mapping with a `road`"),
    ("road: {}\n", "no step"),
    ("road: {vocab: [\n", "not YAML"),
    ("about: a\0b\nroad: {}\n", "not YAML"),
    ("raod: {}\nroad: {vocab: {size: 600}}\n", "did you mean road"),
    ("road:\n  vocabb: {size: 600}\n", "line 2"),
    ("road:\n  vocab: {size: 600, siz: 5}\n", "line 2"),
    ("road:\n  vocab: [600]\n", "not a mapping"),
    ("road:\n  5: {size: 600}\n", "no name of a step"),
    ("road:\n  vocab: {base: $vocab, size: 600}\n", "$vocab"),
    ("road:\n  vocab: {base: $grow, size: 600}\n  grow: {tokenizer: $vocab}\n", "$grow"),
    ("road:\n  vocab: {corpus: [missing.txt], size: 600}\n", "missing.txt"),
    ("given: [a]\nroad: {vocab: {size: 600}}\n", "given"),
    ("out: [a]\nroad: {vocab: {size: 600}}\n", "out"),
    ("expect: [{value: vocab.size}]\nroad: {vocab: {size: 600}}\n", "expect"),
]


@pytest.mark.parametrize("verb", ["run", "check"])
@pytest.mark.parametrize(("text", "words"), RECIPES)
def test_a_wrong_recipe_is_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    text: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("road.yaml").write_text(text, encoding="utf-8")
    assert words in refused([verb, "road.yaml"], tmp_path, capsys)
