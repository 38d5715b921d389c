"""Text out of tokens as they come: nothing half, nothing that is taken back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import make_tokenizer
from yayan.engine.text import StopFinder, TextStream
from yayan.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return load_tokenizer(folder)


TEXTS = ["你好世界", "a 🙂🙂 b", "  two  spaces", "ab\n\n你 é", "𠮷野家", "a"]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_make_the_text(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text)
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in ids] + [stream.finish()]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_left_out(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    ids = tokenizer.encode("你🙂")[:-1]
    assert "".join([*map(stream.add, ids), stream.finish()]).strip() == "你"


def test_bytes_that_are_no_text_do_not_hold_up_what_follows(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    vocabulary = tokenizer.fast.get_vocab()
    ids = [vocabulary[piece] for piece in ("<0xFF>", "你", "<0x80>", "a")]
    text = "".join([*map(stream.add, ids), stream.finish()])
    assert text == "\ufffd你\ufffda"


PARTS = st.lists(st.text("ab\n", max_size=3), max_size=12)


@settings(deadline=None)
@given(PARTS, st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_stop_strings_across_borders(parts: list[str], stops: list[str]) -> None:
    finder = StopFinder(stops)
    shown = "".join(finder.add(part) for part in parts)
    shown += finder.finish()
    whole = "".join(parts)
    # the stop string that is complete first ends the text; of those, what stands first
    for end in range(len(whole) + 1):
        found = [whole[:end].find(stop) for stop in stops if stop in whole[:end]]
        if found:
            break
    if not found:
        assert shown == whole
        assert not finder.found
    else:
        assert finder.found
        assert whole.startswith(shown)
        assert not any(stop in shown for stop in stops)


def test_text_that_might_become_a_stop_string_waits() -> None:
    finder = StopFinder(["END", "\n\n"])
    assert [finder.add(part) for part in ("so E", "N", "T", "\n", "x")] == ["so ", "", "ENT", "", "\nx"]
    assert [finder.add(part) for part in ("a", "E", "ND b", "c")] == ["a", "", "", ""]
    assert finder.found
