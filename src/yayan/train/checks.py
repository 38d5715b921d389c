"""Options of a training that cannot work, each refused by its name before anything is written."""

import importlib.util
from typing import TYPE_CHECKING

from yayan.errors import UserError, refuse_less_than_one
from yayan.model.folder import read_config
from yayan.model.size import PROJECTIONS
from yayan.ranks import ranks
from yayan.train.boards import refuse_missing

if TYPE_CHECKING:
    from yayan.train.training import Training


def check_options(options: "Training") -> None:
    """UserError for values that cannot work, each by its name."""
    config = read_config(options.model)
    positive = ("rank", "alpha", "sequence_length", "batch_size", "accumulation", "evaluate_every", "epochs")
    for name in (*positive, "learning_rate", "rows_learning_rate", "keep"):
        if getattr(options, name) <= 0:
            raise UserError(f"{name} is {getattr(options, name)}", where=name, cure="give more than 0")
    for name in ("weight_decay", "save_minutes", "seed"):
        if getattr(options, name) < 0:
            raise UserError(f"{name} is {getattr(options, name)}", where=name, cure="give 0 or more")
    counted = ("steps", "heldout_bytes", "threads", "patience")
    refuse_less_than_one(**{name: getattr(options, name) for name in counted})
    for name in ("warmup", "dropout", "decay"):
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
    refuse_contradictions(options)
    refuse_on_several_ranks(options, ranks())
    refuse_missing(tensorboard=options.tensorboard, wandb=options.wandb)


def refuse_contradictions(options: "Training") -> None:
    """UserError for options that say nothing together."""
    tied = read_config(options.model).get("tie_word_embeddings", False)
    if options.head_rows not in (None, options.rows) and tied:
        what = "this model's two ends are one matrix, which trains the same rows"
        raise UserError(what, where="head_rows", cure="leave it out")
    if options.train == "ends" and options.rows == "none":
        raise UserError("nothing would be trained", where="rows", cure="give --rows new or all")
    if options.train == "ends" and options.head_rows not in (None, options.rows):
        what = "an adapter of rows alone has the same rows of both ends"
        raise UserError(what, where="head_rows", cure="leave it out, or train LoRA as well")
    if options.optimizer == "muon" and options.train != "full":
        raise UserError("muon steps whole matrices", where="optimizer", cure="give --train full, or adamw")
    if options.quantize_body and options.train == "full":
        what = "a body that is trained cannot be quantised"
        raise UserError(what, where="quantize_body", cure="give --train lora")
    if options.quantize_body and importlib.util.find_spec("bitsandbytes") is None:
        what = "bitsandbytes is not installed"
        raise UserError(what, where="quantize_body", cure="pip install 'yayan[quant]'")
    if not options.targets:
        raise UserError(
            "no projection is named", where="targets", cure=f"name some of {', '.join(PROJECTIONS)}"
        )
    if (options.best or options.patience) and not options.heldout:
        name = "best" if options.best else "patience"
        raise UserError("there is no held-out text to go by", where=name, cure="give one, --heldout.zh FILE")
    for name, bound in options.bound.items():
        if name not in options.heldout:
            raise UserError("there is no held-out text of this name", where=f"bound.{name}", cure="give one")
        if bound <= 0:
            raise UserError(f"the bound is {bound}", where=f"bound.{name}", cure="give a share above 0")


def refuse_on_several_ranks(options: "Training", count: int) -> None:
    """UserError for what does not work with so many processes of `torchrun`."""
    if options.batch_size % count:
        what = f"{options.batch_size} sequences cannot be shared out to {count} processes"
        raise UserError(what, where="batch_size", cure=f"give a multiple of {count}")
    whole = {
        "dora": options.dora,
        "optimizer": options.optimizer == "muon",
        "quantize_body": options.quantize_body is not None,
    }
    for name, wanted in whole.items():
        if wanted and count > 1:
            what = "this needs whole matrices, which no process has here"
            raise UserError(what, where=name, cure="leave it out, or train in one process")
