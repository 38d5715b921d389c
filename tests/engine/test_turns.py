"""A prompt that begins like the last one and its answer goes on with what was read, and with nothing else."""

import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sentencepiece_model import TOKENS, make_chat_model
from yayan.engine import cache as cache_module
from yayan.engine.cache import Cache, common_length
from yayan.engine.network import Branches, Network
from yayan.engine.sampling import Sampling
from yayan.engine.torch import TorchEngine

IDS = torch.randint(4, TOKENS, (400,), generator=torch.Generator().manual_seed(2)).tolist()
GREEDY = Sampling(temperature=0, max_tokens=20)
GUIDED = Sampling(temperature=0, max_tokens=20, guidance_scale=1.5, repetition_penalty=1.2)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama"},
    "mistral with a window": {"family": "mistral", "sliding_window": 9},
    "qwen3": {"family": "qwen3", "head_dim": 8},
}


@pytest.fixture
def engine(chat_model: Path) -> Iterator[TorchEngine]:
    with TorchEngine(chat_model, dtype="float32") as running:
        running.ends = frozenset()
        yield running


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each pass, in each of its sequences."""
    counts: list[int] = []
    real = Network.read

    def counting(
        self: Network, cache: Cache, slots: Sequence[int], ids: Sequence[Sequence[int]], *, every: bool
    ) -> torch.Tensor:
        counts.extend(len(new) for new in ids)
        return real(self, cache, slots, ids, every=every)

    monkeypatch.setattr(Network, "read", counting)
    return counts


def answer_to(
    engine: TorchEngine, prompt: list[int], sampling: Sampling = GREEDY, negative: Sequence[int] = ()
) -> list[int]:
    return [token for piece in engine.generate(prompt, sampling, negative) for token in piece.ids]


def held(network: Network) -> list[list[int]]:
    assert network.kept is not None
    return network.kept.ids


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", [1.0, 1.5])
@pytest.mark.parametrize("new", [1, 5, 17, 60])
def test_logits_are_those_of_a_full_pass(
    new: int, scale: float, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "BLOCK", 25)  # the longest prompt takes three
    network = Network(make_chat_model(tmp_path / "model", **FAMILIES[family]), "float32")
    first = Branches(network, IDS[:40], IDS[200:230], scale)
    for token in IDS[40:60]:
        first.read([token])
    first.keep()
    prompt, negative = IDS[: 60 + new], IDS[200:230] + IDS[100 : 100 + new]
    again = Branches(network, prompt, negative, scale)
    assert again.cache is first.cache
    whole = Branches(network, prompt, negative, scale)
    assert float(whole.logits_V.std()) > 0.5, "flat logits prove nothing"
    torch.testing.assert_close(again.logits_V, whole.logits_V, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again.read(IDS[300:310]), whole.read(IDS[300:310]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("sampling", "settings"),
    [
        (GREEDY, {}),
        (GUIDED, {}),
        (GREEDY, {"draft_length": 3}),
        (GUIDED, {"draft_length": 3}),
        (GREEDY, {"draft": "lookup", "draft_length": 3}),
    ],
)
def test_a_conversation_has_the_answers_that_each_turn_has_alone(
    sampling: Sampling, settings: dict[str, Any], chat_model: Path, sibling: Path, read: list[int]
) -> None:
    if "draft_length" in settings:
        settings = {"draft": sibling} | settings
    negative = IDS[390:] if sampling is GUIDED else []
    with TorchEngine(chat_model, dtype="float32", **settings) as engine:
        engine.ends = frozenset()
        prompt: list[int] = []
        for turn, new in enumerate((30, 5, 40, 1, 12)):
            prompt = prompt + IDS[100 * (turn % 4) :][:new]
            read.clear()
            answer = answer_to(engine, prompt, sampling, negative)
            taken_over = max(len(prompt) - new - 1, 0) if turn else 0
            assert read[0] == len(prompt) - taken_over
            networks = [engine.network, *([engine.draft] if isinstance(engine.draft, Network) else [])]
            for network in networks:
                assert held(network)[0] == (prompt + answer)[: len(held(network)[0])], (
                    "no guess that was wrong"
                )
                assert len(held(network)[0]) >= len(prompt) + len(answer) - 2
            kept = [network.kept for network in networks]
            engine.forget()
            assert answer_to(engine, prompt, sampling, negative) == answer
            for network, cache in zip(networks, kept, strict=True):
                network.kept = cache
            prompt = prompt + answer


def test_keys_and_values_are_those_of_what_was_said(chat_model: Path, sibling: Path) -> None:
    """With guesses that are seldom right."""
    with TorchEngine(chat_model, dtype="float32", draft=sibling, draft_length=3) as engine:
        answer_to(engine, IDS[:30])
        for network in (engine.network, engine.draft):
            assert isinstance(network, Network)
            found = network.kept
            assert found is not None
            network.kept = None
            wanted = Branches(network, found.ids[0]).cache
            for a, b in zip(found.keys + found.values, wanted.keys + wanted.values, strict=True):
                length = len(found.ids[0])
                torch.testing.assert_close(a[0, :, :length], b[0, :, :length], rtol=1e-4, atol=1e-4)


def test_the_same_prompt_again_passes_its_last_token(engine: TorchEngine, read: list[int]) -> None:
    answer = answer_to(engine, IDS[:50])
    read.clear()
    assert answer_to(engine, IDS[:50]) == answer
    assert read[0] == 1
    read.clear()
    assert answer_to(engine, IDS[:30]) == answer_to(engine, IDS[:30])
    assert read[0] == 1, "a beginning of it"


def test_another_prompt_takes_nothing_over(engine: TorchEngine, read: list[int]) -> None:
    answer = answer_to(engine, IDS[100:150])
    answer_to(engine, IDS[:50])
    read.clear()
    assert answer_to(engine, IDS[100:150]) == answer
    assert read[0] == 50


def test_nothing_is_taken_over_from_another_turning(tmp_path: Path, read: list[int]) -> None:
    folder = make_chat_model(tmp_path / "model", max_position_embeddings=64)
    with TorchEngine(folder, dtype="float32", context="auto") as engine:
        engine.ends = frozenset()
        beginning = answer_to(engine, IDS[:20])
        for length, limit, first in ((30, 20, 10), (50, 20, 50), (60, 20, 10), (60, 5, 1), (60, 4, 60)):
            read.clear()  # up to 64 tokens of prompt and answer are turned alike, and 65 to 128
            sampling = Sampling(temperature=0, max_tokens=limit)
            answer = answer_to(engine, IDS[:length], sampling)
            assert read[0] == first
            kept = engine.network.kept
            engine.forget()
            assert answer_to(engine, IDS[:length], sampling) == answer
            engine.network.kept = kept
        assert beginning


def test_angles_that_depend_on_the_length_take_nothing_over(tmp_path: Path, read: list[int]) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    folder = make_chat_model(tmp_path / "model", rope_parameters=rope)
    with TorchEngine(folder, dtype="float32") as engine:
        for length in (30, 40):
            read.clear()
            answer_to(engine, IDS[:length])
            assert read[0] == length


def test_a_seed_repeats_an_answer_to_the_bit(engine: TorchEngine, read: list[int]) -> None:
    sampling = Sampling(temperature=1.0, seed=3, max_tokens=12, logprobs=0)
    told = []
    for _ in range(2):
        read.clear()
        pieces = list(engine.generate(IDS[:50], sampling))
        told.append([(item.token, item.logprob) for piece in pieces for item in piece.logprobs])
        assert read[0] == 50
    assert told[0] == told[1]


def test_answers_under_way_do_not_share(engine: TorchEngine) -> None:
    prompts = [IDS[:40], IDS[:45]]
    wanted = [answer_to(engine, prompt) for prompt in prompts]
    engine.forget()
    streams = [engine.generate(prompt, GREEDY) for prompt in prompts]
    found: list[list[int]] = [[], []]
    for _ in range(21):
        for ids, stream in zip(found, streams, strict=True):
            piece = next(stream, None)
            ids.extend(piece.ids if piece else [])
    assert found == wanted


def test_one_cache_is_kept_and_freed(chat_model: Path) -> None:
    engine = TorchEngine(chat_model, dtype="float32")
    answer_to(engine, IDS[:40])
    before = weakref.ref(engine.network.kept)
    stream = engine.generate(IDS[:40], GUIDED)
    next(stream)
    assert before() is None, "one of two branches takes its place"
    stream.close()
    last = weakref.ref(engine.network.kept)
    dict(engine.generate_many([IDS[:4]], GREEDY))
    assert last() is None, "a batch takes its place"
    answer_to(engine, IDS[:40])
    late = engine.generate(IDS[:50], GREEDY)
    next(late)
    network = weakref.ref(engine.network)  # what is kept hangs on it
    engine.close()
    late.close()
    del late
    assert network() is None


def test_a_stream_left_early_and_one_interrupted(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch, read: list[int]
) -> None:
    prompt = IDS[:250]  # the answer outgrows the first room
    wanted = answer_to(engine, prompt)
    engine.forget()
    stream = engine.generate(prompt, GREEDY)
    next(stream)
    stream.close()
    read.clear()
    assert answer_to(engine, prompt) == wanted
    assert read[0] == 1
    engine.forget()
    real = torch.nn.functional.pad
    calls = []

    def interrupted(*given: Any) -> torch.Tensor:
        calls.append(given)
        if len(calls) == 2 * 2 + 2:  # keys and values of two layers, and then the second layer's keys
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(cache_module.F, "pad", interrupted)
    with pytest.raises(KeyboardInterrupt):
        answer_to(engine, prompt)
    monkeypatch.undo()
    assert 250 <= len(held(engine.network)[0]) <= 256
    assert answer_to(engine, prompt) == wanted


def test_the_next_turn_of_a_chat_reads_what_is_new(chat_model: Path, read: list[int]) -> None:
    with TorchEngine(chat_model, dtype="float32") as engine:
        turns = [{"role": "user", "content": "从前，河边有什么？"}]
        first = engine.prompt_ids(turns)
        answer = "".join(engine.stream(turns, GREEDY))
        turns += [{"role": "assistant", "content": answer}, {"role": "user", "content": "后来呢？"}]
        second = engine.prompt_ids(turns)
        shared = common_length(held(engine.network)[0], second)
        read.clear()
        "".join(engine.stream(turns, GREEDY))
        assert read[0] == len(second) - shared
        assert shared >= len(first)
