"""What a training is said to take: what would make it fit does, and what surely does not fit is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import quietly
from tests.test_check import LLAMA_2_7B
from tests.tiny import make_base
from yayan.corpus.pack import Pack
from yayan.errors import UserError
from yayan.model.size import size_of, training_cost
from yayan.stage import execute
from yayan.train import forecast
from yayan.train.forecast import Speeds, cost_of, cure_for, measure_speeds
from yayan.train.pretrain import Pretrain

LLAMA_7B = LLAMA_2_7B | {"vocab_size": 55_296}
STAGE = Pretrain(
    out=Path("out"), model=Path("model"), shards=[], train="full", rows="all", sequence_length=2048
)


def with_words(stage: Pretrain, cure: str) -> Pretrain:
    """The stage as somebody types it who follows the cure."""
    words = cure.removeprefix("it fits with ").split()
    changes: dict[str, object] = {}
    for i, word in enumerate(words):
        if word.startswith("--"):
            value = words[i + 1] if i + 1 < len(words) and not words[i + 1].startswith("--") else "True"
            known = True if value == "True" else int(value) if value.isdigit() else value
            changes[word[2:].replace("-", "_")] = known
    return replace(stage, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("gigabytes", [150, 119, 60, 25, 22.5])
def test_what_is_said_to_fit_fits(gigabytes: float) -> None:
    there = gigabytes * 1e9
    assert cost_of(STAGE, LLAMA_7B, 32_000).memory_bytes > there
    cure = cure_for(STAGE, LLAMA_7B, 32_000, 1, there)
    changed = with_words(STAGE, cure)
    assert cost_of(changed, LLAMA_7B, 32_000).memory_bytes < there
    step = STAGE.batch_size * STAGE.accumulation
    assert changed.batch_size * changed.accumulation == step


def test_on_eight_ranks_the_batch_stays_divisible() -> None:
    stage = replace(STAGE, batch_size=32, dtype="bfloat16")
    cure = cure_for(stage, LLAMA_7B, 32_000, 8, 32e9)
    assert cure.startswith("it fits with --batch-size 8 --accumulation 4")
    assert cost_of(with_words(stage, cure), LLAMA_7B, 32_000, 8).memory_bytes < 32e9


def test_what_fits_nowhere_is_said() -> None:
    assert "no option makes it fit" in cure_for(STAGE, LLAMA_7B, 32_000, 1, 10e9)


def test_a_training_that_surely_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_base(tmp_path / "base")
    (tmp_path / "zh.jsonl").write_text(json.dumps({"text": "你好世界" * 9}))
    execute(
        Pack(out=tmp_path / "shards", tokenizer=tmp_path / "base", corpus=[tmp_path / "zh.jsonl"]), quietly
    )
    stage = Pretrain(
        out=tmp_path / "out",
        model=tmp_path / "base",
        shards=[tmp_path / "shards"],
        rows="all",
        sequence_length=64,
    )
    monkeypatch.setattr(forecast, "memory_bytes", lambda: 200_000_000)
    with pytest.raises(UserError, match=r"needs about 0\.\d GB of memory, there are 0\.2"):
        execute(stage, quietly)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_each_rank_holds_its_share() -> None:
    size = size_of(LLAMA_7B)
    costs = [
        training_cost(
            size,
            trained_body=size.body_parameters,
            trained_rows=size.rows,
            whole_body=True,
            dtype="bfloat16",
            positions=8 * 2048,
            sequence_length=2048,
            ranks=ranks,
        ).memory_bytes
        for ranks in (1, 2, 8)
    ]
    assert costs[0] > 1.6 * costs[1] > 1.6 * 2 * costs[2]


def test_seconds_are_the_sum_of_what_is_done() -> None:
    cost, endless = cost_of(STAGE, LLAMA_7B, 32_000), 1e99
    fast = Speeds(matmul=endless, softmax=endless, update=endless, copy=endless)
    products = cost.flops_per_token - cost.attention_flops_per_token
    each = {
        "matmul": products / forecast.PRODUCTS_SHARE
        + cost.attention_flops_per_token / forecast.ATTENTION_SHARE,
        "softmax": 55_296,
        "update": cost.trained_parameters / 100,
        "copy": forecast.PASSES * cost.activation_bytes_per_token,
    }
    for name, work in each.items():
        slow = replace(fast, **{name: 1e9})
        assert slow.seconds_per_token(cost, 100) == pytest.approx(work / 1e9)
    measured = measure_speeds("float32")
    assert measured.matmul > 1e8
    assert min(measured.softmax, measured.update, measured.copy) > 1e5
