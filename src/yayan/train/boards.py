"""The figures of a training for those who watch them in TensorBoard or wandb. Neither is needed for anything."""

import importlib.util
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from yayan.errors import UserError

TENSORBOARD_NAME = "tensorboard"
Board = Callable[[dict], None]  # takes a line of metrics.jsonl


def refuse_missing(*, tensorboard: bool, wandb: str | None) -> None:
    """UserError if a board is asked for whose library is not installed."""
    for name, wanted in (("tensorboard", tensorboard), ("wandb", wandb)):
        if wanted and importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed", where=name, cure="pip install 'yayan[boards]'")


def open_boards(
    stack: ExitStack, work: Path, *, tensorboard: bool, wandb: str | None, options: dict[str, Any]
) -> list[Board]:
    """Boards that take the lines from now on, closed with the stack.

    TensorBoard's files go to `work/tensorboard`. wandb's run has the name of the folder and is gone on with after an
    interruption; what it does with the network is its own affair (WANDB_MODE).
    """
    boards: list[Board] = []
    if tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        writer = stack.enter_context(SummaryWriter(str(work / TENSORBOARD_NAME)))

        def write(line: dict) -> None:
            for name, value in flat(line).items():
                writer.add_scalar(name, value, line["step"])

        boards.append(write)
    if wandb:
        import wandb as library

        run = library.init(
            project=wandb, name=work.name, id=work.name, resume="allow", dir=str(work), config=options
        )
        stack.callback(run.finish)
        boards.append(lambda line: run.log(flat(line), step=line["step"]))
    return boards


def flat(line: dict) -> dict[str, float]:
    """`{"bits_per_byte": {"zh": 2.0}}` is `{"bits_per_byte/zh": 2.0}`."""
    found: dict[str, float] = {}
    for name, value in line.items():
        inner = value if isinstance(value, dict) else {}
        found |= {f"{name}/{key}": item for key, item in inner.items()} if inner else {name: value}
    return found
