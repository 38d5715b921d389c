"""Speculation changes the time, not the answer: the same ids if nothing is drawn, else the same distribution."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sentencepiece_model import TOKENS, make_chat_model
from tests.tiny import make_base
from yayan.engine.distribution import Chooser, probabilities
from yayan.engine.lengths import DraftLengths
from yayan.engine.network import Branches
from yayan.engine.sampling import Sampling
from yayan.engine.speculative import Guess, LookupDraft, check_guesses, decode_speculatively
from yayan.engine.torch import TorchEngine
from yayan.errors import UserError

CPU = torch.device("cpu")
LIMIT = 30


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randint(4, TOKENS, (n % 9 + 1,), generator=source).tolist() for n in range(count)]


def ids_of(engine: TorchEngine, prompt: list[int], sampling: Sampling) -> list[int]:
    return [token for piece in engine.generate(prompt, sampling) for token in piece.ids]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def plain(chat_model: Path, dtype: str) -> Iterator[TorchEngine]:
    with TorchEngine(chat_model, dtype=dtype) as engine:
        yield engine


@pytest.fixture(scope="module", params=["sibling", "itself", "lookup"])
def guessing(
    request: pytest.FixtureRequest, chat_model: Path, sibling: Path, dtype: str
) -> Iterator[TorchEngine]:
    """The same model with a draft whose guesses are mostly wrong, always right, or repetitions."""
    drafts: dict[str, Any] = {"sibling": sibling, "itself": chat_model, "lookup": "lookup"}
    with TorchEngine(chat_model, dtype=dtype, draft=drafts[request.param]) as engine:
        yield engine


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "guidance": {"guidance_scale": 1.5, "negative_prompt": "老人"},
    "penalties": {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "logit_bias": {40: 2.0}},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("length", [1, 4, 7, None])
def test_greedy_gives_the_ids_of_plain_decoding(
    options: str, length: int | None, guessing: TorchEngine, plain: TorchEngine
) -> None:
    """Bit for bit: in both types a token's logits do not depend on how many came with it (test_network)."""
    sampling = Sampling(temperature=0, max_tokens=LIMIT, **OPTIONS[options])
    guessing.lengths = DraftLengths(length)
    for prompt in prompts(6, seed=length or 0):
        assert ids_of(guessing, prompt, sampling) == ids_of(plain, prompt, sampling)


@pytest.mark.parametrize("limit", range(1, 14))
def test_no_answer_is_too_long_and_its_last_token_is_right(
    limit: int, chat_model: Path, plain: TorchEngine, guessing: TorchEngine
) -> None:
    guessing.lengths = DraftLengths(4)
    sampling = Sampling(temperature=0, max_tokens=limit, logit_bias={2: -100})
    for prompt in prompts(3, seed=limit):
        found = ids_of(guessing, prompt, sampling)
        assert len(found) == limit
        assert found == ids_of(plain, prompt, sampling)


def test_an_answer_ends_with_the_context(chat_model: Path, sibling: Path) -> None:
    with TorchEngine(chat_model, dtype="float32", context=20, draft=sibling, draft_length=6) as engine:
        assert len(ids_of(engine, [7] * 5, Sampling(temperature=0, logit_bias={2: -100}))) == 15


def test_guesses_that_are_right_save_passes(chat_model: Path) -> None:
    with TorchEngine(chat_model, dtype="float32", draft=chat_model, draft_length=4) as engine:
        passes = 0
        read = engine.network.read

        def counted(*given: Any, **options: Any) -> torch.Tensor:
            nonlocal passes
            passes += 1
            return read(*given, **options)

        engine.network.read = counted  # type: ignore[method-assign]
        assert len(ids_of(engine, [7, 8], Sampling(temperature=0, max_tokens=31, logit_bias={2: -100}))) == 31
    assert passes == 1 + 6, "the prompt, and five tokens with each pass"


