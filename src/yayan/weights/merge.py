"""Adapters into their base, one tensor in memory, proved before it is done.

W + s B A, its rows brought to DoRA's lengths where there are some, trained token rows, and matrices that were trained
whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from yayan import lineage
from yayan.errors import UserError
from yayan.machine import STORED, one_thread_each
from yayan.model.folder import (
    GENERATION_FILE,
    INPUT_END,
    TEMPLATE_FILE,
    TOKENIZER_FILES,
    copy_files,
    inherited,
    read_config,
    write_json,
)
from yayan.model.longer import positions_of, with_rope
from yayan.model.rope import rope_of
from yayan.progress import Progress
from yayan.stage import InputPath, Stage
from yayan.tokenizer import load_tokenizer
from yayan.weights.adapter import Adapter, brought_positions, read_adapter
from yayan.weights.card import write_card
from yayan.weights.merge_proof import largest_difference, recompute_rows
from yayan.weights.merge_tensor import merge_tensor
from yayan.weights.meta_layout import refuse_beyond_layout, write_meta_layout
from yayan.weights.stream import (
    MAX_SHARD_BYTES,
    TensorSource,
    TensorSpec,
    TensorWriter,
    open_tensors,
    totals,
)

COMPUTED = "rotary_emb.inv_freq"  # a table in old checkpoints that follows from the configuration


@dataclass(frozen=True, kw_only=True)
class Merge(Stage):
    """Merge adapters into their base model, tensor by tensor, and check the result."""

    base: InputPath
    """Model folder that the adapters were trained on."""
    adapter: list[InputPath] = field(default_factory=list)
    """Adapter folders in PEFT's format, added one after the other."""
    weight: list[float] = field(default_factory=list)
    """How much of each adapter is added, in their order (1 if not given): LoRA pairs only can be added in part."""
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    """Number format of the result (keep: that of the base); the sum is taken in float32 and rounded once."""
    format: Literal["safetensors", "pth"] = "safetensors"
    """pth: Meta's layout (consolidated.00.pth, params.json), for programs that read nothing else."""

    def check(self) -> None:
        inputs = open_inputs(self.base, self.adapter, self.weight)
        if self.format == "pth":
            refuse_beyond_layout(inputs.config, list(inputs.specs), self.base)

    def run(self, work: Path) -> dict[str, object]:
        metrics = merge_adapters(self.base, self.adapter, work, STORED.get(self.dtype), weights=self.weight)
        parts = {
            f"adapter {i}" if len(self.adapter) > 1 else "adapter": item
            for i, item in enumerate(self.adapter, 1)
        }
        weights = sorted(work.glob("model*.safetensors"))
        if self.format == "pth":
            files = write_meta_layout(work, work)
            for path in (*weights, *work.glob("model*.index.json")):
                path.unlink()
            weights = files
        write_card(work, self.out.name, self.base, {"base": self.base, **parts}, metrics, weights)
        return metrics


@dataclass(frozen=True)
class Inputs:
    """What is merged: all of it fits together."""

    config: dict
    source: TensorSource
    adapters: list[Adapter]
    specs: dict[str, TensorSpec]  # of the result, in the base's number formats
    tokenizer: Path  # the folder of the result's: the base's, or that of the adapter that added rows


def open_inputs(base: Path, adapters: Sequence[Path], weights: Sequence[float] = ()) -> Inputs:
    """A base, and adapters that fit it. Raises UserError if one does not."""
    if weights and len(weights) != len(adapters):
        what = f"{len(weights)} weights for {len(adapters)} adapters"
        raise UserError(what, where="weight", cure="give one for each")
    config, source = read_config(base), open_tensors(base)
    specs = {name: spec for name, spec in source.specs.items() if not name.endswith(COMPUTED)}
    opened: list[Adapter] = []
    tokenizer = base
    for folder, weight in zip(adapters, weights or [1.0] * len(adapters), strict=True):
        adapter = read_adapter(folder, specs, tied=bool(config.get("tie_word_embeddings")), weight=weight)
        refuse_two_of_one(adapter, opened)
        rows = specs[INPUT_END].shape[0]
        specs = adapter.grown(specs)
        if specs[INPUT_END].shape[0] > rows:
            tokenizer = folder
            refuse_missing_tokenizer(folder, specs[INPUT_END].shape[0])
        refuse_other_tokenizer(tokenizer, folder)
        opened.append(adapter)
    if not opened:
        raise UserError("there is nothing to merge", cure="name at least one --adapter")
    refuse_other_base(base, opened[0].folder)
    return Inputs(config, source, opened, specs, tokenizer)


def refuse_two_of_one(adapter: Adapter, before: Sequence[Adapter]) -> None:
    """UserError if a matrix is given whole that an earlier adapter has changed, which would be lost."""
    for other in before:
        if lost := sorted(adapter.whole.keys() & other.targets):
            what = f"{lost[0]} is replaced by this adapter, and {other.folder} has changed it before"
            raise UserError(what, where=adapter.folder, cure="merge one of them")


