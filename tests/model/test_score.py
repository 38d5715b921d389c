"""Scores against plain full logits in float64, at odd sizes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from yayan.model import score
from yayan.model.score import bits_per_byte, body_and_head, score_sequences, slide

VOCAB_ROWS = 131


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=VOCAB_ROWS,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.3,  # far from uniform, so that a token scored in the wrong place shows
    )
    return LlamaForCausalLM(config).eval()


def sequences(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(VOCAB_ROWS, (length,), generator=generator).tolist() for length in lengths]


def logprobs(model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    """log p [positions, V] of a whole sequence, in float64."""
    double = LlamaForCausalLM(model.config).double().eval()
    double.load_state_dict(model.state_dict())
    with torch.no_grad():
        return double(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def reference_nats(model: LlamaForCausalLM, ids: list[int], context: int, stride: int) -> float:
    """One token at a time: the window that scores token t is the first one that reaches it."""
    nats = 0.0
    for t in range(1, len(ids)):
        start = 0 if t <= context else math.ceil((t - context) / stride) * stride
        nats -= logprobs(model, ids[start:t])[-1, ids[t]].item()
    return nats


@pytest.mark.parametrize(
    ("context", "stride", "batch_tokens"), [(64, None, 37), (9, 4, 50), (7, 7, 7), (5, 1, 1)]
)
def test_nats_equal_plain_float64(
    model: LlamaForCausalLM, context: int, stride: int | None, batch_tokens: int
) -> None:
    given_ids = sequences([1, 2, 13, 31, 8])
    found = score_sequences(
        *body_and_head(model), given_ids, context=context, stride=stride, batch_tokens=batch_tokens
    )
    expected = [reference_nats(model, ids, context, stride or context // 2) for ids in given_ids]
    assert found == pytest.approx(expected, rel=2e-6, abs=1e-9)
    assert found[0] == 0


def test_the_head_sees_few_positions_at_once(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "HEAD_ROWS", 5)
    body, head = body_and_head(model)
    seen: list[int] = []

    def counting_head(h_ND: torch.Tensor) -> torch.Tensor:
        seen.append(len(h_ND))
        return head(h_ND)

    given_ids = sequences([23])
    scored: list[int] = []
    found = score_sequences(body, counting_head, given_ids, context=64, on_scored=scored.append)
    assert max(seen) == 5
    assert sum(seen) == sum(scored) == 22
    assert found[0] == pytest.approx(reference_nats(model, given_ids[0], 64, 32), rel=2e-6)


def test_a_bfloat16_model_is_summed_in_float32(model: LlamaForCausalLM) -> None:
    half = LlamaForCausalLM(model.config).eval()
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16)
    given_ids = sequences([40])
    found = score_sequences(*body_and_head(half), given_ids, context=64)
    assert found[0] == pytest.approx(reference_nats(model, given_ids[0], 64, 32), rel=0.05)


@given(
    length=st.integers(0, 60),
    context=st.integers(1, 17),
    data=st.data(),
)
def test_each_token_is_scored_once_with_enough_before_it(
    length: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    ids = list(range(1000, 1000 + length))
    scored: list[int] = []
    for window in slide(ids, context, stride):
        assert len(window.ids) <= context
        assert len(window.targets) == window.count > 0
        for i, target in enumerate(window.targets):
            before = window.ids[: window.first + i + 1]
            assert before[-1] == target - 1
            assert len(before) >= min(target - 1000, context - stride + 1)
        scored += window.targets
    assert scored == ids[1:]


def test_a_stride_that_leaves_gaps_is_refused(model: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="stride 9"):
        score_sequences(*body_and_head(model), sequences([4]), context=8, stride=9)


def test_bits_per_byte() -> None:
    assert bits_per_byte(math.log(256) * 10, 10) == pytest.approx(8)