def test_a_seed_repeats_an_answer(guessing: TorchEngine, plain: TorchEngine) -> None:
    sampling = Sampling(temperature=1.0, seed=5, max_tokens=LIMIT)
    guessing.lengths = DraftLengths()
    assert ids_of(guessing, [9, 9], sampling) == ids_of(plain, [9, 9], sampling)
    guessing.lengths = DraftLengths(3)
    assert ids_of(guessing, [9, 9], sampling) == ids_of(guessing, [9, 9], sampling)


def chi_square(counts: Counter[Any], p: dict[Any, float], draws: int) -> tuple[float, int]:
    """The statistic and its degrees of freedom; outcomes expected less than 5 times are one."""
    rare = [key for key, share in p.items() if share * draws < 5]
    cells = [(counts[key], p[key] * draws) for key in p if key not in rare]
    cells.append((sum(counts[key] for key in rare), sum(p[key] for key in rare) * draws))
    return sum((seen - wanted) ** 2 / wanted for seen, wanted in cells if wanted > 1e-9), len(cells) - 1


DRAWS = 10_000
TINY = 6  # tokens
SAMPLINGS = {
    "temperature": Sampling(temperature=1.0),
    "cuts": Sampling(temperature=0.7, top_k=4, top_p=0.95),
    "penalties": Sampling(temperature=1.0, repetition_penalty=1.5, presence_penalty=0.5),
    "min_p": Sampling(temperature=1.3, min_p=0.2),
}


