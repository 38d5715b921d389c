"""The pass through the layers is that of `transformers`; a token's logits do not depend on how many came with it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.conftest import WIDE
from tests.sentencepiece_model import TOKENS, make_chat_model
from yayan.engine.cache import ONE_BY_ONE
from yayan.engine.distribution import guide
from yayan.engine.network import Branches, Network, choose_dtype
from yayan.errors import UserError
from yayan.model.load import load_model

IDS = torch.randint(4, TOKENS, (60,), generator=torch.Generator().manual_seed(1)).tolist()
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama"},
    "llama tied": {"family": "llama", "tie_word_embeddings": True},
    "llama biased": {"family": "llama", "attention_bias": True},
    "llama 3 rope": {
        "family": "llama",
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "yarn": {
        "family": "llama",
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    },
    "mistral": {"family": "mistral", "sliding_window": None},
    "mistral with a window": {"family": "mistral", "sliding_window": 9},
    "qwen2": {"family": "qwen2"},
    "qwen2 with a window": {
        "family": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 9,
        "max_window_layers": 1,
    },
    "qwen3": {"family": "qwen3", "head_dim": 8},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    folder = make_chat_model(tmp_path / "model", **FAMILIES[family])
    with torch.inference_mode():
        wanted = load_model(folder)(torch.tensor([IDS])).logits[0]
    branches = Branches(Network(folder, "float32"), IDS[:23])
    parts = [branches.logits_V[None], *(branches.read(IDS[i : i + 3]) for i in range(23, 50, 3))]
    parts += [branches.read([token]) for token in IDS[50:]]
    torch.testing.assert_close(torch.cat(parts), wanted[22:], rtol=1e-4, atol=2e-4)


def network(tmp_path: Path, dtype: str, **config: Any) -> Network:
    return Network(make_chat_model(tmp_path / "wide", **WIDE, **config), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_tokens_read_together_give_the_bits_of_tokens_read_alone(
    dtype: str, scale: float, tmp_path: Path
) -> None:
    model = network(tmp_path, dtype)
    alone, together = (Branches(model, IDS[:10], IDS[20:25], scale) for _ in range(2))
    wanted = torch.cat([alone.read([token]) for token in IDS[10:]])
    sizes = [1, 2, 9, 3, 20, 5]
    cuts = [sum(sizes[:i]) for i in range(len(sizes))]
    found = torch.cat([together.read(IDS[10 + at : 10 + at + n]) for at, n in zip(cuts, sizes, strict=True)])
    assert torch.equal(found, wanted[: sum(sizes)])


def test_what_is_taken_back_leaves_no_trace(tmp_path: Path) -> None:
    model = network(tmp_path, "bfloat16")
    straight, wandering = Branches(model, IDS[:10]), Branches(model, IDS[:10])
    wandering.read(IDS[30:35])
    wandering.take_back(5)
    assert torch.equal(wandering.read(IDS[10:14]), straight.read(IDS[10:14]))
    assert wandering.ids == IDS[:14]


def test_guidance_is_two_models_in_one_pass(tmp_path: Path) -> None:
    model = network(tmp_path, "float32")
    both = Branches(model, IDS[:10], IDS[40:43], 1.7)
    asked, negative = Branches(model, IDS[:10]), Branches(model, IDS[40:43])
    torch.testing.assert_close(
        both.logits_V, guide(asked.logits_V, negative.logits_V, 1.7), rtol=1e-4, atol=1e-4
    )
    wanted = guide(asked.read(IDS[10:14]), negative.read(IDS[10:14]), 1.7)
    torch.testing.assert_close(both.read(IDS[10:14]), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [None, 7])
def test_many_sequences_in_one_masked_call(window: int | None, tmp_path: Path) -> None:
    model = network(tmp_path, "float32", family="mistral", sliding_window=window)
    count = ONE_BY_ONE + 3
    starts = [IDS[i : i + 2 + i % 5] for i in range(count)]
    cache = model.cache(count)
    model.read(cache, range(count), starts, every=False)
    for step in range(12):
        logits_NV = model.read(cache, range(count), [[IDS[step]]] * count, every=False)
    for i in (0, 4, count - 1):
        alone = Branches(model, starts[i])
        torch.testing.assert_close(logits_NV[i], alone.read(IDS[:12])[-1], rtol=1e-4, atol=1e-4)


def test_a_sequence_moves_to_another_slot(tmp_path: Path) -> None:
    model = network(tmp_path, "float32")
    cache = model.cache(3)
    model.read(cache, [0, 2], [IDS[:30], IDS[30:37]], every=False)
    cache.move(2, 0)
    found = model.read(cache, [0], [IDS[:3]], every=True)
    assert torch.equal(found, Branches(model, IDS[30:37]).read(IDS[:3]))


def test_the_cache_grows(tmp_path: Path) -> None:
    model = network(tmp_path, "float32")
    cache = model.cache(1)
    model.read(cache, [0], [IDS * 4], every=False)
    before = cache.keys[0].shape[2]
    found = model.read(cache, [0], [IDS], every=True)
    assert cache.keys[0].shape[2] > before
    torch.testing.assert_close(found, Branches(model, IDS * 4).read(IDS), rtol=1e-4, atol=1e-4)


def test_dtypes() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("auto", "float16", cpu) == torch.float32
    assert choose_dtype("auto", "None", cpu) == torch.float32
    assert choose_dtype("bfloat16", "float32", cpu) == torch.bfloat16
    with pytest.raises(UserError, match="no dtype int3"):
        choose_dtype("int3", "float32", cpu)
