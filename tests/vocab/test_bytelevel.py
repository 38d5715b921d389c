"""A byte-level base: joins of any split, ids wherever special tokens stand, padding, and what is carried over."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from tests.byte_level import fuzzed_texts, tiny_tokenizer, write_folder
from tests.vocab.conftest import SAMPLE, texts_of
from yayan.errors import UserError
from yayan.pretokenizers import BYTE_OF
from yayan.stage import execute
from yayan.tokenizer import load_tokenizer
from yayan.vocab.base import Base
from yayan.vocab.bases import open_base
from yayan.vocab.bytelevel import ByteLevelBase, bytes_of, make_byte_level_base
from yayan.vocab.continuation import Rules, candidates_of
from yayan.vocab.count import UNIT, count_source, weigh_runs
from yayan.vocab.learn import Vocab
from yayan.vocab.scripts import Wanted

NAMES = {byte: character for character, byte in BYTE_OF.items()}
QWEN2 = (  # the expression of its tokenizer.json: line breaks stay with the punctuation before them
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def name_of(text: str) -> str:
    return "".join(NAMES[byte] for byte in text.encode("utf-8"))


def parts_of(tokenizer: Tokenizer) -> dict[str, Any]:
    return json.loads(tokenizer.to_str())


def continued(base: Base, folder: Path, *texts: str) -> Path:
    """`base` with the bytes' joins of these texts, written."""
    names: list[str] = []
    known = base.plain.get_vocab(with_added_tokens=True)
    for text in texts:
        name = name_of(text)
        names += [name[:end] for end in range(2, len(name) + 1)]
    folder.mkdir()
    base.write(folder, [name for name in dict.fromkeys(names) if name not in known])
    return folder


def test_the_alphabet_is_that_of_tokenizers() -> None:
    assert set(BYTE_OF) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_OF.values()) == list(range(256))
    every = "aé中\U00020000 \n\t\x00\x7f\xa0\xad"
    shown = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(every)
    assert name_of(every) == "".join(piece for piece, _ in shown)
    assert bytes_of(name_of(every)) == every.encode()
    assert bytes_of("<｜x｜>") is None


def test_texts_and_bytes_of_names() -> None:
    base = make_byte_level_base(tiny_tokenizer(), {"bos": 0, "eos": 1, "pad": 2})
    assert base.text_of(name_of(" 中")) == " 中"
    assert base.text_of(name_of("中")[:2]) is None
    assert base.text_of("</s>") is None  # a special token is no text
    assert base.bytes_of(name_of("中")[:2]) == b"\xe4\xb8"
    assert base.bytes_of("</s>") == b"</s>"
    assert [base.joinable(number) for number in (0, 1, 2, 3)] == [False, False, False, True]


def test_a_new_token_is_joined_from_any_two_that_spell_it() -> None:
    base = make_byte_level_base(tiny_tokenizer(), {"eos": 1, "pad": 2})
    halves = ["甲乙", "丙丁", "甲", "乙丙丁", "甲乙丙", "丁"]
    for left, right in (("甲乙", "丙丁"), ("甲", "乙丙丁"), ("甲乙丙", "丁")):
        letters = [name_of(text)[:end] for text in "甲乙丙丁" for end in (2, 3)]
        order = [*letters, *map(name_of, [h for h in halves if len(h) > 1]), name_of("甲乙丙丁")]
        fast = base.extended(list(dict.fromkeys(order)))
        merges = json.loads(fast.to_str())["model"]["merges"]
        assert [name_of(left), name_of(right)] in merges
        cut = fast.encode("甲乙丙丁", add_special_tokens=False)
        assert cut.ids == [fast.token_to_id(name_of("甲乙丙丁"))]


@pytest.mark.parametrize("place", ["first", "middle", "last", "outside of model.vocab"])
def test_old_ids_stay_wherever_special_tokens_stand(place: str, tmp_path: Path) -> None:
    parts = parts_of(tiny_tokenizer())
    order = sorted(parts["model"]["vocab"], key=parts["model"]["vocab"].__getitem__)
    specials, others = order[:3], order[3:]
    cut = {"first": 0, "middle": 150}.get(place, len(others))
    ids = {name: number for number, name in enumerate([*others[:cut], *specials, *others[cut:]])}
    for item in parts["added_tokens"]:
        item["id"] = ids[item["content"]]
    kept = others if place.startswith("outside") else ids
    parts["model"]["vocab"] = {name: ids[name] for name in kept}
    folder = write_folder(tmp_path / "base", Tokenizer.from_str(json.dumps(parts)), pad_token="<pad>")
    base = open_base(folder)
    assert isinstance(base, ByteLevelBase)
    assert (base.size, base.taken) == (len(ids), len(ids))
    out = continued(base, tmp_path / "out", "中国人民", "中国")
    ours, theirs = load_tokenizer(out), AutoTokenizer.from_pretrained(out)
    names = [ours.token(number) for number in range(ours.size)]
    assert {name: number for number, name in enumerate(names[: base.size])} == ids
    assert all(theirs.convert_tokens_to_ids(name) == number for number, name in enumerate(names))
    assert (
        (ours.eos_id, ours.pad_id)
        == (theirs.eos_token_id, theirs.pad_token_id)
        == (ids["</s>"], ids["<pad>"])
    )
    texts = [*fuzzed_texts(50, seed=1), "中国人民</s>中国"]
    assert theirs(texts, add_special_tokens=False)["input_ids"] == list(map(ours.encode_with_specials, texts))
    assert ours.encode("中国人民") == [ours.fast.token_to_id(name_of("中国人民"))]


