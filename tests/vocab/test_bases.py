"""Which tokenizers can be continued, in which files they lie, and the published ones from end to end."""

import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.byte_level import tiny_tokenizer, write_folder
from tests.conftest import SHARED, needs_shared
from tests.vocab.conftest import SAMPLE
from yayan.errors import UserError
from yayan.stage import execute
from yayan.tokenizer import load_tokenizer, read_sentencepiece
from yayan.vocab.bases import open_base
from yayan.vocab.bytelevel import ByteLevelBase
from yayan.vocab.extend import SentencePieceBase
from yayan.vocab.learn import Vocab
from yayan.vocab.prove import find_changes
from yayan.vocab.scripts import Wanted

TOKENIZERS = SHARED / "data" / "tokenizers"


def without_bytes() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "</s>": 1}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "Unigram": lambda: Tokenizer(models.Unigram([("a", -1.0), ("</s>", -2.0)], 0, False)),
    "WordPiece": lambda: Tokenizer(models.WordPiece({"a": 0, "</s>": 1, "[UNK]": 2}, unk_token="[UNK]")),
    "WordLevel": lambda: Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a")),
    "BPE without bytes": without_bytes,
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "base", KINDS[kind]())
    for path in (folder, folder / "tokenizer.json"):
        with pytest.raises(UserError, match=f"a tokenizer of kind {kind} is no byte-level BPE"):
            open_base(path)


def test_what_holds_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        open_base(tmp_path / "none")
    with pytest.raises(
        UserError, match="no tokenizer .*SentencePiece BPE with byte fallback .* or a byte-level BPE"
    ):
        open_base(tmp_path)
    (tmp_path / "some.txt").write_text("a")
    with pytest.raises(UserError, match="cannot be read"):
        open_base(tmp_path / "some.txt")
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        open_base(tmp_path)


def test_a_folder_with_both_files_is_one_of_pieces(english: Path) -> None:
    assert (english / "tokenizer.json").is_file()
    for path in (english, english / "tokenizer.model"):
        base = open_base(path)
        assert isinstance(base, SentencePieceBase)
        assert (base.size, base.taken) == (600, 600)
        text = "The river\n中国</s>"
        assert base.plain.encode(text, add_special_tokens=False).ids == load_tokenizer(english).encode(text)


def test_json_of_pieces_alone_is_refused(english: Path, tmp_path: Path) -> None:
    shutil.copy(english / "tokenizer.json", tmp_path)
    with pytest.raises(UserError, match="BPE without bytes"):
        open_base(tmp_path)


@pytest.mark.parametrize("form", ["folder", "file", "pair"])
def test_byte_level_tokenizers_in_their_forms(form: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "base", tiny_tokenizer(), bos_token="<s>", pad_token="<pad>")
    path = folder / "tokenizer.json" if form == "file" else folder
    if form == "pair":
        model = json.loads((folder / "tokenizer.json").read_text())["model"]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        (folder / "merges.txt").write_text("\n".join(map(" ".join, model["merges"])))
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").write_text('{"model_max_length": 99}')
    base = open_base(path)
    assert isinstance(base, ByteLevelBase)
    assert base.size == 400
    assert base.model_max_length == (99 if form == "pair" else None)
    text = "Once upon a time 从前</s>"
    plain = tiny_tokenizer()
    plain.encode_special_tokens = True
    assert base.plain.encode(text).ids == plain.encode(text).ids


def test_a_base_needs_an_end_of_text(english: Path, tmp_path: Path) -> None:
    text = tiny_tokenizer().to_str().replace('"</s>"', '"<end>"').replace('"<s>"', '"<begin>"')
    folder = write_folder(tmp_path / "bytes", Tokenizer.from_str(text), eos_token="<end>")
    open_base(folder)
    (folder / "tokenizer_config.json").unlink()
    proto = read_sentencepiece(english)
    proto.trainer_spec.eos_id = -1
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    for path in (folder, tmp_path / "tokenizer.model"):
        with pytest.raises(UserError, match="no token that ends a text is declared .*name eos_token"):
            open_base(path)


def english_documents() -> list[str]:
    stories, articles = (
        lzma.decompress((SHARED / "data" / name).read_bytes()).decode("utf-8").splitlines()
        for name in ("en-tinystories/heldout.jsonl.xz", "en-wikitext2-test/wiki.test.raw.xz")
    )
    texts = [json.loads(story)["text"] for story in stories][:100]
    return [*texts, *(article for article in articles if len(article) > 100)][:200]


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "minimind", "llama2"])
def test_published_tokenizers_keep_their_english(name: str, tmp_path: Path) -> None:
    paths = {
        "gpt2": TOKENIZERS / "gpt2.vocab.json",
        "minimind": TOKENIZERS / "minimind-6400.tokenizer.json",
        "llama2": SHARED / "base" / "en-base-21m",
    }
    base, wanted = open_base(paths[name]), Wanted(("han",))
    corpus = [SAMPLE / "zh-train.jsonl"]
    stage = Vocab(out=tmp_path / "out", base=paths[name], corpus=corpus, size=base.taken + 500)
    metrics = execute(stage)["metrics"]
    after = load_tokenizer(tmp_path / "out")
    assert metrics["new_pieces"] == 500
    assert after.size == base.size + 501 - (base.taken == base.size)
    documents = english_documents()
    assert find_changes(base, after.plain, documents).changed_outside == 0
    pure = [text for text in documents if not wanted.holds_own(text)]
    assert len(pure) > 190
    assert after.encode_batch(pure) == [
        cut.ids for cut in base.plain.encode_batch(pure, add_special_tokens=False)
    ]
    chinese = "".join(
        json.loads(line)["text"] for line in (SAMPLE / "zh-heldout.jsonl").open(encoding="utf-8")
    )
    old = len(base.plain.encode(chinese, add_special_tokens=False).ids)
    assert len(after.encode(chinese)) < {"gpt2": 0.6, "minimind": 0.97, "llama2": 0.8}[name] * old
