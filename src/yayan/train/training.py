"""What `pretrain` and `sft` have in common: their options, their checks, and the run from shards to an adapter."""

import math
import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch

from yayan import ranks
from yayan.corpus.batches import Mixture, Shards
from yayan.machine import DTYPES, device, matmul_rate
from yayan.model.adapters import LoraConfig, add_lora, lora_config, save_adapter, start_lora
from yayan.model.attention import Attention, use_attention
from yayan.model.ends import EMBEDDING, HEAD, Rows, TwoEnds, first_trained_row
from yayan.model.folder import (
    GENERATION_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILES,
    copy_files,
    inherited,
    old_rows,
)
from yayan.model.load import Quantization, load_model, read_config
from yayan.model.sharding import empty_model, shard, whole
from yayan.model.size import PROJECTIONS, Projection
from yayan.ranks import leads
from yayan.stage import InputPath, Stage
from yayan.tokenizer import load_tokenizer
from yayan.train.boards import open_boards
from yayan.train.checks import check_options
from yayan.train.forecast import MEASURED_SECONDS, cost_of, refuse_too_large
from yayan.train.heldout import make_evaluation
from yayan.train.loop import CHECKPOINTS, Plan, train
from yayan.train.optim import Group, Rates, Schedule
from yayan.weights.stream import TensorWriter, open_tensors


