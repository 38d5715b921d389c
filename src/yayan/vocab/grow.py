"""A model gets the rows of a larger tokenizer, tensor by tensor and without training; or a new model is formed.

Shapes: V rows of the old tokenizer, N new tokens, D width of the model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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
from yayan.vocab.init import BLOCK_ROWS, Init, Mixes, make_mixes, new_rows, refuse_wrong_corpus, sample_texts
from yayan.weights.stream import MAX_SHARD_BYTES, TensorSource, TensorSpec, TensorWriter, open_tensors, totals


@dataclass(frozen=True, kw_only=True)
class Grow(Stage):
    """Give a model the rows of a larger tokenizer, or form a new model for a tokenizer."""

    model: InputPath | None = None
    """Model folder to grow; without it a new LLaMA of --shape is formed."""
    tokenizer: InputPath
    """Tokenizer folder: the model's own tokens with the same ids, and new ones after them."""
    init: Init = "mean_of_pieces"
    """How new rows start: a mean of the token's old pieces, a mix of similar old tokens, the mean of all, or noise."""
    init_output: Init | None = None
    """How new rows of the output end start, if not as those of the input end."""
    corpus: list[InputPath] | None = None
    """Files or folders of documents, for weighted_mean_of_pieces and similar."""
    field: str | None = None
    """Name of the text in a .jsonl object of the corpus."""
    shape: dict[str, int] | None = None
    """Sizes of a new model: hidden 256, layers 4, heads 4, feed_forward 768, positions 512, tied 0 (or 1)."""
    seed: int = 0
    """Seed of all random numbers."""

    def check(self) -> None:
        if (self.model is None) == (self.shape is None):
            cure = f"name a --model to grow, or a --shape ({', '.join(SHAPE)}) to form one"
            raise UserError("exactly one of a model and a shape is needed", cure=cure)
        if self.model is not None:
            growth = plan_growth(self.model, self.tokenizer)
            refuse_misfits(growth, self.init, self.init_output, self.corpus)
        else:
            if self.init_output or self.corpus:
                cure = "leave out --init-output and --corpus"
                raise UserError("a new model starts from noise alone", cure=cure)
            load_tokenizer(self.tokenizer)
            complete_shape(self.shape or {})

    def run(self, work: Path) -> dict[str, object]:
        if self.model is None:
            return form_model(self.shape or {}, self.tokenizer, work, self.seed)
        return grow_model(
            self.model,
            self.tokenizer,
            work,
            self.init,
            self.seed,
            init_output=self.init_output,
            texts=sample_texts(self.corpus, self.field) if self.corpus else (),
        )


def refuse_misfits(
    growth: "Growth", init: Init, init_output: Init | None, corpus: Sequence[Path] | None
) -> None:
    """UserError if an end is asked for that the model does not have, or for a corpus missing or not needed."""
    if init_output is not None and growth.tied:
        what = "the ends of this model are tied, so its output end starts as the input end does"
        raise UserError(what, where="init_output", cure="leave it out")
    refuse_wrong_corpus([init, init_output or init], corpus)


@dataclass(frozen=True)
class Growth:
    """A model and the tokenizer that it is to get, found to fit together."""

    config: dict
    source: TensorSource
    old: Tokenizer
    new: Tokenizer
    plan: dict[str, TensorSpec]
    """The grown model's tensors: ends with a row for each token, or more where the model was padded beyond that."""

    @property
    def tied(self) -> bool:
        return bool(self.config.get("tie_word_embeddings"))

    @property
    def count(self) -> int:
        """New tokens."""
        return self.new.size - self.old.size

    def seed_of(self, end: str, seed: int) -> int:
        """Noise differs between two ends, but not between two copies of one."""
        return seed if end == INPUT_END or self.tied else seed + 1


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
    model: Path,
    tokenizer: Path,
    out: Path,
    init: Init,
    seed: int,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    init_output: Init | None = None,
    texts: Sequence[str] = (),
) -> dict[str, object]:
    """Write the model folder `out`: `model` with rows for all tokens of `tokenizer`, in the same dtypes.

    Rows of old tokens and all other tensors keep their bits. Rows that padded the matrix beyond the old tokenizer give
    way to new tokens; those beyond the new one stay. `init_output`: of the output end, if not `init`. `texts`: a sample
    of the language, for initialisations that need one. Returns metrics; raises UserError as `plan_growth` does.
    """
    growth = plan_growth(model, tokenizer)
    inits: dict[str, Init] = {INPUT_END: init, OUTPUT_END: init_output or init}
    mixes = {
        init: make_mixes(init, growth.old, growth.new, texts, seed)
        for init in {inits[name] for name in inits if name in growth.plan}
    }
    with (
        TensorWriter(out, growth.plan, max_shard_bytes) as writer,
        Progress("grow", total=writer.bytes / 1e6, unit="MB") as bar,
    ):
        for name, spec in growth.plan.items():
            if name in inits:
                writer.add_rows(name, counted(grow_end(name, growth, inits[name], mixes, seed), bar))
            else:
                writer.add(name, growth.source.read(name))
                bar.advance(spec.bytes / 1e6)
    write_around(growth, model, tokenizer, out)
    rows = growth.plan[INPUT_END].shape[0]
    return totals(growth.plan) | row_counts(rows, growth.old.size, growth.new.size)


def write_around(growth: Growth, model: Path, tokenizer: Path, out: Path) -> None:
    """The small files of the grown model: the model's own with the new sizes and ids, and the larger tokenizer."""
    generation = model / GENERATION_FILE
    rows = growth.plan[INPUT_END].shape[0]
    write_small_files(
        tokenizer,
        out,
        config=with_special_ids(growth.config, growth.new) | {"vocab_size": rows},
        generation=with_special_ids(read_json(generation) if generation.is_file() else {}, growth.new),
        template=growth.new.template or growth.old.template,
    )


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


def grow_end(
    name: str, growth: Growth, init: Init, mixes: Mapping[Init, Mixes | None], seed: int
) -> Iterator[torch.Tensor]:
    """One end of the grown model in blocks of rows: the old ones as they are, then the new tokens', then padding.

    Old rows and padding are views of the mapped file. New rows are computed in float32 and rounded once.
    """
    old_VD = growth.source.read(name)
    yield from old_VD[: growth.old.size].split(BLOCK_ROWS)
    ids = np.array(sorted(growth.old.fast.get_vocab().values()))
    deviation = float(growth.config.get("initializer_range", INITIALIZER_RANGE))
    for block in new_rows(
        old_VD,
        ids,
        growth.count,
        init,
        mixes=mixes[init],
        deviation=deviation,
        seed=growth.seed_of(name, seed),
    ):
        yield block.to(old_VD.dtype)
    yield from old_VD[growth.new.size :].split(BLOCK_ROWS)


def counted(blocks: Iterator[torch.Tensor], bar: Progress) -> Iterator[torch.Tensor]:
    """The blocks as they are, each counted in MB when it has been taken."""
    for block in blocks:
        yield block
        bar.advance(block.nbytes / 1e6)


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
