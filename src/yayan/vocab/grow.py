"""A model gets the rows of a larger tokenizer, tensor by tensor and without training; or a new model is formed.

Shapes: V rows of the old tokenizer, N new tokens, D width of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from yayan.errors import UserError
from yayan.model.folder import (
    GENERATION_FILE,
    INPUT_END,
    OUTPUT_END,
    TEMPLATE_FILE,
    TOKENIZER_FILES,
    copy_files,
    read_config,
    read_json,
    write_json,
)
from yayan.progress import Progress
from yayan.stage import InputPath, Stage
from yayan.tokenizer import Tokenizer, load_tokenizer
from yayan.vocab.form import (
    INITIALIZER_RANGE,
    SHAPE,
    complete_shape,
    llama_config,
    llama_tensors,
    write_new_weights,
)
from yayan.weights.stream import MAX_SHARD_BYTES, TensorSource, TensorSpec, TensorWriter, open_tensors, totals

Init = Literal["mean_of_pieces", "mean", "noise"]
BLOCK_ROWS = 1024  # rows that are held at once in a wider format than the model's


@dataclass(frozen=True, kw_only=True)
class Grow(Stage):
    """Give a model the rows of a larger tokenizer, or form a new model for a tokenizer."""

    model: InputPath | None = None
    """Model folder to grow; without it a new LLaMA of --shape is formed."""
    tokenizer: InputPath
    """Tokenizer folder: the model's own tokens with the same ids, and new ones after them."""
    init: Init = "mean_of_pieces"
    """How new rows start: the mean of the old pieces of the new token, the mean of all rows, or noise."""
    shape: dict[str, int] | None = None
    """Sizes of a new model: hidden 256, layers 4, heads 4, feed_forward 768, positions 512, tied 0 (or 1)."""
    seed: int = 0
    """Seed of all random numbers."""

    def check(self) -> None:
        if (self.model is None) == (self.shape is None):
            cure = f"name a --model to grow, or a --shape ({', '.join(SHAPE)}) to form one"
            raise UserError("exactly one of a model and a shape is needed", cure=cure)
        if self.model is not None:
            plan_growth(self.model, self.tokenizer)
        else:
            load_tokenizer(self.tokenizer)
            complete_shape(self.shape or {})

    def run(self, work: Path) -> dict[str, object]:
        if self.model is not None:
            return grow_model(self.model, self.tokenizer, work, self.init, self.seed)
        return form_model(self.shape or {}, self.tokenizer, work, self.seed)


@dataclass(frozen=True)
class Growth:
    """A model and the tokenizer that it is to get, found to fit together."""

    config: dict
    source: TensorSource
    old: Tokenizer
    new: Tokenizer
    plan: dict[str, TensorSpec]
    """The grown model's tensors: ends with a row for each token, or more where the model was padded beyond that."""


def plan_growth(model: Path, tokenizer: Path) -> Growth:
    """Open a model and a larger tokenizer; no tensor is read.

    Raises UserError if the tokenizer does not contain the model's, or if the model's matrices do not fit its own.
    """
    config, source = read_config(model), open_tensors(model)
    old, new = load_tokenizer(model), load_tokenizer(tokenizer)
    refuse_other_tokens(old, new, tokenizer)
    needed = [INPUT_END] if config.get("tie_word_embeddings") else [INPUT_END, OUTPUT_END]
    for name in needed:
        if name not in source.specs:
            raise UserError(f"the model has no {name}", where=model, cure="fetch or make the folder again")
    plan = dict(source.specs)
    for name in {INPUT_END, OUTPUT_END} & set(plan):
        rows, width = plan[name].shape
        if rows < old.size:
            what = f"{name} has {rows} rows, but the model's own tokenizer {old.size} tokens"
            raise UserError(what, where=model, cure="give a model with its own tokenizer")
        plan[name] = TensorSpec((max(rows, new.size), width), plan[name].dtype)
    return Growth(config, source, old, new, plan)


def refuse_other_tokens(old: Tokenizer, new: Tokenizer, where: Path) -> None:
    """UserError unless every old token has its id in the new tokenizer, and there are new ones."""
    after = {id_: token for token, id_ in new.fast.get_vocab().items()}
    before = {id_: token for token, id_ in old.fast.get_vocab().items()}
    for id_, token in sorted(before.items()):
        if after.get(id_) != token:
            what = f"id {id_} is {after.get(id_)!r} in this tokenizer and {token!r} in the model's"
            raise UserError(what, where=where, cure="learn it with `yayan vocab --base` from this model")
    if new.size <= old.size:
        raise UserError("this tokenizer has no new tokens", where=where, cure="the model fits it as it is")


def grow_model(
    model: Path, tokenizer: Path, out: Path, init: Init, seed: int, max_shard_bytes: int = MAX_SHARD_BYTES
) -> dict[str, object]:
    """Write the model folder `out`: `model` with rows for all tokens of `tokenizer`, in the same dtypes.

    Rows of old tokens and all other tensors keep their bits. Rows that padded the matrix beyond the old tokenizer give
    way to new tokens; those beyond the new one stay. Returns metrics; raises UserError as `plan_growth` does.
    """
    growth = plan_growth(model, tokenizer)
    cuts = cut_new_tokens(growth.old, growth.new)
    with (
        TensorWriter(out, growth.plan, max_shard_bytes) as writer,
        Progress("grow", total=writer.bytes / 1e6, unit="MB") as bar,
    ):
        for name, spec in growth.plan.items():
            if name in (INPUT_END, OUTPUT_END):
                writer.add(name, grow_end(name, growth, cuts, init, seed))
            else:
                writer.add(name, growth.source.read(name))
            bar.advance(spec.bytes / 1e6)
    rows = growth.plan[INPUT_END].shape[0]
    generation = model / GENERATION_FILE
    write_small_files(
        tokenizer,
        out,
        config=with_special_ids(growth.config, growth.new) | {"vocab_size": rows},
        generation=with_special_ids(read_json(generation) if generation.is_file() else {}, growth.new),
        template=growth.new.template or growth.old.template,
    )
    return totals(growth.plan) | row_counts(rows, growth.old.size, growth.new.size)


