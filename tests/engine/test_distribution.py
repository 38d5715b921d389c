"""Logits to probabilities: as `transformers`' processors do it, each option alone and all together."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from yayan.engine.distribution import Chooser, guide, penalise, probabilities, top_logprobs
from yayan.engine.sampling import Sampling

V = 101
PROMPT, ANSWER = [3, 17, 17, 50, 3], [9, 50, 9, 9, 77]


def logits(seed: int = 0, size: int = V) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3


def reference(logits_V: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """What `generate` makes of the same options, in its order (`GenerationMixin._get_logits_processor`)."""
    chain: list[Any] = []
    if sampling.logit_bias:
        chain.append(SequenceBiasLogitsProcessor([[[i], float(b)] for i, b in sampling.logit_bias.items()]))
    if sampling.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature != 1:
        chain.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(TopPLogitsWarper(sampling.top_p))
    chain.append(MinPLogitsWarper(sampling.min_p))
    ids = torch.tensor([[*PROMPT, *ANSWER]])
    return LogitsProcessorList(chain)(ids, logits_V[None].clone())[0].softmax(-1)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"top_k": 5},
    {"top_k": 1000},
    {"top_p": 0.7},
    {"top_p": 0.0},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"logit_bias": {4: 5.0, 50: -7.5, 0: 1.0}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_option_alone_is_that_of_transformers(options: dict[str, Any]) -> None:
    sampling = Sampling(**{"temperature": 1.0, **options})
    for seed in range(20):
        p_V = probabilities(logits(seed), PROMPT, ANSWER, sampling)
        torch.testing.assert_close(p_V, reference(logits(seed), sampling), rtol=1e-5, atol=1e-7)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 10**6),
    st.builds(
        Sampling,
        temperature=st.sampled_from([0.1, 0.2, 0.7, 1.0, 1.9]),
        top_k=st.sampled_from([0, 1, 3, 40, 101]),
        top_p=st.sampled_from([0.0, 0.13, 0.5, 0.9, 1.0]),
        min_p=st.sampled_from([0.0, 0.03, 0.4, 1.0]),
        repetition_penalty=st.sampled_from([0.8, 1.0, 1.1, 2.0]),
        logit_bias=st.sampled_from([{}, {1: 3.0}, {9: -4.0, 50: 2.5}]),
    ),
)
def test_all_options_together_are_those_of_transformers(seed: int, sampling: Sampling) -> None:
    p_V, wanted = probabilities(logits(seed), PROMPT, ANSWER, sampling), reference(logits(seed), sampling)
    torch.testing.assert_close(p_V, wanted, rtol=2e-5, atol=1e-6)
    assert p_V.dtype == torch.float32


def test_penalties_of_the_answer_are_those_of_openai() -> None:
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25)
    wanted = logits()
    for token, times in ((9, 3), (50, 1), (77, 1)):
        wanted[token] -= 0.5 + 0.25 * times
    torch.testing.assert_close(penalise(logits(), PROMPT, ANSWER, sampling), wanted)
    assert torch.equal(penalise(logits(), PROMPT, [], sampling), logits()), "the prompt is not counted"


def test_greedy_takes_the_likeliest_after_penalties() -> None:
    best = int(logits().argmax())
    sampling = Sampling(temperature=0, logit_bias={best: -100})
    p_V = probabilities(logits(), [], [], sampling)
    assert p_V.count_nonzero() == 1
    assert int(p_V.argmax()) == int(logits().topk(2).indices[1])


def test_logits_are_left_as_they_were() -> None:
    given_V = logits()
    sampling = Sampling(logit_bias={1: 2.0}, repetition_penalty=2.0, presence_penalty=1.0, top_k=3, top_p=0.5)
    probabilities(given_V, PROMPT, ANSWER, sampling)
    assert torch.equal(given_V, logits())


def test_guidance_is_its_formula_in_float64() -> None:
    for scale in (0.0, 0.5, 1.5, 3.0):
        c, u = (logits(seed).double() for seed in (1, 2))
        p, q = c.exp() / c.exp().sum(), u.exp() / u.exp().sum()
        wanted = scale * p.log() + (1 - scale) * q.log()
        torch.testing.assert_close(guide(logits(1), logits(2), scale).double(), wanted, rtol=0, atol=2e-5)
        torch.testing.assert_close(guide(c, u, scale), wanted, rtol=0, atol=1e-12)


def test_draws_are_distributed_as_said() -> None:
    sampling = Sampling(temperature=1.0, top_k=6, seed=5)
    chooser = Chooser(sampling, PROMPT, torch.device("cpu"))
    p_V = probabilities(logits(), PROMPT, [], sampling).double()
    count = torch.zeros(V)
    for _ in range(10_000):
        count[chooser.choose(logits(), [])] += 1
    assert not count[p_V == 0].any()
    kept = p_V > 0
    chi2 = ((count[kept] - 10_000 * p_V[kept]) ** 2 / (10_000 * p_V[kept])).sum()
    assert chi2 < 20.5, "0.1 % of right draws lie above, with 5 degrees of freedom"


def test_logprobs() -> None:
    logprob, top = top_logprobs(logits(), 7, 3)
    assert logprob == pytest.approx(logits().double().log_softmax(-1)[7].item(), abs=1e-5)
    assert list(top) == logits().topk(3).indices.tolist()
    assert top_logprobs(logits(), 7, 0)[1] == {}