class Remembering(Chooser):
    """Computes each distribution once."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.known: dict[Any, torch.Tensor] = {}

    def probabilities(self, logits_V: torch.Tensor, answer: Sequence[int]) -> torch.Tensor:
        key = (tuple(logits_V.tolist()), tuple(answer))
        if key not in self.known:
            self.known[key] = super().probabilities(logits_V, answer)
        return self.known[key]


class Table:
    """A model of six tokens whose logits depend on the last one: what is drawn can be counted to the end."""

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        self.logits_VV = torch.randn(TINY, TINY, generator=torch.Generator().manual_seed(seed)) * scale

    def after(self, ids: Sequence[int]) -> torch.Tensor:
        return self.logits_VV[ids[-1]]

    def shares(self, prompt: list[int], sampling: Sampling, length: int) -> dict[tuple[int, ...], float]:
        """The probability of each answer."""
        shares: dict[tuple[int, ...], float] = {(): 1.0}
        for _ in range(length):
            shares = {
                (*said, token): share * p
                for said, share in shares.items()
                for token, p in enumerate(
                    probabilities(self.after([*prompt, *said]), prompt, said, sampling).double().tolist()
                )
            }
        return shares


def guesses_of(
    draft: Table, prompt: list[int], chooser: Chooser, count: int, *, certain: bool
) -> list[Guess]:
    guesses: list[Guess] = []
    said: list[int] = []
    for _ in range(count):
        q_V = chooser.probabilities(draft.after([*prompt, *said]), said)
        token = int(q_V.argmax()) if certain else chooser.draw(q_V)
        guesses.append(Guess(token, None if certain else q_V))
        said.append(token)
    return guesses


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("certain", [False, True], ids=["drawn", "certain"])
def test_two_tokens_are_distributed_as_drawn_by_the_model(name: str, certain: bool) -> None:
    """10,000 rounds of two guesses: the first two tokens against their exact joint distribution."""
    sampling, prompt = SAMPLINGS[name], [3, 1]
    model, draft = Table(1), Table(2)
    chooser = Remembering(replace(sampling, seed=11), prompt, CPU)
    counts: Counter[tuple[int, ...]] = Counter()
    for _ in range(DRAWS):
        guesses = guesses_of(draft, prompt, chooser, 2, certain=certain)
        rows = [model.after([*prompt, *(g.token for g in guesses[:i])]) for i in range(3)]
        taken = check_guesses(guesses, torch.stack(rows), chooser, [])
        if len(taken) == 1:  # plain decoding goes on
            taken.append(chooser.choose(model.after(taken), taken))
        counts[tuple(taken[:2])] += 1
    statistic, freedom = chi_square(counts, model.shares(prompt, sampling, 2), DRAWS)
    assert statistic < freedom + 4.5 * (2 * freedom) ** 0.5, "a right one lies above less than once in 10,000"
    wrong, freedom = chi_square(counts, draft.shares(prompt, sampling, 2), DRAWS)
    assert wrong > 10 * freedom, "the test sees the difference between model and draft"


@pytest.mark.slow
def test_answers_are_distributed_as_plain_ones(tmp_path: Path) -> None:
    """1,000 answers of three tokens through the whole engine, guidance included. (Slow: so many answers.)"""
    config: dict[str, Any] = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "head_dim": 8,
        "num_hidden_layers": 1,
    }
    draws = 1000
    model = make_chat_model(tmp_path / "model", **config)
    draft = make_chat_model(tmp_path / "draft", seed=1, **config)
    keep = {token: -100.0 for token in range(TOKENS) if token not in (10, 11, 12, 13)}
    sampling = Sampling(
        temperature=1.0, max_tokens=3, logit_bias=keep, guidance_scale=1.5, negative_prompt="a"
    )
    prompt = [5, 6]
    with TorchEngine(model, dtype="float32", draft=draft, draft_length=2) as engine:
        shares: dict[tuple[int, ...], float] = {(): 1.0}
        for _ in range(3):
            shares = {
                (*said, token): share * p_V[token].item()
                for said, share in shares.items()
                for p_V in [next_distribution(engine, prompt, said, sampling)]
                for token in (10, 11, 12, 13)
            }
        seeds = (replace(sampling, seed=seed) for seed in range(draws))
        counts = Counter(tuple(ids_of(engine, prompt, seeded)) for seeded in seeds)
    statistic, freedom = chi_square(counts, shares, draws)
    assert statistic < freedom + 4.5 * (2 * freedom) ** 0.5


def next_distribution(
    engine: TorchEngine, prompt: list[int], said: tuple[int, ...], sampling: Sampling
) -> torch.Tensor:
    negative = engine.text_ids(sampling.negative_prompt or "")
    branches = Branches(engine.network, prompt, negative, sampling.guidance_scale)
    logits_V = branches.read(list(said))[-1] if said else branches.logits_V
    return probabilities(logits_V, prompt, said, sampling).double()


def test_lookup_finds_what_followed_last_time() -> None:
    draft = LookupDraft()
    ids = [1, 2, 3, 4, 5, 9, 2, 3, 4, 6, 7, 8, 2, 3, 4]
    assert [guess.token for guess in draft.guess(ids, [], 3)] == [6, 7, 8]
    assert [guess.token for guess in draft.guess(ids, [], 9)] == [6, 7, 8, 2, 3, 4]
    assert draft.guess([1, 2, 3], [], 3) == []
    assert draft.guess([4], [], 3) == []


def test_lookup_guesses_are_taken_where_text_repeats(chat_model: Path) -> None:
    lengths = DraftLengths(4)
    with TorchEngine(chat_model, dtype="float32") as engine:
        favour = {300: 60.0}  # the model says one token only
        sampling = Sampling(temperature=0, logit_bias=favour)
        branches = Branches(engine.network, [300] * 6)
        chosen = decode_speculatively(branches, Chooser(sampling, [300] * 6, CPU), 20, LookupDraft(), lengths)
        assert [token for token, _ in chosen] == [300] * 20
    assert lengths.share > 0.9


def test_drafts_that_do_not_fit(chat_model: Path, tmp_path: Path) -> None:
    make_base(tmp_path / "other")
    with pytest.raises(UserError, match="another tokenizer"):
        TorchEngine(chat_model, draft=tmp_path / "other")
    with pytest.raises(UserError, match="the draft has 504 rows, the model 500"):
        TorchEngine(chat_model, draft=make_chat_model(tmp_path / "padded", padding=4))
    short = make_chat_model(tmp_path / "short", max_position_embeddings=64)
    with pytest.raises(UserError, match="give 2 to 64 tokens"):
        TorchEngine(chat_model, draft=short)