def form_model(shape: dict[str, int], tokenizer: Path, out: Path, seed: int) -> dict[str, object]:
    """Write the model folder `out`: a new LLaMA of that shape in float32, one row for each token."""
    full, new = complete_shape(shape), load_tokenizer(tokenizer)
    plan = llama_tensors(full, new.size)
    write_new_weights(plan, out, seed)
    write_small_files(
        tokenizer,
        out,
        config=with_special_ids(llama_config(full, new.size), new),
        generation=with_special_ids({}, new),
        template=new.template,
    )
    return totals(plan) | row_counts(new.size, 0, new.size)


def cut_new_tokens(old: Tokenizer, new: Tokenizer) -> list[list[int]]:
    """The old ids that each new token's own text is cut into; empty where the old tokenizer knows none of it.

    The bare BPE model is asked, since tokens are already in its alphabet: a normaliser would put a space before them.
    """
    bpe = old.fast.model
    unknown = old.fast.token_to_id(bpe.unk_token) if bpe.unk_token else None
    texts = {id_: token for token, id_ in new.fast.get_vocab().items()}
    return [
        [piece.id for piece in bpe.tokenize(texts.get(id_, "")) if piece.id != unknown]
        for id_ in range(old.size, new.size)
    ]


def grow_end(name: str, growth: Growth, cuts: Sequence[Sequence[int]], init: Init, seed: int) -> torch.Tensor:
    """One end of the grown model in its dtype: the old rows as they are, then the new tokens', then padding."""
    old, size = growth.source.read(name), growth.old.size
    grown = torch.empty(growth.plan[name].shape, dtype=old.dtype)
    grown[: len(old)] = old
    deviation = float(growth.config.get("initializer_range", INITIALIZER_RANGE))
    own_seed = seed if name == INPUT_END or growth.config.get("tie_word_embeddings") else seed + 1
    fill_new_rows(grown[size : size + len(cuts)], old[:size], cuts, init, deviation, own_seed)
    return grown


def fill_new_rows(
    new_ND: torch.Tensor,
    old_VD: torch.Tensor,
    cuts: Sequence[Sequence[int]],
    init: Init,
    deviation: float,
    seed: int,
) -> None:
    """Set the rows of new tokens in place, from float32 rounded once.

    `cuts`: as from `cut_new_tokens`; `deviation` and `seed`: of the noise.
    """
    if init == "noise":
        generator = torch.Generator().manual_seed(seed)
        for block in new_ND.split(BLOCK_ROWS):
            block.copy_(torch.randn(block.shape, generator=generator).mul_(deviation))
        return
    sums_D = [block.double().sum(0) for block in old_VD.split(BLOCK_ROWS)]
    mean_D = (torch.stack(sums_D).sum(0) / len(old_VD)).float()
    new_ND[:] = mean_D
    if init == "mean_of_pieces":
        for start in range(0, len(cuts), BLOCK_ROWS):
            some = cuts[start : start + BLOCK_ROWS]
            new_ND[start : start + len(some)] = mean_of_pieces(old_VD, some, mean_D)


def mean_of_pieces(
    old_VD: torch.Tensor, cuts: Sequence[Sequence[int]], otherwise_D: torch.Tensor
) -> torch.Tensor:
    """Mean of the rows of each cut, [len(cuts), D] float32; `otherwise_D` for an empty cut."""
    lengths_N = torch.tensor([len(cut) for cut in cuts])
    pieces_PD = old_VD[[piece for cut in cuts for piece in cut]].float()
    means_ND = torch.segment_reduce(pieces_PD, "mean", lengths=lengths_N, axis=0)
    return torch.where(lengths_N[:, None] > 0, means_ND, otherwise_D)


def write_small_files(
    tokenizer: Path, out: Path, *, config: dict, generation: dict, template: str | None
) -> None:
    """Configuration, generation settings, template, and the files of the tokenizer's folder."""
    copy_files(tokenizer, out, TOKENIZER_FILES)
    write_json(out / "config.json", config)
    write_json(out / GENERATION_FILE, generation)
    if template is not None:
        (out / TEMPLATE_FILE).write_text(template, encoding="utf-8")


def with_special_ids(settings: dict, tokenizer: Tokenizer) -> dict:
    """Settings whose BOS, EOS and padding ids are the tokenizer's, where it has them.

    A list of several ends (as chat models have) that holds the tokenizer's EOS stays as it is.
    """
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    ends = settings.get("eos_token_id")
    if isinstance(ends, list) and tokenizer.eos_id in ends:
        del ids["eos_token_id"]
    return settings | {key: value for key, value in ids.items() if value is not None or key not in settings}


def row_counts(rows: int, old_rows: int, size: int) -> dict[str, object]:
    """Rows of each end, the first new one, and how many are new (the rest, if any, is padding)."""
    return {"rows": rows, "old_rows": old_rows, "rows_added": size - old_rows}
