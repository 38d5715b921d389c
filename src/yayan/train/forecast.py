"""What a training will take on this machine: memory, seconds, and which options make it fit."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from yayan.errors import UserError
from yayan.machine import DTYPES, device, matmul_rate, memory_bytes
from yayan.model.ends import EMBEDDING, HEAD
from yayan.model.loss import linear_cross_entropy
from yayan.model.size import TrainingCost, size_of, training_cost
from yayan.ranks import ranks

if TYPE_CHECKING:
    from yayan.train.training import Training

MEASURED_SECONDS = 0.25  # for the rate of the machine that a record tells
WINDOWS, WINDOW_SECONDS = 4, 0.1  # of each rate, of which the best counts: other work comes and goes
# Shares of the rate in square products that the layers' products and attention reach, and passes over what is kept for
# the backward pass: fitted to the shapes of benchmarks/train.py, all within 7 % (docs/training.md)
PRODUCTS_SHARE, ATTENTION_SHARE, PASSES = 0.8, 0.25, 6
SURE = 1.15  # a forecast that much above the machine's memory is no error of the forecast: docs/training.md


@dataclass(frozen=True)
class Speeds:
    """What this machine does in a second."""

    matmul: float  # operations in square products
    softmax: float  # logits that are formed into loss and gradients
    update: float  # parameters that AdamW steps
    copy: float  # bytes that are read, changed and written

    def seconds_per_token(self, cost: TrainingCost, positions_per_step: int) -> float:
        """Products, attention, softmax over the vocabulary, what lies between, and the optimiser's pass."""
        products = cost.flops_per_token - cost.attention_flops_per_token
        return (
            products / (PRODUCTS_SHARE * self.matmul)
            + cost.attention_flops_per_token / (ATTENTION_SHARE * self.matmul)
            + cost.logits_per_token / self.softmax
            + PASSES * cost.activation_bytes_per_token / self.copy
            + cost.trained_parameters / self.update / positions_per_step
        )


def measure_speeds(dtype: str) -> Speeds:
    """Measured now, in two seconds."""

    def best(rate: Callable[[], float]) -> float:
        return max(rate() for _ in range(WINDOWS))

    return Speeds(
        matmul=best(lambda: matmul_rate(DTYPES[dtype], WINDOW_SECONDS)),
        softmax=best(lambda: softmax_rate(dtype)),
        update=best(update_rate),
        copy=best(lambda: copy_rate(dtype)),
    )


def copy_rate(dtype: str) -> float:
    """Bytes a second, read and written, of a pass over more than the caches hold."""
    source = torch.ones(1 << 24, device=device()).to(DTYPES[dtype])
    target = torch.empty_like(source)

    def work() -> None:
        torch.mul(source, 1.5, out=target)
        target[0].item()

    return 2 * source.nbytes * repeats_a_second(work)


def softmax_rate(dtype: str) -> float:
    """Logits a second of the loss where its products cost nothing."""
    positions, rows, width = 256, 32_768, 8
    h_ND = torch.randn(positions, width, device=device()).to(DTYPES[dtype])
    head_VD = torch.randn(rows, width, device=device()).to(DTYPES[dtype])
    targets_N = torch.arange(positions, device=device())
    return (
        positions * rows * repeats_a_second(lambda: linear_cross_entropy(h_ND, [head_VD], targets_N).item())
    )


def update_rate() -> float:
    """Parameters a second."""
    value = torch.nn.Parameter(torch.zeros(1 << 23, device=device()))
    value.grad = torch.ones_like(value)
    optimizer = torch.optim.AdamW([value], fused=True)

    def step() -> None:
        optimizer.step()
        value[0].item()

    return value.numel() * repeats_a_second(step)


def repeats_a_second(work: Callable[[], object]) -> float:
    work()
    started, count = time.monotonic(), 0
    while time.monotonic() - started < WINDOW_SECONDS:
        work()
        count += 1
    return count / (time.monotonic() - started)


def cost_of(options: "Training", config: Mapping, old_rows: int | None, count: int = 1) -> TrainingCost:
    """What a step takes, from the model's configuration; memory is that of each of `count` ranks."""
    size, whole = size_of(config), options.train == "full"
    first = options.first_rows(config, old_rows)
    trained_body = {
        "full": size.body_parameters + size.small,
        "lora": size.lora_parameters(options.rank, options.targets),
        "ends": 0,
    }[options.train]
    return training_cost(
        size,
        trained_body=trained_body,
        trained_rows=sum(size.rows - row for row in first) // len(first),
        updates=sum(
            options.rank * (row + size.width)
            for name, row in zip((EMBEDDING, HEAD), first, strict=True)
            if name in options.low_rank_ends()
        )
        // len(first),
        whole_body=whole,
        dtype=options.dtype,
        positions=options.batch_size * options.sequence_length,
        sequence_length=options.sequence_length,
        checkpointing=options.checkpointing,
        ranks=count,
        quantization=options.quantize_body,
        device_type=device().type,
        accumulation=options.accumulation,
    )


def refuse_too_large(options: "Training", config: Mapping, old_rows: int | None) -> None:
    """UserError if this machine has surely too little memory, with the options that would make it fit."""
    needed, there = cost_of(options, config, old_rows, ranks()).memory_bytes, memory_bytes()
    if needed > SURE * there:
        what = f"this training needs about {needed / 1e9:.1f} GB of memory, there are {there / 1e9:.1f}"
        raise UserError(what, where=options.out, cure=cure_for(options, config, old_rows, ranks(), there))


def cure_for(options: "Training", config: Mapping, old_rows: int | None, count: int, there: float) -> str:
    """Which options make it fit into so many bytes, the cheapest first, as many as it takes."""
    taken: list[str] = []
    needed = cost_of(options, config, old_rows, count).memory_bytes
    for changes in smaller(options, old_rows, count):
        changed = replace(options, **changes)
        then = cost_of(changed, config, old_rows, count).memory_bytes
        if then < needed:
            options, needed = changed, then
            taken += [f"--{name.replace('_', '-')} {words(value)}".strip() for name, value in changes.items()]
        if needed < there:
            return f"it fits with {' '.join(taken)}"
    return "no option makes it fit: train a smaller model, or on several GPUs (docs/distributed.md)"


def smaller(options: "Training", old_rows: int | None, count: int) -> Iterator[dict[str, Any]]:
    """Changes that save memory: first those that change no result."""
    if options.batch_size > count:
        yield {"batch_size": count, "accumulation": options.accumulation * options.batch_size // count}
    yield {"checkpointing": True}
    if options.train == "full":
        yield {"train": "lora"} | ({"optimizer": "adamw"} if options.optimizer != "adamw" else {})
    yield {"dtype": "bfloat16"}  # of what is frozen, so that it saves next to nothing before
    if options.train == "lora":
        yield {"rows": "low-rank"} | ({"head_rows": "low-rank"} if options.head_rows else {})
    if old_rows is not None:
        yield {"rows": "new"} | ({"head_rows": "new"} if options.head_rows else {})
    if count == 1:
        yield {"quantize_body": "nf4"}


def words(value: object) -> str:
    return "" if value is True else str(value)
