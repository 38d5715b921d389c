"""The loop: batches in, trained parameters out; stops anywhere and goes on as if it had not.

Everything that decides a step is in the checkpoint or a function of the step: parameters, the optimisers' moments, the
place in the data, what the held-out texts measured so far, and the random numbers of dropout, which are seeded anew by
(seed, step). So a run that was killed and resumed computes the same bits as one that was not (same machine, threads and
library versions, which the state records).
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from yayan.corpus.batches import IGNORED, Batch, Mixture
from yayan.errors import WorkError
from yayan.model.ends import TwoEnds
from yayan.model.sharding import resharded
from yayan.progress import Progress
from yayan.ranks import leads, rank, ranks, summed
from yayan.train.boards import Board
from yayan.train.checkpoint import (
    latest_checkpoint,
    load_best,
    load_checkpoint,
    save_best,
    save_checkpoint,
)
from yayan.train.metrics import Metrics, summary
from yayan.train.optim import Group, Rates, clip_gradients, make_optimizers, set_rates
from yayan.train.stopping import Stopping
from yayan.train.watch import Watch

Evaluate = Callable[[TwoEnds], dict[str, float]]
WORKERS = 1  # threads that fill batches ahead: what one saves is the wait for a slow disk
DOCUMENTS_NAMED = 3  # where a step explodes
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long, how often, from which seed, and what the held-out texts decide."""

    rates: Rates
    positions_per_step: int
    accumulation: int
    seed: int
    autocast: bool  # the matrix products of a float32 model in bfloat16
    evaluate_every: int
    save_seconds: float
    keep: int = 1  # checkpoints
    best: bool = False  # hand out the parameters that measured best
    patience: int | None = None
    bounds: Mapping[str, float] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return self.rates.steps


@dataclass
class Run:
    """Where a training stands."""

    step: int = 0
    tokens: int = 0
    targets: int = 0
    seconds: float = 0.0
    data: dict | None = None
    watch: Watch = field(default_factory=Watch)


class Trainer:
    """One training: what moves, how far it is, and where it is written."""

    def __init__(
        self,
        ends: TwoEnds,
        groups: Mapping[str, Group],
        mixture: Mixture,
        plan: Plan,
        work: Path,
        boards: Sequence[Board] = (),
    ) -> None:
        self.ends, self.mixture, self.plan, self.work = ends, mixture, plan, work
        self.parameters = {
            name: value for group in groups.values() for name, value in group.parameters.items()
        }
        self.device = ends.embedding.device
        self.optimizers = make_optimizers(groups)
        self.run = self._resume()
        self.metrics = Metrics(work, self.run.step, boards)

    def _resume(self) -> Run:
        """The state of the newest checkpoint, or a beginning."""
        checkpoint = latest_checkpoint(self.work / CHECKPOINTS)
        if checkpoint is None:
            return Run(watch=Watch(self.plan.patience, dict(self.plan.bounds)))
        state = load_checkpoint(checkpoint, self.parameters, self.optimizers)
        for name, value in versions().items():
            if (before := state.pop(name)) != value:
                what = f"the checkpoint was made with {name} {before}, this run has {value}"
                print(f"  {what}: it goes on, not bit for bit", file=sys.stderr)
        return Run(**{**state, "watch": Watch(**state["watch"])})

    def save(self) -> None:
        state = asdict(self.run) | versions()
        save_checkpoint(self.work / CHECKPOINTS, self.parameters, self.optimizers, state, self.plan.keep)

    def step(self, stream: Iterator[tuple[Batch, dict]]) -> dict:
        """One step over `plan.accumulation` batches; the loss is normalised over the targets of all ranks' batches."""
        plan, run = self.plan, self.run
        batches = [next(stream) for _ in range(plan.accumulation)]
        (targets,) = map(int, summed(sum(int((batch.targets != IGNORED).sum()) for batch, _ in batches)))
        torch.manual_seed((plan.seed * 1_000_003 + run.step) * ranks() + rank())
        self.ends.train()
        mean = 0.0
        for batch, _ in batches:
            arrays = (torch.from_numpy(array) for array in vars(batch).values())
            ids, following, positions = (array.to(self.device).long() for array in arrays)
            with self.autocast():
                # FSDP takes the mean of the ranks' gradients, and they share out the targets
                loss = self.ends.loss(ids, following, positions, ranks() / max(targets, 1))
            if loss.requires_grad:
                loss.backward()
            mean += loss.item() / ranks()
        (mean,) = summed(mean)
        norm = clip_gradients(list(self.parameters.values()))
        if not (math.isfinite(mean) and math.isfinite(norm)):
            self._refuse(mean, norm)
        set_rates(self.optimizers, plan.rates.factor(run.step))
        for optimizer in self.optimizers:
            optimizer.step()
        self.ends.drop_gradients()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        run.step += 1
        run.tokens += plan.positions_per_step
        run.targets += targets
        run.data = batches[-1][1]
        return {
            "step": run.step,
            "tokens": run.tokens,
            "loss": mean,
            "targets": targets,
            "gradient_norm": norm,
        }

    def _refuse(self, loss: float, norm: float) -> None:
        """WorkError with the documents of the step, all of which are written to exploded.json."""
        named, state = [], self.run.data
        for _ in range(self.plan.accumulation):
            found, state = self.mixture.documents(state)
            named += found
        if leads():
            text = json.dumps(named, ensure_ascii=False, indent=1)
            (self.work / "exploded.json").write_text(text, "utf-8")
        some = ", ".join(named[:DOCUMENTS_NAMED]) + ("" if len(named) <= DOCUMENTS_NAMED else ", ...")
        what = f"step {self.run.step + 1} has a loss of {loss} and a gradient norm of {norm}, on {some}"
        cure = "lower the learning rate, or look at the documents in exploded.json"
        raise WorkError(what, where=self.work, cure=cure)

    def measure(self, evaluate: Evaluate | None) -> dict[str, float]:
        """Bits per byte of the held-out texts, nothing where there are none; the best parameters are kept."""
        if evaluate is None:
            return {}
        self.ends.eval()
        with torch.no_grad(), self.autocast(), resharded(self.ends):
            found = evaluate(self.ends)
        if self.run.watch.take(self.run.step, found) and self.plan.best:
            save_best(self.work / CHECKPOINTS, self.parameters)
        return found

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.plan.autocast else nullcontext()


