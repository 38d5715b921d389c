"""Rotary frequencies are those of `transformers` for random heads, bases, factors and lengths."""

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from yayan.errors import UserError
from yayan.model.rope import adaptive_alpha, frequencies, ntk_theta, plain, rope_of

TRAINED = "original_max_position_embeddings"


def settings_of(kind: str, theta: float, factor: float, trained: int) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": theta}
    if kind != "default":
        rope["factor"] = factor
    if kind in ("yarn", "llama3"):
        rope[TRAINED] = trained
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return rope


@pytest.mark.parametrize("kind", ["default", "linear", "dynamic", "yarn", "llama3"])
@given(
    half=st.integers(2, 128),
    theta=st.floats(100, 5e6),
    factor=st.floats(1, 64),
    trained=st.integers(8, 32_768),
    length=st.integers(1, 300_000),
)
@example(half=64, theta=10_000.0, factor=4.0, trained=4096, length=16_384)
@example(half=2, theta=100.0, factor=1.0, trained=8, length=1)
def test_are_those_of_transformers(
    kind: str, half: int, theta: float, factor: float, trained: int, length: int
) -> None:
    rope, width = settings_of(kind, theta, factor, trained), 2 * half
    positions = trained if kind == "dynamic" else trained * 64
    config = LlamaConfig(
        hidden_size=2 * width,
        num_attention_heads=2,
        max_position_embeddings=positions,
        rope_parameters=dict(rope),
    )
    if kind == "default":
        theirs_K, their_attention = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        theirs_K, their_attention = ROPE_INIT_FUNCTIONS[kind](config, seq_len=length)
    ours_K, attention = frequencies(rope, width, positions, length)
    assert ours_K.dtype == torch.float32
    torch.testing.assert_close(ours_K, theirs_K, rtol=1e-6, atol=0)
    assert attention == pytest.approx(their_attention, rel=1e-6)


@given(half=st.integers(2, 128), theta=st.floats(100, 5e6), alpha=st.floats(1, 64))
def test_a_larger_base_divides_the_slowest_frequency_by_alpha_and_keeps_the_fastest(
    half: int, theta: float, alpha: float
) -> None:
    before_K, after_K = plain(theta, 2 * half), plain(ntk_theta(theta, 2 * half, alpha), 2 * half)
    assert after_K[0] == before_K[0] == 1
    assert float(before_K[-1] / after_K[-1]) == pytest.approx(alpha, rel=1e-4)


@pytest.mark.parametrize(
    ("times", "alpha", "base"), [(1.5, 2, 20_221), (2, 3, 30_528), (3, 5, 51_294), (4, 7, 72_196)]
)
def test_the_adaptive_formula_has_the_values_of_its_authors(times: float, alpha: int, base: int) -> None:
    """Heads of 128 on a base of 10,000, as Llama 2 has them."""
    found = adaptive_alpha(int(4096 * times), 4096)
    assert found == alpha
    assert ntk_theta(10_000.0, 128, found) == pytest.approx(base, abs=1)


def test_yarn_sharpens_attention() -> None:
    rope = settings_of("yarn", 10_000.0, 4.0, 512)
    assert frequencies(rope, 64, 2048)[1] == pytest.approx(0.1 * math.log(4) + 1)


BASE = {"max_position_embeddings": 64}
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({}, PLAIN),
        ({"rope_theta": 500.0, "rope_scaling": None}, PLAIN | {"rope_theta": 500.0}),
        (
            {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
            {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
        ),
        ({"rope_parameters": {"rope_theta": 7.0}}, PLAIN | {"rope_theta": 7.0}),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": None}},
            settings_of("yarn", 10_000.0, 2.0, 64),
        ),
    ],
)
def test_settings_are_read_however_they_are_written(written: dict, read: dict) -> None:
    assert rope_of(BASE | written) == read
    config = LlamaConfig(**(BASE | written))
    theirs = {name: value for name, value in config.rope_parameters.items() if value is not None}
    theirs.pop("type", None)
    assert theirs == read


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ({"rope_scaling": {"type": "longrope"}}, "type longrope is not supported"),
        ({"rope_parameters": {"rope_type": "linear"}}, "type linear without factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 1.0}}, "type yarn with mscale"),
        ({"partial_rotary_factor": 0.5}, "type default with partial_rotary_factor"),
        (
            {"rope_parameters": {"rope_theta": 1.0, "partial_rotary_factor": 0.5}},
            "with partial_rotary_factor",
        ),
    ],
)
def test_what_is_not_known_is_refused(written: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        rope_of(BASE | written)
