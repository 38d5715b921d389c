"""The commands of a conversation, with a real model behind it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from yayan.corpus.chats import chats
from yayan.engine.sampling import Sampling
from yayan.errors import UserError
from yayan.serve.conversation import COMMANDS, Conversation, read_turn, with_setting
from yayan.serve.speaker import Speaker, open_speaker

GREEDY = Sampling(temperature=0, max_tokens=6)
SYSTEM = {"role": "system", "content": "Answer."}


@pytest.fixture(scope="module")
def speaker(gguf: Path) -> Iterator[Speaker]:
    with open_speaker("llamacpp", gguf, threads=1, parallel=1) as running:
        yield running


@pytest.fixture
def talk(speaker: Speaker) -> Conversation:
    return Conversation(speaker, GREEDY, SYSTEM)


def test_again_and_back(talk: Conversation) -> None:
    talk.take_turn("the river")
    first = list(talk.turns)
    talk.take_turn("the old man")
    second = list(talk.turns)
    talk.take_turn("/regen")
    assert talk.turns == second, "greedy"
    talk.take_turn("/set temperature=3")
    answers = set()
    for _ in range(4):
        talk.take_turn("/regen")
        answers.add(talk.turns[-1]["content"])
    assert len(answers) > 1
    assert talk.turns[:-1] == second[:-1]
    talk.take_turn("/undo")
    assert talk.turns == first
    talk.take_turn("/undo")
    assert talk.turns == []


def test_an_answer_stays_where_nothing_is_said_instead(talk: Conversation) -> None:
    talk.take_turn("the river")
    before = list(talk.turns)
    talk.take_turn('/set logit_bias={"2": 100}')  # EOS
    talk.take_turn("/regen")
    assert talk.turns == before


def test_saved_and_loaded(talk: Conversation, speaker: Speaker, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    talk.take_turn("从前，\n河边")
    talk.take_turn(f"/save {path}")
    (saved,) = chats([path])
    assert saved.messages == [SYSTEM, *talk.turns]
    other = Conversation(speaker, GREEDY, {"role": "system", "content": "x"})
    other.take_turn(f"/load {path}")
    assert (other.turns, other.system) == (talk.turns, SYSTEM)
    for conversation in (talk, other):
        conversation.take_turn("the river")
    assert other.turns == talk.turns
    path.write_text('{"messages": [{"role": "user", "content": "the river"}]}\n')
    other.take_turn(f"/load {path}")
    assert [turn["role"] for turn in other.turns] == ["user", "assistant"], "what nobody answered is asked"
    assert other.system["content"] == ""


def test_the_system_prompt_is_changed(talk: Conversation) -> None:
    talk.take_turn("the river")
    before = talk.turns[-1]
    talk.take_turn("/system You are the river, and the old man is your net.")
    talk.take_turn("/regen")
    assert talk.turns[-1] != before


def test_help_names_every_command(talk: Conversation, capsys: pytest.CaptureFixture[str]) -> None:
    talk.take_turn("/help")
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("/undo", "nothing was asked yet"),
        ("/regen", "nothing was asked yet"),
        ("/sav x", "did you mean /save?"),
        ("/save", "no file is named"),
        ("/save /no/such/folder/x", "cannot be written"),
        ("/load nowhere.jsonl", "nowhere.jsonl"),
        ("/set warmth=1", "sets nothing"),
        ("/set temperature", "sets nothing"),
        ("/set temperature=-1", "means nothing"),
        ("/set top_k=many", "means nothing"),
        ('/set logit_bias={"x": 1}', "means nothing"),
        ("/set guidance_scale=2", "torch"),
    ],
)
def test_what_goes_wrong_is_a_sentence_and_the_chat_goes_on(
    typed: str, sentence: str, talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    talk.take_turn(typed)
    if "guidance" in typed:
        talk.take_turn("the river")
        talk.take_turn("/set guidance_scale=1")
    shown = capsys.readouterr().err
    assert sentence in shown
    assert shown.count("\n") == 1
    talk.take_turn("the river")
    assert talk.turns


def test_settings_are_parsed() -> None:
    sampling = with_setting(GREEDY, "stop=。")
    assert sampling.stop == ("。",)
    assert with_setting(GREEDY, 'stop=["a", "b"]').stop == ("a", "b")
    assert with_setting(GREEDY, 'logit_bias={"3": -1.5}').logit_bias == {3: -1.5}
    assert with_setting(GREEDY, "seed = 5").seed == 5
    with pytest.raises(UserError):
        with_setting(GREEDY, "seed=5.5")


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (["one line"], "one line"),
        (['"""first', "", '  second"""'], "first\n\n  second"),
        (['"""', "/undo", '"""'], "/undo"),
        (['"""one"""'], "one"),
    ],
)
def test_texts_of_several_lines(typed: list[str], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(typed)
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert read_turn() == text


def test_torch_says_the_same(gguf: Path, talk: Conversation) -> None:
    with open_speaker("torch", gguf.parent / "tiny-chat", threads=1, parallel=1) as speaker:
        other = Conversation(speaker, GREEDY, SYSTEM)
        for conversation in (talk, other):
            conversation.take_turn("the river")
        assert other.turns[-1]["content"].rstrip("\ufffd") == talk.turns[-1]["content"].rstrip("\ufffd")
        assert speaker.tokens == 6
        other.take_turn("/set guidance_scale=3")
        other.take_turn("/regen")
        assert other.turns[-1] != talk.turns[-1]


def test_saved_is_json_lines(talk: Conversation, tmp_path: Path) -> None:
    talk.system = {"role": "system", "content": ""}
    talk.take_turn("the river")
    talk.take_turn(f"/save {tmp_path / 'x.jsonl'}")
    assert json.loads((tmp_path / "x.jsonl").read_text())["messages"] == talk.turns