@pytest.mark.parametrize("declared", ["<pad>", "</s>", "<s>", None, "<other>", "en"])
def test_padding_is_a_special_token_of_its_own(declared: str | None, tmp_path: Path) -> None:
    """With `<pad>` there, whatever is declared: it is taken unless another one of its own is declared."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(["<other>"])
    settings = {"pad_token": declared} if declared else {}
    base = open_base(write_folder(tmp_path / "base", tokenizer, bos_token="<s>", **settings))
    own = tokenizer.token_to_id(declared if declared == "<other>" else "<pad>")
    assert base.taken == base.size
    out = continued(base, tmp_path / "out", "中")
    assert load_tokenizer(out).pad_id == AutoTokenizer.from_pretrained(out).pad_token_id == own


@pytest.mark.parametrize("declared", ["</s>", "<s>", None, "en"])
def test_padding_that_is_missing_is_the_first_new_row(declared: str | None, tmp_path: Path) -> None:
    parts = parts_of(tiny_tokenizer())
    text = json.dumps(parts).replace('"<pad>"', '"<third>"')
    settings = {"pad_token": declared} if declared else {}
    folder = write_folder(tmp_path / "base", Tokenizer.from_str(text), bos_token="<s>", **settings)
    base = open_base(folder)
    assert base.taken == base.size + 1
    out = continued(base, tmp_path / "out", "中")
    tokenizer = load_tokenizer(out)
    assert tokenizer.pad_id == AutoTokenizer.from_pretrained(out).pad_token_id == base.size
    assert tokenizer.token(base.size) == "<pad>"
    assert base.size not in tokenizer.encode("<pad>")
    assert tokenizer.encode_with_specials("<pad>") == [base.size]
    assert load_tokenizer(folder).size == base.size


def test_an_ordinary_token_that_is_called_padding_is_refused() -> None:
    parts = parts_of(tiny_tokenizer())
    parts["added_tokens"] = [item for item in parts["added_tokens"] if item["content"] != "<pad>"]
    base = make_byte_level_base(Tokenizer.from_str(json.dumps(parts)), {"eos": 1})
    with pytest.raises(UserError, match="ordinary token"):
        base.extended(["x"])


def test_template_and_length_are_carried_over(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "base", tiny_tokenizer(), pad_token="<pad>", bos_token="<s>")
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"model_max_length": 321}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(continued(open_base(folder), tmp_path / "out", "中"))
    assert (theirs.chat_template, theirs.model_max_length) == ("{{ messages }}", 321)
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == ("<s>", "</s>", "<pad>")


def test_signs_next_to_chinese_keep_their_ids() -> None:
    """Quotation marks and emoji share first bytes with Chinese marks and rare characters."""
    base = make_byte_level_base(tiny_tokenizer(), {"eos": 1, "pad": 2})
    signs = [*"“”’—…·™😀🙂👩é×０", "‘a’", "\u200b"]
    texts = [f"中{sign}国{sign}{sign}人。{sign}，\U00020000{sign}〇" for sign in signs] * 4 + texts_of(
        "zh-train.jsonl"
    )
    wanted = Wanted(("han",))
    source = count_source(texts, wanted)
    found = candidates_of(base, [(source.runs, weigh_runs(source, 1.0))], Rules(wanted, 8, UNIT), 900)
    fast = base.extended([candidate.name for candidate in found])
    partial = [base.bytes_of(candidate.name) for candidate in found if base.text_of(candidate.name) is None]
    assert len(partial) > 20
    assert all(wanted.owns_prefix(start) for start in partial)
    for sign in signs[:-3]:
        for text in (sign, f"中{sign}国", f"。{sign}，", f"Once {sign} upon"):
            old, new = (set(tokenizer.encode(text).ids) for tokenizer in (base.plain, fast))
            own = set(base.plain.encode(sign).ids)
            assert own <= new, f"{sign} was cut otherwise in {text}"
            assert own <= old


def test_a_base_in_the_manner_of_qwen2(tmp_path: Path) -> None:
    """It composes characters, keeps line breaks with marks, and takes whole words without merging."""
    tokenizer = tiny_tokenizer()
    tokenizer.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, bytewise])
    parts = parts_of(tokenizer)
    parts["model"]["ignore_merges"] = True
    folder = write_folder(tmp_path / "base", Tokenizer.from_str(json.dumps(parts)), bos_token="<s>")
    stage = Vocab(out=tmp_path / "out", base=folder, corpus=[SAMPLE / "zh-train.jsonl"], size=700)
    metrics = execute(stage)["metrics"]
    assert (metrics["size"], metrics["proofs"]["dead_pieces"]) == (700, 0)
    equal = metrics["proofs"]["equal_texts"]
    assert equal.keys() == {"round trip", "transformers"}
    assert equal["transformers"] == 10_000
    assert 9_000 < equal["round trip"] < 10_000, "NFC rewrites some texts, with the base as with us"
    assert load_tokenizer(tmp_path / "out").encode("e\u0301") == load_tokenizer(folder).encode("é")
