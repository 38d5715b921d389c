"""What `pretrain` and `sft` have in common: their options, their checks, and the run from shards to an adapter."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig

from yayan.corpus.batches import Mixture, Shards
from yayan.errors import UserError
from yayan.model.adapters import add_lora, lora_config, save_adapter
from yayan.model.ends import Rows, TwoEnds, first_trained_row
from yayan.model.folder import (
    GENERATION_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILES,
    copy_files,
    inherited,
    old_rows,
)
from yayan.model.load import load_model, read_config
from yayan.stage import InputPath, Stage
from yayan.tokenizer import load_tokenizer
from yayan.train.heldout import make_evaluation
from yayan.train.loop import Plan, train
from yayan.train.optim import Group
from yayan.weights.stream import TensorSpec, TensorWriter, open_tensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Training(Stage):
    """Options of a training; the verbs `pretrain` and `sft` are two of it."""

    model: InputPath
    """Model folder to start from."""
    shards: list[InputPath]
    """Shards folders (of `pack`) to train on."""
    share: list[float] = field(default_factory=list)
    """Share of the tokens that each shards folder gives, in their order; by default as many as each has."""
    train: Literal["lora", "full"] = "lora"
    """What is trained: LoRA on the body and rows of the two ends (an adapter), or the whole model."""
    rows: Rows = "new"
    """Rows of the input and output ends that are trained: those that `grow` added, all, or none."""
    rank: int = 64
    """Rank of the LoRA pairs."""
    alpha: int = 128
    """Scale of the LoRA pairs, divided by the rank."""
    dropout: float = 0.0
    """Dropout before the LoRA pairs."""
    learning_rate: float = 2e-4
    """Peak learning rate of the body (LoRA or whole)."""
    rows_learning_rate: float = 2e-3
    """Peak learning rate of the rows of the ends."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the body's matrices."""
    warmup: float = 0.05
    """Share of the steps in which the rates rise to their peak, after which they fall as a cosine to a tenth."""
    epochs: float = 1.0
    """Passes over the first shards folder."""
    steps: int | None = None
    """Optimiser steps, instead of epochs."""
    sequence_length: int = 512
    """Positions of a training sequence."""
    batch_size: int = 8
    """Sequences computed at once."""
    accumulation: int = 1
    """Batches in one optimiser step."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the matrix products; what is trained is always kept in float32."""
    heldout: dict[str, InputPath] = field(default_factory=dict)
    """Held-out texts by name to measure in bits per byte: --heldout.zh FILE."""
    heldout_bytes: int = 200_000
    """Bytes of each held-out text that are measured during training."""
    evaluate_every: int = 100
    """Optimiser steps between two measurements of the held-out texts."""
    save_minutes: float = 5.0
    """Minutes between two checkpoints (a run that was interrupted goes on from the newest)."""
    seed: int = 1
    """Seed of the data's order, of LoRA's start and of dropout."""
    threads: int | None = None
    """Threads of the computation; all cores by default."""

    def check(self) -> None:
        check_options(self)
        tokenizer = load_tokenizer(self.model)
        for folder in self.shards:
            Shards.open(folder, tokenizer=tokenizer.sha256)
        self.first_row()

    def first_row(self) -> int:
        rows: Rows = "all" if self.train == "full" else self.rows
        return first_trained_row(rows, int(read_config(self.model)["vocab_size"]), old_rows(self.model))

    def run(self, work: Path) -> dict[str, object]:
        if self.threads:
            torch.set_num_threads(self.threads)
        ends, groups, adapter = build(self)
        mixture = make_mixture(self)
        plan = make_plan(self, mixture)
        evaluation = make_evaluation(
            self.heldout, load_tokenizer(self.model), self.heldout_bytes, self.sequence_length
        )
        counts = {f"{name}_parameters": count(group) for name, group in groups.items()}
        metrics = train(ends, groups, mixture, plan, work, evaluation)
        if adapter is None:
            sizes = save_model(ends, self.model, work)
        else:
            sizes = save_adapter(ends, adapter, str(self.model), work)
        for folder in self.shards:
            copy_files(folder, work, [TEMPLATE_FILE])
        shutil.rmtree(work / "checkpoints")
        return counts | metrics | sizes | {"data": mixture.describe()} | inherited(self.model)


def check_options(options: Training) -> None:
    """UserError for values that cannot work, each by its name."""
    config = read_config(options.model)
    positive = ("rank", "alpha", "sequence_length", "batch_size", "accumulation", "evaluate_every", "epochs")
    for name in (*positive, "learning_rate", "rows_learning_rate"):
        if getattr(options, name) <= 0:
            raise UserError(f"{name} is {getattr(options, name)}", where=name, cure="give more than 0")
    for name in ("weight_decay", "save_minutes", "seed"):
        if getattr(options, name) < 0:
            raise UserError(f"{name} is {getattr(options, name)}", where=name, cure="give 0 or more")
    for name in ("steps", "heldout_bytes", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}", where=name, cure="give at least 1")
    for name in ("warmup", "dropout"):
        if not 0 <= getattr(options, name) < 1:
            raise UserError(
                f"{name} is {getattr(options, name)}", where=name, cure="give a share from 0 to below 1"
            )
    positions = int(config["max_position_embeddings"])
    if options.sequence_length > positions:
        what = f"sequences of {options.sequence_length} are longer than the model's {positions} positions"
        raise UserError(what, where="sequence_length", cure=f"give at most {positions}")
    if options.share and len(options.share) != len(options.shards):
        what = f"{len(options.share)} shares for {len(options.shards)} shards folders"
        raise UserError(what, where="share", cure="give one share for each")


def build(options: Training) -> tuple[TwoEnds, dict[str, Group], LoraConfig | None]:
    """The model with its ends in hand, the parameter groups, and LoRA's settings (None in full training)."""
    narrow = options.dtype == "bfloat16" and options.train != "full"
    model = load_model(options.model, torch.bfloat16 if narrow else torch.float32)
    ends = TwoEnds(model, options.first_row())
    if options.train == "full":
        body = {name: value for name, value in model.named_parameters() if value.requires_grad}
        adapter: LoraConfig | None = None
    else:
        adapter = lora_config(options.rank, options.alpha, options.dropout)
        body = add_lora(ends, adapter, options.seed)
    groups = {
        "body": Group(body, options.learning_rate, options.weight_decay),
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
        steps=steps,
        positions_per_step=options.sequence_length * options.batch_size * options.accumulation,
        accumulation=options.accumulation,
        warmup_share=options.warmup,
        seed=options.seed,
        dtype=DTYPES[options.dtype],
        evaluate_every=options.evaluate_every,
        save_seconds=60 * options.save_minutes,
    )


def save_model(ends: TwoEnds, base: Path, out: Path) -> dict[str, object]:
    """The wholly trained model as a model folder, in the number formats of its base."""
    ends.write_back()
    specs = open_tensors(base).specs
    values = ends.model.state_dict()
    plan = {name: TensorSpec(spec.shape, spec.dtype) for name, spec in specs.items()}
    with TensorWriter(out, plan) as writer:
        for name, spec in plan.items():
            writer.add(name, values[name].to(spec.dtype))
    copy_files(base, out, ("config.json", GENERATION_FILE, *TOKENIZER_FILES))
    return {"parameters": sum(spec.elements for spec in plan.values()), "bytes": writer.bytes}
