"""A shared beginning against whole prompts one at a time in `transformers`' own attention and float64, at odd sizes."""

from copy import deepcopy
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from yayan.model import prefix
from yayan.model.prefix import Row, batches, rows_of, score_choices, shared_length

ROWS = 131
SIZES = {
    "vocab_size": ROWS,
    "hidden_size": 36,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # far from uniform, so that a token scored in the wrong place shows
}
LAYERS = {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0, "original_max_position_embeddings": 16}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama one head": LlamaConfig(**SIZES | {"num_attention_heads": 1, "num_key_value_heads": 1}),
    "llama dynamic": LlamaConfig(**SIZES | {"max_position_embeddings": 16}, rope_parameters=DYNAMIC),
    "mistral": MistralConfig(**SIZES, head_dim=10, sliding_window=None),
    "mistral window 7": MistralConfig(**SIZES, head_dim=10, sliding_window=7),
    "mistral window 31": MistralConfig(**SIZES, head_dim=10, sliding_window=31),
    "qwen2": Qwen2Config(**SIZES),
    "qwen2 window 5": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=5, **LAYERS),
    "qwen3": Qwen3Config(**SIZES, head_dim=10),
    "qwen3 window 9": Qwen3Config(**SIZES, head_dim=10, use_sliding_window=True, sliding_window=9, **LAYERS),
}


@lru_cache
def weights(kind: str) -> PreTrainedModel:
    torch.manual_seed(5)
    return AutoModelForCausalLM.from_config(CONFIGS[kind], attn_implementation="sdpa").eval()


def make(kind: str) -> PreTrainedModel:
    """An untouched copy."""
    return deepcopy(weights(kind))


def plain(kind: str, contexts: list[list[int]], choices: list[list[list[int]]]) -> list[list[float]]:
    """Each context with each choice by itself through an untouched model in float64."""
    scores: list[list[float]] = []
    for context, options in zip(contexts, choices, strict=True):
        scores.append([])
        for option in options:
            ids = torch.tensor([[*context, *option[:-1]]])
            with torch.no_grad():
                logits_1TV = make(kind).double()(input_ids=ids, use_cache=False).logits
            logprobs_TV = logits_1TV[0, len(context) - 1 :].log_softmax(-1)
            scores[-1].append(sum(logprobs_TV[t, token].item() for t, token in enumerate(option)))
    return scores


def prompts(shared: int, own: list[int], seed: int = 11) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(ROWS, (shared + sum(own),), generator=generator).tolist()
    start, found = shared, []
    for length in own:
        found.append(numbers[:shared] + numbers[start : start + length])
        start += length
    return found


LETTERS = [[[3], [5], [90], [3]], [[4, 8, 2], [4, 8, 9], [4], [7, 7]], [[1, 2], [2, 2], [2, 1], [130]], [[9]]]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(("shared", "own"), [(23, [7, 1, 12, 7]), (0, [3, 9, 1, 2]), (13, [0, 5, 0, 9])])
def test_scores_are_those_of_whole_prompts(kind: str, shared: int, own: list[int]) -> None:
    contexts = prompts(shared, own)
    expected = plain(kind, contexts, LETTERS)
    for batch_tokens in (1, 17, 4096):
        found = score_choices(make(kind), contexts, LETTERS, batch_tokens=batch_tokens)
        for wanted, got in zip(expected, found, strict=True):
            assert got == pytest.approx(wanted, rel=3e-5)
            assert got.index(max(got)) == wanted.index(max(wanted))


@settings(max_examples=10, deadline=None)
@given(
    kind=st.sampled_from(["llama", "mistral window 7", "qwen3 window 9"]),
    shared=st.integers(0, 30),
    own=st.lists(st.integers(1, 20), min_size=4, max_size=4),
    batch_tokens=st.integers(1, 60),
    seed=st.integers(0, 9),
)
def test_any_lengths(kind: str, shared: int, own: list[int], batch_tokens: int, seed: int) -> None:
    contexts = prompts(shared, own, seed)
    found = score_choices(make(kind), contexts, LETTERS, batch_tokens=batch_tokens)
    for wanted, got in zip(plain(kind, contexts, LETTERS), found, strict=True):
        assert got == pytest.approx(wanted, rel=3e-5)


def test_the_head_sees_few_positions_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = prompts(9, [4, 2, 7, 5])
    whole = score_choices(make("llama"), contexts, LETTERS)
    monkeypatch.setattr(prefix, "HEAD_ROWS", 3)
    model = make("llama")
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    found = score_choices(model, contexts, LETTERS)
    assert max(seen) == 3
    for one, other in zip(whole, found, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_the_beginning_is_read_once_and_choices_of_one_token_share_a_row() -> None:
    model = make("llama")
    passes: list[int] = []
    rows: list[int] = []
    decoder = model.get_decoder()
    decoder.register_forward_pre_hook(
        lambda _, __, named: passes.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    one_token = [[[1], [2], [3], [4]]] * 3
    score_choices(model, prompts(20, [5, 3, 4]), one_token, on_scored=rows.append)
    assert passes == [20, 12]
    assert rows == [3]
    passes.clear()
    score_choices(model, prompts(20, [5]), [[[5], [6, 7], [6, 8], [9, 1]]], on_scored=rows.append)
    assert passes == [24, 1 + 2 + 2]  # the last token of the context is scored, so it is not shared
    assert rows == [3, 3]


def test_a_bfloat16_model_is_near() -> None:
    contexts = prompts(23, [7, 1, 12, 7])
    found = score_choices(make("llama").to(torch.bfloat16), contexts, LETTERS)
    for wanted, got in zip(plain("llama", contexts, LETTERS), found, strict=True):
        assert got == pytest.approx(wanted, rel=0.15, abs=0.5)


def test_nothing_is_shared_where_angles_depend_on_the_length() -> None:
    """Another row beside it must not change a row: each is a pass of its own."""
    passes: list[int] = []
    model = make("llama dynamic")
    model.get_decoder().register_forward_pre_hook(
        lambda _, __, named: passes.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    score_choices(model, prompts(20, [5, 3]), LETTERS[:1] * 2)
    assert passes == [25, 23]


def test_what_is_shared_stands_before_what_is_scored() -> None:
    rows = [*rows_of(0, [1, 2, 3, 4], [[7], [8, 9]]), *rows_of(1, [1, 2, 3], [[7]])]
    assert rows == [Row(0, [1, 2, 3, 4], 3), Row(0, [1, 2, 3, 4, 8], 3), Row(1, [1, 2, 3], 2)]
    assert shared_length(rows) == 2
    assert shared_length([*rows, Row(2, [1, 5, 3, 4], 3)]) == 1
    assert [[len(row.ids) for row in batch] for batch in batches(rows, 2, 5)] == [[5, 4], [3]]


def test_no_question_is_no_pass() -> None:
    assert score_choices(make("llama"), [], []) == []
