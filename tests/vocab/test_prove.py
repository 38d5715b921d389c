"""The proofs notice what they are for: dead pieces, changed ids, readers that disagree."""

import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from tests.byte_level import tiny_tokenizer, write_folder
from tests.vocab.conftest import NEW_PIECES, texts_of
from yayan.errors import WorkError
from yayan.pretokenizers import BYTE_OF
from yayan.tokenizer import convert_sentencepiece, load_tokenizer
from yayan.vocab.base import Base
from yayan.vocab.bases import open_base
from yayan.vocab.begin import begin
from yayan.vocab.bytelevel import make_byte_level_base
from yayan.vocab.describe import changes_in, prove
from yayan.vocab.extend import extend, open_sentencepiece_base, write_tokenizer
from yayan.vocab.prove import (
    HARD_TEXTS,
    find_changes,
    probe_texts,
    prove_readers,
    prove_round_trip,
    random_character,
    witnesses,
)
from yayan.vocab.sample import Sample

NAMES = {byte: character for character, byte in BYTE_OF.items()}
LATIN = ["é", "Ċ", "▁é", "té", "été", "ñ"]
TEXT = st.lists(
    st.sampled_from(["中国", "人民", "été", "Ċé", " é", "<0x0A>", "\n", "the ", "“", "😀", "ñ"])
    | st.text(max_size=4)
)


def names_of(*texts: str) -> list[str]:
    """New names of a byte-level base, each character made byte by byte."""
    names = ["".join(NAMES[byte] for byte in text.encode()) for text in texts]
    starts = [name[:2] for name, text in zip(names, texts, strict=True) if len(text) == 1]
    known = tiny_tokenizer().get_vocab()
    return [name for name in dict.fromkeys([*starts, *names]) if name not in known]


def bytewise() -> Base:
    return make_byte_level_base(tiny_tokenizer(), {"bos": 0, "eos": 1, "pad": 2})


def test_a_piece_that_no_text_gives_is_dead(english: Path) -> None:
    """国人 is joined before 中国, so that nothing of 中国人民 is left for its only split."""
    base = open_sentencepiece_base(english)
    names = ["中", "国", "人", "民", "国人", "中国", "中国人民"]
    found = witnesses(base, base.extended(names), names)
    assert set(names) - found.keys() == {"中国人民"}
    for name, text in found.items():
        fast = base.extended(names)
        assert fast.token_to_id(name) in fast.encode(text, add_special_tokens=False).ids


def test_dead_tokens_of_bytes_are_found_too() -> None:
    base = bytewise()
    names = names_of("中", "国", "人", "民", "国人", "中国", "中国人民")
    assert set(names) - witnesses(base, base.extended(names), names).keys() == set(names_of("中国人民"))
    partial = names_of("龙")[0]
    assert base.text_of(partial) is None
    assert witnesses(base, base.extended([partial]), [partial])[partial].encode().startswith(b"\xe9\xbe")


def test_pieces_that_only_stand_behind_others_have_a_witness(english: Path) -> None:
    base = open_sentencepiece_base(english)
    found = witnesses(base, base.extended(["é", "▁é"]), ["é", "▁é"])
    assert found.keys() == {"é", "▁é"}


@pytest.mark.parametrize("family", ["pieces", "bytes"])
def test_changes_are_counted_exactly(english: Path, family: str) -> None:
    base = open_base(english) if family == "pieces" else bytewise()
    names = (
        [*NEW_PIECES, *LATIN] if family == "pieces" else names_of("中", "国", "中国", "é", "té", "été", "ñ")
    )
    fast = base.extended(names)

    @given(TEXT)
    @settings(max_examples=200, deadline=None)
    def check(parts: list[str]) -> None:
        text = "".join(parts)
        old, new = (tokenizer.encode(text, add_special_tokens=False).ids for tokenizer in (base.plain, fast))
        changes = find_changes(base, fast, [text])
        assert changes.changed_outside == 0
        assert (changes.texts, changes.tokens, changes.changed_texts) == (1, len(old), int(old != new))
        assert changes.changed_tokens == len(old) - sum(token < base.size for token in new)

    check()