def train(
    ends: TwoEnds,
    groups: Mapping[str, Group],
    mixture: Mixture,
    plan: Plan,
    work: Path,
    evaluate: Evaluate | None = None,
    boards: Sequence[Board] = (),
) -> dict[str, object]:
    """Train the groups' parameters for `plan.steps` optimiser steps, resuming from `work/checkpoints` if there.

    Writes `work/metrics.jsonl` (a line a step: loss in nats per target, tokens, seconds, rates; bits per byte of
    held-out text where it was measured) and their picture. Returns what a record says of the run. Raises WorkError at
    a step whose loss or gradient is not finite; the checkpoint before it stays. Ctrl-C and SIGTERM end it behind a
    step, with a checkpoint.
    """
    trainer = Trainer(ends, groups, mixture, plan, work, boards)
    run, metrics = trainer.run, trainer.metrics
    if run.step == 0 and (first := trainer.measure(evaluate)):
        metrics.write({"step": 0, "tokens": 0, "seconds": 0.0, "bits_per_byte": first})
    saved = time.monotonic()
    with (
        closing(mixture.batches(run.data, rank=rank(), ranks=ranks(), workers=WORKERS)) as stream,
        Progress("train", total=plan.steps * plan.positions_per_step, unit="tok") as bar,
        Stopping() as stopping,
    ):
        bar.resume(run.tokens)
        while run.step < plan.steps and not run.watch.ends:
            started = time.monotonic()
            line = trainer.step(stream)
            run.seconds += time.monotonic() - started
            line["seconds"] = round(run.seconds, 3)
            if (run.step % plan.evaluate_every == 0 or run.step == plan.steps) and evaluate:
                line["bits_per_byte"] = trainer.measure(evaluate)
            metrics.write(line)
            over = run.step == plan.steps or run.watch.ends
            asked, due = summed(stopping.asked, leads() and time.monotonic() - saved > plan.save_seconds)
            if over or asked or due:
                trainer.save()
                saved = time.monotonic()
            if asked and not over:
                stopping.leave()
            bar.note(f"loss {line['loss']:.3f}")
            bar.advance(plan.positions_per_step)
    if plan.best and evaluate:
        load_best(work / CHECKPOINTS, trainer.parameters)
    metrics.draw()
    found = summary(metrics.lines(), run.seconds, run.watch.best_step if plan.best else None)
    return found | ({"alarms": run.watch.alarms} if plan.bounds else {})


def versions() -> dict[str, object]:
    """What bit-for-bit resuming depends on besides the state."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "ranks": ranks()}