@dataclass(frozen=True, kw_only=True)
class Training(Stage):
    """Options of a training; the verbs `pretrain` and `sft` are two of it."""

    together: ClassVar[bool] = True

    model: InputPath
    """Model folder to start from."""
    shards: list[InputPath]
    """Shards folders (of `pack`) to train on."""
    share: list[float] = field(default_factory=list)
    """Share of the tokens that each shards folder gives, in their order; by default as many as each has."""
    train: Literal["lora", "ends", "full"] = "lora"
    """What is trained: LoRA on the body and rows of the two ends, such rows alone, or the whole model."""
    rows: Rows = "all"
    """Rows of the input and output ends that are trained: all; those that `grow` added whole and the old ones by a
    low-rank update, of --rank and at --learning-rate; those that `grow` added alone; or none."""
    head_rows: Rows | None = None
    """Rows of the output end, where they are others than those of the input end."""
    rank: int = 64
    """Rank of the LoRA pairs."""
    alpha: int = 128
    """Scale of the LoRA pairs, divided by the rank."""
    dropout: float = 0.0
    """Dropout before the LoRA pairs."""
    targets: list[Projection] = field(default_factory=lambda: list(PROJECTIONS))
    """Projections of each layer that get a LoRA pair."""
    rslora: bool = False
    """Divide the scale of the LoRA pairs by the root of the rank instead (rank-stabilised LoRA)."""
    dora: bool = False
    """Train the length of each weight's rows apart from their direction (DoRA): slower."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """What steps the body's matrices in full training; all else is always stepped by AdamW."""
    learning_rate: float = 2e-4
    """Peak learning rate of the body (LoRA or whole)."""
    rows_learning_rate: float = 2e-3
    """Peak learning rate of the rows of the ends."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the body's matrices."""
    warmup: float = 0.05
    """Share of the steps in which the rates rise to their peak."""
    schedule: Schedule = "cosine"
    """How they fall to a tenth: as a cosine from then on, or along a line in the last part of the steps (wsd)."""
    decay: float = 0.2
    """Share of the steps in which the rates fall, with --schedule wsd."""
    epochs: float = 1.0
    """Passes over the first shards folder."""
    steps: int | None = None
    """Optimiser steps, instead of epochs."""
    sequence_length: int = 512
    """Positions of a training sequence."""
    batch_size: int = 8
    """Sequences computed at once, by all processes of `torchrun` together."""
    accumulation: int = 1
    """Batches in one optimiser step."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the matrix products; what is trained is always kept in float32."""
    quantize_body: Quantization | None = None
    """Hold the frozen matrices of the body in 4 bits (nf4) or 8 (int8), by bitsandbytes: less memory, slower."""
    attention: Attention = "auto"
    """Attention inside documents: one call for each, one kernel for all (varlen, GPU), or transformers' dense mask."""
    checkpointing: bool = False
    """Keep only each layer's input for the backward pass and compute the rest again: less memory, a third more time."""
    heldout: dict[str, InputPath] = field(default_factory=dict)
    """Held-out texts by name to measure in bits per byte: --heldout.zh FILE."""
    heldout_bytes: int = 200_000
    """Bytes of each held-out text that are measured during training."""
    evaluate_every: int = 100
    """Optimiser steps between two measurements of the held-out texts."""
    best: bool = False
    """Hand out the parameters that were best on the first held-out text, not the last ones."""
    patience: int | None = None
    """End after so many measurements without a better first held-out text (none: never)."""
    bound: dict[str, float] = field(default_factory=dict)
    """Alarm when a held-out text gets worse by more than this share of its start: --bound.en 0.1."""
    save_minutes: float = 5.0
    """Minutes between two checkpoints (a run that was interrupted goes on from the newest)."""
    keep: int = 1
    """Newest checkpoints that are kept while it runs."""
    tensorboard: bool = False
    """Write the figures for TensorBoard as well, to OUT/tensorboard."""
    wandb: str | None = None
    """Send the figures to this project of wandb as well."""
    seed: int = 1
    """Seed of the data's order, of LoRA's start and of dropout."""
    threads: int | None = None
    """Threads of the computation; all cores by default."""

    def check(self) -> None:
        check_options(self)
        tokenizer = load_tokenizer(self.model)
        for folder in self.shards:
            Shards.open(folder, tokenizer=tokenizer.sha256)
        self.first_rows(read_config(self.model), old_rows(self.model))

    def first_rows(self, config: Mapping, old_rows: int | None) -> tuple[int, int]:
        """The first trained row of the input end and of the output end, of a model with this configuration."""
        size = int(config["vocab_size"])
        if self.train == "full":
            return (first_trained_row("all", size, old_rows),) * 2
        head = self.head_rows or self.rows
        return first_trained_row(self.rows, size, old_rows), first_trained_row(head, size, old_rows)

    def low_rank_ends(self) -> list[str]:
        """The ends whose old rows move by a low-rank update."""
        chosen = {EMBEDDING: self.rows, HEAD: self.head_rows or self.rows}
        return [name for name, rows in chosen.items() if rows == "low-rank" and self.train != "full"]

    def run(self, work: Path) -> dict[str, object]:
        refuse_too_large(self, read_config(self.model), old_rows(self.model))
        if self.threads:
            torch.set_num_threads(self.threads)
        ends, groups, adapter = build(self)
        mixture = make_mixture(self)
        plan = make_plan(self, mixture)
        evaluation = make_evaluation(
            self.heldout, load_tokenizer(self.model), self.heldout_bytes, self.sequence_length
        )
        counts = {f"{name}_parameters": count(group) for name, group in groups.items()}
        rate = measure_rate(self.dtype)
        with ExitStack() as stack:
            shown = {**counts, "options": {name: str(value) for name, value in vars(self).items()}}
            boards = (
                open_boards(stack, work, tensorboard=self.tensorboard, wandb=self.wandb, options=shown)
                if leads()
                else []
            )
            metrics = train(ends, groups, mixture, plan, work, evaluation, boards)
        flops = cost_of(self, read_config(self.model), old_rows(self.model)).flops_per_token
        metrics |= {
            "matmul_flops_per_second": round(rate),
            "share_of_matmul_rate": round(float(metrics["tokens_per_second"]) * flops / rate, 3),  # type: ignore[arg-type]
        }
        if device().type == "cuda":
            metrics["gpu_bytes"] = torch.cuda.max_memory_allocated()
        if self.train == "full":
            sizes = save_model(ends, self.model, work)
        else:
            sizes = save_adapter(ends, adapter, str(self.model), work)
        if leads():
            for folder in self.shards:
                copy_files(folder, work, [TEMPLATE_FILE])
            shutil.rmtree(work / CHECKPOINTS)
        return counts | metrics | sizes | {"data": mixture.describe()} | inherited(self.model)