def refuse_missing_tokenizer(folder: Path, rows: int) -> None:
    """UserError unless the folder of an adapter that adds rows says which tokens they are."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        what = f"the adapter gives the model {rows} rows, and its folder has no tokenizer for them"
        raise UserError(what, where=folder, cure="put the tokenizer that it was trained with there")
    if (size := load_tokenizer(folder).size) > rows:
        what = f"the adapter's tokenizer has {size} tokens for {rows} rows"
        raise UserError(what, where=folder, cure="put the tokenizer that it was trained with there")


def refuse_other_base(base: Path, adapter: Path) -> None:
    """UserError if the adapter's record tells that it was trained on a model of other content.

    Only the first adapter is asked: the others may have been trained on the sum of those before them.
    """
    record = lineage.read(adapter)
    trained_on = record["inputs"].get("model") if record else None
    if trained_on and trained_on["sha256"] != lineage.sha256_of(base):
        what = f"the adapter was trained on {trained_on['path']}, and this base is another model"
        cure = "give the base that it was trained on"
        raise UserError(what, where=base, cure=cure)


def refuse_other_tokenizer(base: Path, adapter: Path) -> None:
    """UserError if the adapter's folder holds a tokenizer that gives other ids than the base's."""
    if (adapter / "tokenizer.json").is_file() and (base / "tokenizer.json").is_file():
        theirs, ours = load_tokenizer(adapter), load_tokenizer(base)
        if theirs.sha256 != ours.sha256:
            what = f"the adapter has a tokenizer of {theirs.size} ids, the base another of {ours.size}"
            raise UserError(what, where=adapter, cure="give the base that it was trained on")


def merge_adapters(
    base: Path,
    adapters: Sequence[Path],
    out: Path,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    weights: Sequence[float] = (),
) -> dict[str, object]:
    """Write the model folder `out`: the base with all adapters added in order, in `dtype` (None: as each tensor is).

    Returns metrics. Raises UserError if base and adapters do not fit, WorkError if the result fails its checks.
    """
    inputs = open_inputs(base, adapters, weights)
    source, opened = inputs.source, inputs.adapters
    plan = {name: TensorSpec(spec.shape, dtype or spec.dtype) for name, spec in inputs.specs.items()}
    with (
        TensorWriter(out, plan, max_shard_bytes) as writer,
        one_thread_each() as workers,
        Progress("merge", total=writer.bytes / 1e6, unit="MB") as bar,
    ):
        for name, spec in plan.items():
            writer.add_rows(name, merge_tensor(name, source.read(name), opened, spec.dtype, workers))
            bar.advance(spec.bytes / 1e6)
    changed = sorted(set().union(*(adapter.targets for adapter in opened)))
    rows, largest_error = recompute_rows(source, opened, open_tensors(out), changed)
    copy_small_files(base, inputs, out, dtype)
    difference = None if weights or source.pickled else largest_difference(base, adapters, out)
    return totals(plan) | {
        "tensors_merged": len(changed),
        "adapters": len(opened),
        "token_rows": sum(len(ids) for adapter in opened for _, ids in adapter.rows.values()),
        "rows_recomputed": rows,
        "largest_error": largest_error,
        "largest_difference_of_logprobs": difference,
        **(inherited(base) if inputs.tokenizer == base else {"old_rows": source.shape(INPUT_END)[0]}),
    }


def copy_small_files(base: Path, inputs: Inputs, out: Path, dtype: torch.dtype | None) -> None:
    """The base's configuration and generation settings, the tokenizer, the last template that an adapter has."""
    config = inputs.config
    if dtype is not None:
        config = {key: value for key, value in config.items() if key != "torch_dtype"}
        config["dtype"] = str(dtype).removeprefix("torch.")
    for adapter in inputs.adapters:
        config = with_positions_of(adapter.folder, config)
    rows = inputs.specs[INPUT_END].shape[0]
    write_json(out / "config.json", config if rows == config["vocab_size"] else config | {"vocab_size": rows})
    copy_files(base, out, [GENERATION_FILE])
    copy_files(inputs.tokenizer, out, TOKENIZER_FILES)
    if inputs.tokenizer != base and not (out / "tokenizer.json").is_file():
        load_tokenizer(inputs.tokenizer).fast.save(str(out / "tokenizer.json"))
    for adapter in inputs.adapters:
        copy_files(adapter.folder, out, [TEMPLATE_FILE])


def with_positions_of(adapter: Path, config: dict) -> dict:
    """The configuration with the positions and RoPE's scaling that an adapter was trained with, if its folder says."""
    theirs = brought_positions(adapter)
    if theirs is None:
        return config
    known = {"rope_theta": rope_of(config)["rope_theta"], "max_position_embeddings": positions_of(config)}
    known |= {name: value for name, value in theirs.items() if value is not None}
    return with_rope(config, rope_of(known), positions_of(known))
