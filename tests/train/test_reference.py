"""The float32 loss curve against the usual stack: `transformers`, `peft`, full logits, torch's own AdamW.

The same trained set: LoRA pairs, and token rows of both ends by PEFT's trainable_token_indices. The same batches, no
dropout.
"""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from tests.tiny import make_base, make_shards
from yayan.corpus.batches import IGNORED, Mixture
from yayan.model.adapters import add_lora, lora_config
from yayan.model.ends import TwoEnds
from yayan.model.load import load_model
from yayan.model.size import PROJECTIONS
from yayan.train.loop import Plan, train
from yayan.train.metrics import Metrics
from yayan.train.optim import BETAS, MAX_GRADIENT_NORM, Group, Rates

RANK, ALPHA = 4, 8
BODY_RATE, ROWS_RATE = 1e-3, 5e-3


def curve_of_ours(base: Path, mixture: Mixture, first: int, steps: int, work: Path) -> list[float]:
    ends = TwoEnds(load_model(base), first)
    pairs = add_lora(ends, lora_config(RANK, ALPHA, 0.0), seed=1)
    groups = {"body": Group(pairs, BODY_RATE), "rows": Group(dict(ends.trained_rows()), ROWS_RATE)}
    plan = Plan(
        rates=Rates(steps, steps // 10),
        positions_per_step=1,
        accumulation=2,
        seed=1,
        autocast=False,
        evaluate_every=steps + 1,
        save_seconds=3600.0,
    )
    train(ends, groups, mixture, plan, work)
    return [line["loss"] for line in Metrics(work, steps).lines()]


def curve_of_theirs(base: Path, mixture: Mixture, first: int, size: int, steps: int) -> list[float]:
    """Written out, with PEFT's model and its own initial pairs replaced by ours."""
    rows = list(range(first, size))
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": list(PROJECTIONS), "task_type": "CAUSAL_LM"}
    indices = {"embed_tokens": rows, "lm_head": rows}
    model = get_peft_model(load_model(base), LoraConfig(**settings, trainable_token_indices=indices))
    ours = add_lora(TwoEnds(load_model(base), size), lora_config(RANK, ALPHA, 0.0), seed=1)
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    with torch.no_grad():
        for name, value in ours.items():
            named[f"base_model.model.{name}"].copy_(value)
    body = [value for name, value in named.items() if "lora_" in name]
    ends = [value for name, value in named.items() if "lora_" not in name]
    assert sum(value.numel() for value in ends) == 2 * len(rows) * 24
    optimizer = torch.optim.AdamW(
        [{"params": body, "peak": BODY_RATE}, {"params": ends, "peak": ROWS_RATE}],
        betas=BETAS,
        weight_decay=0.0,
    )
    rates, losses = Rates(steps, steps // 10), []
    stream = mixture.batches()
    for step in range(steps):
        batches = [batch for batch, _ in islice(stream, 2)]
        targets = sum(int((batch.targets != IGNORED).sum()) for batch in batches)
        losses.append(0.0)
        for batch in batches:
            ids, following, positions = (torch.from_numpy(part).long() for part in vars(batch).values())
            logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum") / targets
            loss.backward()
            losses[-1] += loss.item()
        torch.nn.utils.clip_grad_norm_(body + ends, MAX_GRADIENT_NORM)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rates.factor(step)
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize(
    ("steps", "within", "learned"),
    [(20, 1e-5, 0.98), pytest.param(300, 1e-3, 0.8, marks=pytest.mark.slow)],
)
def test_losses_equal_the_usual_stacks(tmp_path: Path, steps: int, within: float, learned: float) -> None:
    torch.set_num_threads(1)
    size = make_base(tmp_path / "base")
    first = size - 60
    shards = make_shards([5, 40, 9, 17, 23, 3, 70, 12, 31, 8] * 4)
    few = np.random.default_rng(0).integers(first - 8, first + 8, len(shards.ids))  # old and new rows
    shards.ids[:] = few
    mixture = Mixture([shards], [1], sequence_length=32, batch_size=2, seed=0, pad_id=0)
    (tmp_path / "work").mkdir()
    ours = curve_of_ours(tmp_path / "base", mixture, first, steps, tmp_path / "work")
    theirs = curve_of_theirs(tmp_path / "base", mixture, first, size, steps)
    assert ours == pytest.approx(theirs, abs=within)
    assert theirs[-1] < learned * theirs[0], "it learns, so the curves could part"
