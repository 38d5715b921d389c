"""Each option of generation in each engine: what it does can be seen, or one sentence says that it is not there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from yayan.engine.llamacpp import LlamaCpp
from yayan.engine.sampling import Sampling, llamacpp_options
from yayan.engine.torch import TorchEngine
from yayan.errors import UserError
from yayan.weights.gguf_file import write_gguf

PROMPT = [1, 5, 300, 301, 5, 302]
GREEDY = Sampling(temperature=0, max_tokens=12, logit_bias={2: -100.0})
DRAWN = replace(GREEDY, temperature=1.0, seed=3)


@dataclass(frozen=True)
class Said:
    """What an engine answered to `PROMPT`."""

    text: str
    ids: list[int]
    logprobs: list[float]
    tops: list[int]
    """How many likeliest tokens were told at each place."""


Ask = Callable[[Sampling], Said]


def ask_torch(engine: TorchEngine) -> Ask:
    def ask(sampling: Sampling) -> Said:
        pieces = list(engine.generate(PROMPT, sampling))
        found = [item for piece in pieces for item in piece.logprobs]
        ids = [token for piece in pieces for token in piece.ids]
        text = "".join(piece.text for piece in pieces)
        return Said(text, ids, [item.logprob for item in found], [len(item.top) for item in found])

    return ask


def ask_llamacpp(engine: LlamaCpp) -> Ask:
    def ask(sampling: Sampling) -> Said:
        options = llamacpp_options(sampling)
        options["n_probs"] = options.pop("top_logprobs", 0)
        options["n_predict"] = options.pop("max_tokens")
        options.pop("logprobs", None)
        answer = engine.ask(
            "/completion", {"prompt": PROMPT, "return_tokens": True, "cache_prompt": False, **options}
        )
        told = answer.get("completion_probabilities", [])
        logprobs, tops = [item["logprob"] for item in told], [len(item["top_logprobs"]) for item in told]
        return Said(answer["content"], answer["tokens"], logprobs, tops)

    return ask


@pytest.fixture(scope="module", params=["torch", "llamacpp"])
def ask(
    request: pytest.FixtureRequest, chat_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ask]:
    if request.param == "torch":
        with TorchEngine(chat_model, dtype="float32") as engine:
            yield ask_torch(engine)
    else:
        path = tmp_path_factory.mktemp("matrix") / "model.gguf"
        write_gguf(chat_model, path, "F32")
        with LlamaCpp(path, threads=1, exact=True) as server:
            yield ask_llamacpp(server)


def max_tokens(ask: Ask) -> None:
    assert [len(ask(replace(GREEDY, max_tokens=n)).ids) for n in (1, 7)] == [1, 7]


def stop(ask: Ask) -> None:
    text = ask(GREEDY).text
    end = text[len(text) // 2 :][:2]
    assert ask(replace(GREEDY, stop=("never there", end))).text == text[: text.index(end)]


def seed(ask: Ask) -> None:
    assert ask(DRAWN).ids == ask(DRAWN).ids != ask(replace(DRAWN, seed=4)).ids


def logprobs(ask: Ask) -> None:
    """Of whole characters: llama.cpp tells nothing of tokens that are parts of one."""
    said = ask(replace(GREEDY, logprobs=4, logit_bias=dict.fromkeys([2, *range(4, 260)], -100.0)))
    assert len(said.logprobs) == len(said.tops) == len(said.ids)
    assert set(said.tops) == {4}
    assert all(value <= 0 for value in said.logprobs)


def logit_bias(ask: Ask) -> None:
    assert set(ask(replace(GREEDY, logit_bias={77: 100.0})).ids) == {77}
    first = ask(GREEDY).ids[0]
    assert first not in ask(replace(GREEDY, logit_bias={2: -100.0, first: -100.0})).ids


def repetition_penalty(ask: Ask) -> None:
    """A token of the prompt that would always win by its bias does not, once it is divided away."""
    favoured = replace(GREEDY, logit_bias={300: 30.0})
    assert set(ask(favoured).ids) == {300}
    said = ask(replace(favoured, repetition_penalty=50.0)).ids
    assert said[0] != 300
    assert len(set(said)) > 6


def presence_penalty(ask: Ask) -> None:
    said = ask(replace(GREEDY, logit_bias={400: 30.0}, presence_penalty=100.0)).ids
    assert said[0] == 400
    assert len(set(said)) == len(said)


def frequency_penalty(ask: Ask) -> None:
    favoured = replace(GREEDY, logit_bias={400: 60.0})
    said = ask(replace(favoured, frequency_penalty=15.0)).ids
    assert said[:3] == [400] * 3
    assert said.count(400) < len(ask(favoured).ids) == 12


def temperature(ask: Ask) -> None:
    greedy = ask(GREEDY).ids
    assert ask(replace(GREEDY, seed=1)).ids == ask(replace(GREEDY, seed=2)).ids == greedy
    assert ask(replace(DRAWN, temperature=0.001)).ids == greedy
    assert ask(replace(DRAWN, temperature=5.0)).ids != greedy


def top_k(ask: Ask) -> None:
    assert ask(replace(DRAWN, temperature=5.0, top_k=1)).ids == ask(GREEDY).ids
    assert ask(replace(DRAWN, temperature=5.0, top_k=2)).ids != ask(GREEDY).ids


def top_p(ask: Ask) -> None:
    assert ask(replace(DRAWN, temperature=2.0, top_p=1e-6)).ids == ask(GREEDY).ids
    assert ask(replace(DRAWN, temperature=2.0, top_p=0.99)).ids != ask(GREEDY).ids


def min_p(ask: Ask) -> None:
    assert ask(replace(DRAWN, temperature=2.0, min_p=1.0)).ids == ask(GREEDY).ids
    assert ask(replace(DRAWN, temperature=2.0, min_p=0.001)).ids != ask(GREEDY).ids


def guidance_scale(ask: Ask) -> None:
    assert ask(replace(GREEDY, guidance_scale=3.0)).ids != ask(GREEDY).ids


def negative_prompt(ask: Ask) -> None:
    guided = replace(GREEDY, guidance_scale=3.0)
    answers = {tuple(ask(replace(guided, negative_prompt=text)).ids) for text in ("老人", "the river")}
    assert len(answers) == 2


EFFECTS: list[Callable[[Ask], None]] = [
    max_tokens,
    stop,
    seed,
    logprobs,
    guidance_scale,
    negative_prompt,
    logit_bias,
    repetition_penalty,
    presence_penalty,
    frequency_penalty,
    temperature,
    top_k,
    top_p,
    min_p,
]
REFUSED: dict[Any, str] = {
    ("llamacpp", guidance_scale): "no classifier-free guidance",
    ("llamacpp", negative_prompt): "no classifier",
}


def test_the_matrix_names_every_option() -> None:
    assert [effect.__name__ for effect in EFFECTS] == [item.name for item in fields(Sampling)]


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: effect.__name__)
def test_option(effect: Callable[[Ask], None], ask: Ask, request: pytest.FixtureRequest) -> None:
    sentence = REFUSED.get((request.node.callspec.params["ask"], effect))
    if sentence:
        with pytest.raises(UserError, match=sentence):
            effect(ask)
    else:
        effect(ask)


def test_both_engines_say_the_same(chat_model: Path, tmp_path: Path) -> None:
    """Greedy, with bias and repetition penalty: the two do the same arithmetic but for rounding."""
    write_gguf(chat_model, tmp_path / "model.gguf", "F32")
    options: list[dict[str, Any]] = [{}, {"repetition_penalty": 1.3}, {"logit_bias": {2: -100.0, 40: 3.0}}]
    with (
        TorchEngine(chat_model, dtype="float32") as engine,
        LlamaCpp(tmp_path / "model.gguf", threads=1, exact=True) as server,
    ):
        for given in options:
            sampling = replace(GREEDY, max_tokens=30, **given)
            assert ask_torch(engine)(sampling).ids == ask_llamacpp(server)(sampling).ids
