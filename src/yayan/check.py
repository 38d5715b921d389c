"""`yayan check`: does a recipe hold together, and what will it take? Nothing is run or written.

Given folders and files instead, it says whether they fit together (fits.py).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from yayan import fits
from yayan.corpus.batches import Shards
from yayan.corpus.files import OPENERS, text_files
from yayan.corpus.pack import Pack
from yayan.errors import UserError
from yayan.hubs import is_hub_name
from yayan.inputs import STANDARD_INPUT, is_there, real_path, sample_path
from yayan.machine import memory_bytes
from yayan.model.folder import read_config
from yayan.model.longer import stretched
from yayan.model.size import BYTES, TrainingCost, size_of
from yayan.progress import format_seconds
from yayan.recipe import find_recipe, read_recipe, stages_of
from yayan.road import refuse_missing_inputs
from yayan.stage import Command, Stage, input_paths, resolve_inputs, with_paths
from yayan.tokenizer import load_tokenizer
from yayan.train.checks import refuse_on_several_ranks
from yayan.train.forecast import Speeds, cost_of, cure_for, measure_speeds
from yayan.train.training import Training
from yayan.vocab.form import complete_shape, llama_config
from yayan.vocab.grow import Grow
from yayan.vocab.learn import Vocab
from yayan.weights.gguf import Gguf
from yayan.weights.gguf_plan import weights_bytes
from yayan.weights.merge import Merge
from yayan.weights.stretch import Stretch

COMPRESSION = 3.5  # bytes of text in a byte of xz or gz, as the corpora here have
BYTES_PER_TOKEN = 4.0


@dataclass(frozen=True)
class Forecast:
    """What a step is expected to make and to take; figures that do not apply are None."""

    config: dict | None = None  # of the model that it makes
    old_rows: int | None = None
    tokens: float | None = None  # in the tokenizer or shards that it makes: ids, or tokens
    disk_bytes: float = 0
    cost: TrainingCost | None = None
    cure: str = ""  # what would make it fit into this machine's memory, where it does not
    train_tokens: float = 0
    training: Training | None = None


@dataclass(frozen=True, kw_only=True)
class Check(Command):
    """Say whether a recipe holds together and what it will take; or whether models, adapters, shards fit together."""

    recipe: str = field(kw_only=False)
    """A recipe file, or the name of a built-in one; or a model, adapter, tokenizer or shards folder or GGUF file."""
    changes: list[str] = field(kw_only=False, default_factory=list)
    """Changes of the recipe, as `yayan run` takes them; or more such folders and files."""
    fast: bool = False
    """Make the changes of the recipe's `fast` section."""
    ranks: int = 1
    """Processes of `torchrun` that train together: memory is then that of each."""

    def run(self) -> None:
        first = Path(self.recipe)
        if first.is_dir() or is_hub_name(first) or first.suffix == ".gguf":
            paths = [real_path(path) for path in (first, *map(Path, self.changes))]
            fits.tell(*fits.look(paths), as_json=self.json)
            return
        stages = stages_of(read_recipe(find_recipe(self.recipe), self.changes, fast=self.fast))
        stages = {step: fetch_models(stage) for step, stage in stages.items()}
        refuse_missing_inputs(stages)
        check_what_exists(stages)
        if self.ranks < 1:
            raise UserError(f"ranks is {self.ranks}", where="ranks", cure="give at least 1")
        forecasts = forecast_road(stages, self.ranks)
        formats = {item.training.dtype for item in forecasts.values() if item.training}
        speeds = {name: measure_speeds(name) for name in sorted(formats)}
        rows = {step: figures(item, speeds) for step, item in forecasts.items()}
        if self.json:
            rates = {name: speed.matmul for name, speed in speeds.items()}
            print(json.dumps({"steps": rows, "matmul_flops_per_second": rates}))
        else:
            tell(rows, speeds)


def fetch_models(stage: Stage) -> Stage:
    """The stage with the folders of the hubs' models that it names: they must be there to be looked at."""
    return with_paths(stage, lambda path: real_path(path) if is_hub_name(path) else path)


def check_what_exists(stages: Mapping[str, Stage]) -> None:
    """Let each step whose inputs are all there already check them. Standard input is left for the run."""
    for stage in stages.values():
        paths = input_paths(stage)
        if STANDARD_INPUT not in paths and all(map(is_there, paths)):
            resolve_inputs(stage).check()


def forecast_road(stages: Mapping[str, Stage], ranks: int = 1) -> dict[str, Forecast]:
    """A forecast for each step, from what exists and from the forecasts before it."""
    made: dict[Path, Forecast] = {}
    for stage in stages.values():
        made[stage.out] = forecast(stage, made, ranks)
    return {step: made[stage.out] for step, stage in stages.items()}


