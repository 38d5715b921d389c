"""Requests beyond the trained length: a cache gives what a full pass gives, whatever is read beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sentencepiece_model import TOKENS, make_chat_model
from yayan.engine.network import Branches, Network
from yayan.engine.sampling import Sampling
from yayan.engine.torch import TorchEngine
from yayan.errors import UserError
from yayan.model.folder import read_config
from yayan.model.load import load_model
from yayan.model.longer import choose_stretch, rope_applied

TRAINED = 48
LENGTHS = [43, 53, 77, 144, 384]  # 0.9, 1.1, 1.6, 3 and 8 times
IDS = torch.randint(4, TOKENS, (8 * TRAINED,), generator=torch.Generator().manual_seed(1)).tolist()
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 24}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 24}
FAMILIES: Mapping[str, dict[str, Any]] = {
    "llama": {"family": "llama"},
    "pi": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    "yarn": {"rope_parameters": YARN},
    "llama3": {"rope_parameters": {**LLAMA3, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
    "mistral with a window": {"family": "mistral", "sliding_window": 9},
    "qwen2": {"family": "qwen2"},
    "qwen3": {"family": "qwen3", "head_dim": 8},
}


def make(folder: Path, **settings: Any) -> Path:
    return make_chat_model(folder, **({"max_position_embeddings": TRAINED} | settings))


@torch.inference_mode()
def full_pass(folder: Path, ids: list[int]) -> torch.Tensor:
    """Logits [len(ids), V] by `transformers`, turned as a request of so many tokens is."""
    network = load_model(folder)
    with rope_applied(network, choose_stretch(read_config(folder), len(ids)).rope):
        return network(torch.tensor([ids]), use_cache=False).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_from_a_cache_equals_a_full_pass(family: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "model", **FAMILIES[family])
    network = Network(folder, "float32", stretching=True)
    for length in LENGTHS:
        ids = IDS[:length]
        branches = Branches(network, ids[:20], tokens=length)
        found = [branches.logits_V, *(branches.read([token])[0] for token in ids[20:])]
        wanted = full_pass(folder, ids)[19:]
        assert float(wanted.std()) > 0.5, "flat logits prove nothing"
        torch.testing.assert_close(torch.stack(found), wanted, rtol=1e-4, atol=1e-4)


def test_up_to_the_trained_length_nothing_changes(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    plain, stretching = (Network(folder, "float32", stretching=flag) for flag in (False, True))
    for tokens, same in ((TRAINED, True), (TRAINED + 1, False)):
        a_V, b_V = (
            Branches(network, IDS[:TRAINED], tokens=tokens).logits_V for network in (plain, stretching)
        )
        assert torch.equal(a_V, b_V) == same


def test_each_sequence_of_a_batch_is_turned_by_its_own_length(tmp_path: Path) -> None:
    """Rows end and move while others run."""
    folder = make(tmp_path / "model", rope_parameters=YARN)
    prompts = [IDS[start : start + length] for start, length in enumerate((5, 45, 90, 30, 200, 11, 300))]
    sampling = Sampling(temperature=0, max_tokens=12, guidance_scale=1.3, negative_prompt="河 a")
    with TorchEngine(folder, dtype="float32", context="auto") as engine:
        engine.ends = frozenset()
        alone = [[token for p in engine.generate(ids, sampling) for token in p.ids] for ids in prompts]
        for rows in (2, 7):
            together = dict(engine.generate_many(prompts, sampling, rows=rows))
            assert [together[number].ids for number in range(len(prompts))] == alone


def test_a_draft_is_turned_by_its_own_rules(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    draft = make(tmp_path / "draft", seed=1, num_hidden_layers=1, max_position_embeddings=2 * TRAINED)
    sampling = Sampling(temperature=0, max_tokens=30)
    answers = []
    for settings in ({}, {"draft": draft, "draft_length": 3}, {"draft": folder, "draft_length": 3}):
        with TorchEngine(folder, dtype="float32", context="auto", **settings) as engine:  # type: ignore[arg-type]
            engine.ends = frozenset()
            answers.append([token for piece in engine.generate(IDS[:100], sampling) for token in piece.ids])
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0]) == 30
    short = make(tmp_path / "short", seed=1, max_position_embeddings=TRAINED // 2)
    with pytest.raises(UserError, match="give 2 to 192 tokens"):
        TorchEngine(folder, context="auto", draft=short)


def test_the_last_step_is_the_limit(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    with TorchEngine(folder, dtype="float32", context="auto") as engine:
        engine.ends = frozenset()
        assert engine.context == 8 * TRAINED
        *_, last = engine.generate(IDS[:-3], Sampling(temperature=0, max_tokens=50))
        assert last.finish_reason == "length"
        with pytest.raises(UserError, match="384 tokens, which leaves none for an answer"):
            engine.generate(IDS)
