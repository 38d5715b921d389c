"""The loop: batches in, trained parameters out; stops anywhere and goes on as if it had not.

Everything that decides a step is in the checkpoint or a function of the step: parameters, AdamW's moments, the place in
the data, and the random numbers of dropout, which are seeded anew by (seed, step). So a run that was killed and resumed
computes the same bits as one that was not (same machine, threads and library versions, which the state records).
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from yayan.corpus.batches import IGNORED, Batch, Mixture
from yayan.errors import WorkError
from yayan.model.ends import TwoEnds
from yayan.progress import Progress
from yayan.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from yayan.train.optim import Group, clip_gradients, make_optimizer, rate_factor, set_rates

Evaluate = Callable[[TwoEnds], dict[str, float]]
WORKERS = 1  # threads that fill batches ahead: what one saves is the wait for a slow disk


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long, how often, from which seed."""

    steps: int
    positions_per_step: int
    accumulation: int
    warmup_share: float
    seed: int
    dtype: torch.dtype
    evaluate_every: int
    save_seconds: float


@dataclass
class Run:
    """Where a training stands."""

    step: int = 0
    tokens: int = 0
    targets: int = 0
    seconds: float = 0.0
    data: dict | None = None


def train(
    ends: TwoEnds,
    groups: Mapping[str, Group],
    mixture: Mixture,
    plan: Plan,
    work: Path,
    evaluate: Evaluate | None = None,
) -> dict[str, object]:
    """Train the groups' parameters for `plan.steps` optimiser steps, resuming from `work/checkpoints` if there.

    Writes `work/metrics.jsonl` (a line a step: loss in nats per target, tokens, seconds, rates; bits per byte of
    held-out text where it was measured). Returns what a record says of the run. Raises WorkError at a step whose loss
    or gradient is not finite; the checkpoint before it stays.
    """
    parameters = {name: value for group in groups.values() for name, value in group.parameters.items()}
    optimizer = make_optimizer(groups)
    run = resume(work, parameters, optimizer)
    first_evaluation = measure(ends, evaluate, plan) if run.step == 0 else {}
    if first_evaluation:
        write_line(work, {"step": 0, "tokens": 0, "seconds": 0.0, "bits_per_byte": first_evaluation})
    saved = time.monotonic()
    with (
        closing(mixture.batches(run.data, workers=WORKERS)) as stream,
        Progress("train", total=plan.steps * plan.positions_per_step, unit="tok") as bar,
    ):
        bar.resume(run.tokens)
        while run.step < plan.steps:
            started = time.monotonic()
            line = optimizer_step(ends, list(parameters.values()), optimizer, stream, run, plan)
            run.seconds += time.monotonic() - started
            line |= {"step": run.step, "tokens": run.tokens, "seconds": round(run.seconds, 3)}
            if run.step % plan.evaluate_every == 0 or run.step == plan.steps:
                line |= {"bits_per_byte": found} if (found := measure(ends, evaluate, plan)) else {}
            write_line(work, line)
            if time.monotonic() - saved > plan.save_seconds or run.step == plan.steps:
                save_checkpoint(work / "checkpoints", parameters, optimizer, vars(run) | versions())
                saved = time.monotonic()
            bar.note(f"loss {line['loss']:.3f}")
            bar.advance(plan.positions_per_step)
    return summary(work, run)


def optimizer_step(
    ends: TwoEnds,
    parameters: list[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    stream: Iterator[tuple[Batch, dict]],
    run: Run,
    plan: Plan,
) -> dict:
    """One step over `plan.accumulation` batches; the loss is normalised over the targets of all of them."""
    batches = [next(stream) for _ in range(plan.accumulation)]
    targets = sum(int((batch.targets != IGNORED).sum()) for batch, _ in batches)
    torch.manual_seed(plan.seed * 1_000_003 + run.step)
    ends.train()
    nats = 0.0
    for batch, _ in batches:
        with autocast(plan.dtype):
            loss = ends.loss(*(torch.from_numpy(array).long() for array in vars(batch).values()))
        if loss.requires_grad:
            (loss / max(targets, 1)).backward()
        nats += loss.item()
    norm = clip_gradients(parameters)
    if not (math.isfinite(nats) and math.isfinite(norm)):
        cure = "run again with a lower learning rate"
        raise WorkError(f"step {run.step + 1} has a loss of {nats} and a gradient norm of {norm}", cure=cure)
    set_rates(optimizer, rate_factor(run.step, plan.steps, round(plan.steps * plan.warmup_share)))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    run.step += 1
    run.tokens += sum(batch.ids.size for batch, _ in batches)
    run.targets += targets
    run.data = batches[-1][1]
    return {"loss": nats / max(targets, 1), "targets": targets, "gradient_norm": norm}


def autocast(dtype: torch.dtype) -> AbstractContextManager[object]:
    return nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype=dtype)


def measure(ends: TwoEnds, evaluate: Evaluate | None, plan: Plan) -> dict[str, float]:
    """Bits per byte of the held-out texts, nothing where there are none."""
    if evaluate is None:
        return {}
    ends.eval()
    with torch.no_grad(), autocast(plan.dtype):
        return evaluate(ends)


def resume(work: Path, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> Run:
    """The state of the newest checkpoint, or a beginning; lines of metrics beyond it are taken back."""
    checkpoint = latest_checkpoint(work / "checkpoints")
    metrics = work / "metrics.jsonl"
    if checkpoint is None:
        metrics.unlink(missing_ok=True)
        return Run()
    state = load_checkpoint(checkpoint, parameters, optimizer)
    for name, value in versions().items():
        if state.pop(name) != value:
            print(f"  the checkpoint was made with another {name}: the run goes on, not bit for bit")
    run = Run(**state)
    lines = [line for line in metrics.read_text().splitlines() if json.loads(line)["step"] <= run.step]
    metrics.write_text("".join(line + "\n" for line in lines))
    return run


def versions() -> dict[str, object]:
    """What bit-for-bit resuming depends on besides the state."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads()}


def write_line(work: Path, line: dict) -> None:
    with (work / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def summary(work: Path, run: Run) -> dict[str, object]:
    """What the record tells: how much was trained, how fast, from which loss to which, held-out before and after."""
    lines = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    tenth = max(len(losses) // 10, 1)
    held_out = [line["bits_per_byte"] for line in lines if "bits_per_byte" in line]
    found: dict[str, object] = {
        "steps": run.step,
        "tokens": run.tokens,
        "targets": run.targets,
        "train_seconds": round(run.seconds, 1),
        "tokens_per_second": round(run.tokens / max(run.seconds, 1e-9)),
        "loss_first": round(sum(losses[:tenth]) / tenth, 4),
        "loss_last": round(sum(losses[-tenth:]) / tenth, 4),
    }
    if held_out:
        found |= {"bits_per_byte_before": held_out[0], "bits_per_byte_after": held_out[-1]}
    return found