def test_ids_that_changed_otherwise_are_noticed(english: Path, tmp_path: Path) -> None:
    """Another tokenizer of the same size; the base with two ids exchanged; one that cuts in other places."""
    base, texts = open_sentencepiece_base(english), texts_of("en-train.jsonl")[:10]
    other = convert_sentencepiece(begin(texts_of("en-train.jsonl")[20:], 600, longest=16))
    assert find_changes(base, other, texts).changed_outside == len(texts)
    proto = extend(base.proto, [])
    first, second = (
        next(n for n, item in enumerate(proto.pieces) if item.piece == piece) for piece in ("e", "o")
    )
    proto.pieces[first].piece, proto.pieces[second].piece = "o", "e"
    assert find_changes(base, convert_sentencepiece(proto), texts).changed_outside == len(texts)
    fewer = extend(base.proto, NEW_PIECES)
    the = next(item for item in fewer.pieces if item.piece == "▁the")
    the.piece = "▁中the"
    assert find_changes(base, convert_sentencepiece(fewer), ["\n中国"]).changed_outside == 0
    assert find_changes(base, convert_sentencepiece(fewer), ["of the 中国"]).changed_outside == 1
    (tmp_path / "tokenizer.model").write_bytes(fewer.SerializeToString())
    with pytest.raises(WorkError, match="1 texts changed outside"):
        changes_in(base, load_tokenizer(tmp_path), ["of the 中国"], tmp_path)


@pytest.fixture
def copy(extended: Path, tmp_path: Path) -> Path:
    for file in extended.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


TEXTS = [*HARD_TEXTS, "中国人民 the river", *texts_of("en-heldout.jsonl")[:3]]


def test_readers_that_agree_are_counted(copy: Path) -> None:
    found = prove_readers(copy, load_tokenizer(copy), TEXTS)
    assert found == dict.fromkeys(("transformers", "sentencepiece", "llama.cpp"), len(TEXTS))


@pytest.mark.parametrize(
    ("file", "reader"), [("tokenizer.json", "transformers"), ("tokenizer.model", "sentencepiece")]
)
def test_a_file_of_another_tokenizer_is_noticed(copy: Path, english: Path, file: str, reader: str) -> None:
    tokenizer = load_tokenizer(copy)
    (copy / file).write_bytes((english / file).read_bytes())
    with pytest.raises(WorkError, match=f"{reader} cuts .* into other tokens"):
        prove_readers(copy, tokenizer, TEXTS)


def test_a_byte_level_file_of_another_tokenizer_is_noticed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "base", tiny_tokenizer(), bos_token="<s>")
    tokenizer = load_tokenizer(folder)
    found = prove_readers(folder, tokenizer, TEXTS)
    assert found == dict.fromkeys(("transformers", "llama.cpp"), len(TEXTS))
    (folder / "tokenizer.json").write_text(bytewise().extended(names_of("中")).to_str(), encoding="utf-8")
    with pytest.raises(WorkError, match="transformers cuts"):
        prove_readers(folder, tokenizer, TEXTS)


def test_a_witness_that_lies_is_noticed(english: Path, tmp_path: Path) -> None:
    base = open_base(english)
    base.write(tmp_path, ["中"])
    with pytest.raises(WorkError, match="1 new tokens are dead, such as that of '国'"):
        prove(tmp_path, base, Sample(), {"中": "国"}, [])


def test_probes_hold_all_that_may_go_wrong(extended: Path) -> None:
    tokenizer = load_tokenizer(extended)
    first = tokenizer.size - len(NEW_PIECES)
    probes: Sequence[str] = probe_texts(tokenizer, first, ["一个很长的样本" * 20], 3000)
    assert probes == probe_texts(tokenizer, first, ["一个很长的样本" * 20], 3000)
    assert len(probes) == 3000
    assert list(HARD_TEXTS) == probes[: len(HARD_TEXTS)]
    together = "".join(probes)
    assert all(piece in together for piece in NEW_PIECES)
    assert all(text in together for text in ("<s>", "</s>", "<pad>", "样本", "🙂"))
    used = {number for ids in tokenizer.encode_batch(probes) for number in ids}
    assert set(range(first, tokenizer.size)) <= used
    assert "▁" not in together
    assert "\0" not in together


def test_random_characters_are_of_unicode_3() -> None:
    rng = random.Random(3)
    found = {random_character(rng) for _ in range(5000)}
    assert {unicodedata.ucd_3_2_0.category(character) for character in found}.isdisjoint({"Cn", "Cs"})
    assert {len(character.encode()) for character in found} == {1, 2, 3, 4}


def test_a_text_that_does_not_come_back_is_named_unless_the_base_loses_it(
    english: Path, tmp_path: Path
) -> None:
    base = open_sentencepiece_base(english)
    write_tokenizer(tmp_path, base.proto)
    tokenizer, lost = load_tokenizer(tmp_path), "a literal ▁ becomes a space"
    with pytest.raises(WorkError, match="does not come back"):
        prove_round_trip(tmp_path, tokenizer, ["all is well", lost], None)
    assert prove_round_trip(tmp_path, tokenizer, ["all is well", lost], base) == 1
    tokenizer.fast.decoder = decoders.Fuse()
    with pytest.raises(WorkError, match="'all is well' does not come back"):
        prove_round_trip(tmp_path, tokenizer, ["all is well"], base)