def forecast(stage: Stage, made: Mapping[Path, Forecast], ranks: int) -> Forecast:
    """What one step makes and takes."""
    match stage:
        case Vocab():
            return Forecast(tokens=stage.size)
        case Pack():
            return forecast_pack(stage)
        case Grow():
            rows = tokenizer_size(stage.tokenizer, made)
            if stage.model is None:
                config = llama_config(complete_shape(stage.shape or {}), rows)
                return model_forecast(config, 0)
            before = model_of(stage.model, made)
            config = {**(before.config or {}), "vocab_size": max(rows, (before.config or {})["vocab_size"])}
            return model_forecast(config, (before.config or {})["vocab_size"])
        case Training():
            return forecast_training(stage, made, ranks)
        case Merge():
            before = model_of(stage.base, made)
            return model_forecast(before.config or {}, before.old_rows)
        case Stretch():
            before = model_of(stage.model, made)
            config = stretched(before.config or {}, stage.to, stage.method, stage.alpha)
            return model_forecast(config, before.old_rows)
        case Gguf():
            config = model_of(stage.model, made).config or {}
            return Forecast(disk_bytes=sum(weights_bytes(config, kind) for kind in stage.type))
    return Forecast()


def model_forecast(config: dict, old_rows: int | None) -> Forecast:
    width = BYTES[str(config.get("dtype") or config.get("torch_dtype") or "float16")]
    return Forecast(
        config, old_rows, tokens=config["vocab_size"], disk_bytes=size_of(config).parameters * width
    )


def model_of(path: Path, made: Mapping[Path, Forecast]) -> Forecast:
    """A model that an earlier step makes, or one that is there."""
    return made[path] if path in made else Forecast(config=read_config(path))


def tokenizer_size(path: Path, made: Mapping[Path, Forecast]) -> int:
    return int(made[path].tokens or 0) if path in made else load_tokenizer(path).size


def forecast_pack(stage: Pack) -> Forecast:
    """Tokens from the size of the files: rough, and only for want of better. Nothing is known of standard input."""
    total = 0.0
    paths = [sample_path(path) for path in [*stage.corpus, *stage.chats] if path != STANDARD_INPUT]
    for file in text_files(paths) if paths else ():
        packed = file.suffix in (*OPENERS, ".parquet")
        total += file.stat().st_size * (COMPRESSION if packed else 1)
    return Forecast(tokens=total / BYTES_PER_TOKEN, disk_bytes=2 * total / BYTES_PER_TOKEN)


def forecast_training(stage: Training, made: Mapping[Path, Forecast], ranks: int) -> Forecast:
    before = model_of(stage.model, made)
    refuse_on_several_ranks(stage, ranks)
    known, there = (before.config or {}, before.old_rows, ranks), memory_bytes()
    cost = cost_of(stage, *known)
    cure = cure_for(stage, *known, there) if cost.memory_bytes > there else ""
    if stage.steps:
        tokens = float(stage.steps * stage.sequence_length * stage.batch_size * stage.accumulation)
    else:
        tokens = stage.epochs * shard_tokens(stage, made)
    disk = cost.trained_parameters * 4.0
    result = before if stage.train == "full" else Forecast()
    return replace(result, disk_bytes=disk, cost=cost, cure=cure, train_tokens=tokens, training=stage)


def shard_tokens(stage: Training, made: Mapping[Path, Forecast]) -> float:
    """Tokens of the first source's epoch, over its share of the mixture."""
    source = stage.shards[0]
    tokens = made[source].tokens if source in made else Shards.open(source).index["tokens"]
    share = stage.share[0] / sum(stage.share) if stage.share else 1.0
    return float(tokens or 0) / share


def figures(item: Forecast, speeds: Mapping[Any, Speeds]) -> dict[str, Any]:
    """A forecast as plain numbers."""
    row: dict[str, Any] = {"disk_bytes": round(item.disk_bytes)}
    if item.config:
        row["parameters"] = size_of(item.config).parameters
    if item.cost and item.training:
        stage = item.training
        positions = stage.sequence_length * stage.batch_size * stage.accumulation
        per_token = speeds[stage.dtype].seconds_per_token(item.cost, positions)
        row |= {
            "trained_parameters": item.cost.trained_parameters,
            "memory_bytes": item.cost.memory_bytes,
            "tokens": round(item.train_tokens),
            "seconds_here": round(item.train_tokens * per_token),
        }
        if item.cure:
            row["too_large_here"] = item.cure
    return row


def tell(rows: Mapping[str, Mapping[str, Any]], speeds: Mapping[Any, Speeds]) -> None:
    """The forecast as a table."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in ("step", "model", "trained", "memory", "disk", "tokens", "time here"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for step, row in rows.items():
        table.add_row(
            step,
            count(row.get("parameters")),
            count(row.get("trained_parameters")),
            count(row.get("memory_bytes"), "B"),
            count(row["disk_bytes"] or None, "B"),
            count(row.get("tokens")),
            format_seconds(row["seconds_here"]) if "seconds_here" in row else "",
        )
    console = Console(highlight=False)
    console.print(table)
    for step, row in rows.items():
        if "too_large_here" in row:
            there = count(memory_bytes(), "B")
            console.print(f"{step} needs more than the {there} of this machine: {row['too_large_here']}")
    for name, speed in speeds.items():
        console.print(f"{name}: this machine multiplies matrices at {speed.matmul / 1e9:,.0f} GFLOP/s")
    console.print(
        "The recipe holds together. Estimates: time from this machine's own rates, memory at the peak, "
        f"tokens of texts not packed yet at {BYTES_PER_TOKEN:.0f} bytes each."
    )


def count(number: float | None, unit: str = "") -> str:
    """`612.9 M`, `1.3 GB`."""
    if number is None:
        return ""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.1f} {letter}{unit}"
    return f"{number:.0f} {unit}".strip()