def measure_rate(dtype: str) -> float:
    """Operations a second of this machine in the number format; says so if float32 would be faster."""
    rate = matmul_rate(DTYPES[dtype], MEASURED_SECONDS)
    if dtype != "float32" and (wide := matmul_rate(torch.float32, MEASURED_SECONDS)) > rate:
        what = f"{rate / 1e9:,.0f} GFLOP/s in {dtype}, {wide / 1e9:,.0f} in float32"
        print(f"  this machine does {what}: --dtype float32 is faster here", file=sys.stderr, flush=True)
    return rate


def build(options: Training) -> tuple[TwoEnds, dict[str, Group], LoraConfig | None]:
    """The model with its ends in hand, the parameter groups, and LoRA's settings (None without it)."""
    narrow = options.dtype == "bfloat16" and options.train != "full"
    dtype, place = torch.bfloat16 if narrow else torch.float32, device()
    many = ranks.ranks() > 1
    if many:
        model = empty_model(options.model, dtype)
    else:
        model = load_model(options.model, dtype, options.quantize_body, place)
    first = options.first_rows(read_config(options.model), old_rows(options.model))
    ends = TwoEnds(model, *first, attention=options.attention)
    scale = options.alpha / (math.sqrt(options.rank) if options.rslora else options.rank)
    ends.move_old_rows(options.rank, scale, options.low_rank_ends())
    adapter: LoraConfig | None = None
    if options.train == "ends":
        model.requires_grad_(False)
    if options.train == "lora":
        adapter = lora_config(
            options.rank,
            options.alpha,
            options.dropout,
            options.targets,
            rslora=options.rslora,
            dora=options.dora,
        )
        add_lora(ends, adapter, options.seed)
    if many:
        shard(ends, options.model, place)
        use_attention(model, options.attention)
    if many or not adapter:  # else add_lora did it
        start_lora(ends, options.seed)
    if options.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    body = {name: value for name, value in model.named_parameters() if value.requires_grad}
    muon = options.optimizer == "muon"
    groups = {
        "body": Group(body, options.learning_rate, options.weight_decay, muon),
        "old_rows": Group(dict(ends.old_rows.named_parameters()), options.learning_rate),
        "rows": Group(dict(ends.trained_rows()), options.rows_learning_rate),
    }
    return ends, {name: group for name, group in groups.items() if group.parameters}, adapter


def count(group: Group) -> int:
    return sum(value.numel() for value in group.parameters.values())


def make_mixture(options: Training) -> Mixture:
    shards = [Shards.open(folder) for folder in options.shards]
    tokenizer = load_tokenizer(options.model)
    shares = options.share or [float(source.index["tokens"]) for source in shards]
    return Mixture(
        shards,
        shares,
        sequence_length=options.sequence_length,
        batch_size=options.batch_size,
        seed=options.seed,
        pad_id=tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id,
    )


def make_plan(options: Training, mixture: Mixture) -> Plan:
    """Steps from the options, or as many as the first source's epochs take."""
    steps = options.steps or max(round(mixture.steps(options.epochs) / options.accumulation), 1)
    return Plan(
        rates=Rates(steps, round(steps * options.warmup), options.schedule, options.decay),
        positions_per_step=options.sequence_length * options.batch_size * options.accumulation,
        accumulation=options.accumulation,
        seed=options.seed,
        autocast=options.train == "full" and options.dtype == "bfloat16",
        evaluate_every=options.evaluate_every,
        save_seconds=60 * options.save_minutes,
        keep=options.keep,
        best=options.best,
        patience=options.patience,
        bounds=options.bound,
    )


def save_model(ends: TwoEnds, base: Path, out: Path) -> dict[str, object]:
    """The wholly trained model as a model folder, in the number formats of its base; the first rank writes."""
    values = ends.matrices()
    plan = dict(open_tensors(base).specs)
    with TensorWriter(out, plan) if leads() else nullcontext() as writer:
        for name, spec in plan.items():
            value = whole(values[name].detach())
            if writer:
                writer.add(name, value.to(spec.dtype).cpu())
    if writer is None:
        return {}
    copy_files(base, out, ("config.json", GENERATION_FILE, *TOKENIZER_FILES))
    return {"parameters": sum(spec.elements for spec in plan.values()), "bytes": writer.bytes}
