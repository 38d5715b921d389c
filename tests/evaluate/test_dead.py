"""Dead ids against all texts of a small alphabet, against fuzz, and of real tokenizers."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.conftest import SHARED, needs_shared
from yayan.corpus.read import documents
from yayan.evaluate.dead import Census, completions, take_census
from yayan.evaluate.encoders import Encoder, NativeEncoder, open_tokenizer
from yayan.pretokenizers import BYTE_OF

NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
TOKENIZERS = SHARED / "data" / "tokenizers"


def spell(raw: bytes, sign_of: dict[int, str]) -> str:
    return "".join(sign_of[byte] for byte in raw)


def byte_level(merges: list[tuple[bytes, bytes]], special: tuple[str, ...] = ()) -> NativeEncoder:
    """A byte-level BPE of 256 bytes and these merges in this order."""
    sign_of = {byte: sign for sign, byte in BYTE_OF.items()}
    pairs = [(spell(left, sign_of), spell(right, sign_of)) for left, right in merges]
    pieces = [sign_of[byte] for byte in range(256)]
    pieces += dict.fromkeys(left + right for left, right in pairs)
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    native = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    native.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    native.decoder = decoders.ByteLevel()
    native.add_special_tokens(list(special))
    return NativeEncoder(native)


def dead_bytes(encoder: NativeEncoder, census: Census) -> set[bytes]:
    return {token.data for number in census.dead if (token := encoder.tokens[number])}


def test_a_merge_that_an_earlier_one_forestalls_is_dead() -> None:
    encoder = byte_level([(b"a", b"b"), (b"b", b"c"), (b"a", b"bc"), (b"ab", b"d")], ("<end>",))
    census = take_census(encoder)
    assert dead_bytes(encoder, census) == {b"abc"}
    assert (census.ids, census.special) == (256 + 4 + 1, 1)
    assert set(census.unreachable_bytes) == NEVER_IN_UTF8


def test_a_byte_all_of_whose_characters_have_tokens_is_unreachable() -> None:
    characters = [chr(code).encode() for code in range(0xC0, 0x100)]
    encoder = byte_level([(raw[:1], raw[1:]) for raw in characters])
    assert set(take_census(encoder).unreachable_bytes) == NEVER_IN_UTF8 | {0xC3}


def random_merges(seed: int, parts: list[bytes], count: int) -> list[tuple[bytes, bytes]]:
    draw, known = random.Random(seed), list(parts)
    merges: list[tuple[bytes, bytes]] = []
    while len(merges) < count:
        pair = (draw.choice(known), draw.choice(known))
        if b"".join(pair) not in known:
            merges.append(pair)
            known.append(b"".join(pair))
    return merges


@pytest.mark.parametrize("seed", range(6))
def test_the_dead_of_random_merges_are_those_of_all_texts(seed: int) -> None:
    merges = [pair for pair in random_merges(seed, [b"a", b"b", b"c"], 25) if len(b"".join(pair)) <= 6]
    encoder = byte_level(merges)
    alive: set[int] = set()
    for length in range(1, 9):
        texts = ["".join(letters) for letters in itertools.product("abc", repeat=length)]
        alive.update(itertools.chain.from_iterable(encoder.encode_batch(texts)))
    dead = set(take_census(encoder).dead)
    assert dead == set(range(256, len(encoder.tokens))) - alive
    assert dead or seed != 0


@pytest.mark.parametrize("seed", range(4))
def test_no_text_gives_a_dead_part_of_a_character(seed: int) -> None:
    letters = "é雅語🐈a "
    parts = sorted({bytes([byte]) for byte in letters.encode()})
    encoder = byte_level(random_merges(seed, parts, 40))
    census = take_census(encoder)
    draw = random.Random(seed)
    for _ in range(10):
        texts = ["".join(draw.choices(letters + "èê雄言🐉b", k=draw.randrange(1, 12))) for _ in range(200)]
        texts += ["".join(chr(draw.randrange(1, 0xD800)) for _ in range(20)) for _ in range(100)]
        given_ids = set(itertools.chain.from_iterable(encoder.encode_batch(texts)))
        assert not given_ids & {*census.dead, *census.unreachable_bytes}


@given(
    text=st.text(alphabet=st.characters(min_codepoint=0x80, exclude_categories=["Cs"]), min_size=1),
    data=st.data(),
)
def test_completions_hold_the_bytes(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    start = data.draw(st.integers(0, len(raw) - 1))
    part = raw[start : data.draw(st.integers(start + 1, len(raw)))]
    found = list(itertools.islice(completions(part), 20))
    assert found
    assert all(part in candidate.encode() for candidate in found)
    assert all(len(candidate) <= len(part) + 1 for candidate in found)


@pytest.mark.parametrize("raw", [b"\xc0", b"\xff", b"\xed\xa0", b"\xe4a", b"\x80\x80\x80\x80", b"\xf4\x90"])
def test_what_is_in_no_text_has_no_completion(raw: bytes) -> None:
    assert list(completions(raw)) == []


def test_completions_of_a_byte_are_all_its_characters() -> None:
    two = {chr(code) for code in range(0xC0, 0x100)}
    assert set(completions(b"\xc3")) == two
    forms = [character.encode() for character in completions(b"\xa9")]
    places = {(len(form), at) for form in forms for at, byte in enumerate(form) if byte == 0xA9}
    assert places == {(2, 1), (3, 1), (3, 2), (4, 1), (4, 2), (4, 3)}


@needs_shared
def test_llama_2_has_no_dead_id() -> None:
    encoder = open_tokenizer(TOKENIZERS / "llama2-32000.tokenizer.model")
    census = take_census(encoder)
    assert (census.ids, census.special, census.dead) == (32000, 3, [])
    bytes_ = {token.data[0] for number in census.unreachable_bytes if (token := encoder.tokens[number])}
    assert {byte for byte in bytes_ if byte >= 0x80} == NEVER_IN_UTF8 | {0xC3}  # À to ÿ all have pieces
    pieces = {token.piece for token in encoder.tokens if token and token.kind == "text"}
    assert {chr(byte).replace(" ", "▁") for byte in bytes_ if byte < 0x80} <= pieces
    assert ord("\n") not in bytes_


def never_formed(encoder: Encoder) -> set[int]:
    """Ids of pieces longer than a character of which no split gives two pieces that can be formed."""
    number_of = {token.piece: i for i, token in enumerate(encoder.tokens) if token and token.kind == "text"}
    formed = {piece for piece in number_of if len(piece) == 1}
    for piece in sorted(number_of, key=len):
        if any(piece[:cut] in formed and piece[cut:] in formed for cut in range(1, len(piece))):
            formed.add(piece)
    return {number for piece, number in number_of.items() if piece not in formed}


@needs_shared
def test_the_dead_of_the_reference_tokenizer() -> None:
    """By its pieces alone 655 cannot be formed. Two of these can, from a character that is no piece; five more cannot,
    because pieces of equal score are joined from the left; one of these is a piece of Llama-2 itself.
    """
    encoder = open_tokenizer(TOKENIZERS / "chinese-llama-2-55296.tokenizer.model")
    dead, unformed = set(take_census(encoder).dead), never_formed(encoder)
    piece_of = {number: token.piece for number, token in enumerate(encoder.tokens) if token}
    assert len(unformed) == 655
    assert {piece_of[number] for number in unformed - dead} == {"▁\u0327", "山楂"}
    forestalled = {"_" * 16, "▁我要评论", "是什么样的", "不必要的", "是什么样的体验"}
    assert {piece_of[number] for number in dead - unformed} == forestalled
    assert [number for number in dead if number < 32000] == [27097]
    assert piece_of[min(number for number in dead if number >= 32000)] == "<pad>"
    assert 48635 in encoder.encode_batch(["山楂"])[0]
    texts = [
        SHARED / "data" / name / "heldout.jsonl.xz"
        for name in ("zh-lctt-tech", "zh-laws", "zh-novels-classical")
    ]
    for document in documents(texts):
        assert not dead.intersection(encoder.encode_batch([document.text])[0])
