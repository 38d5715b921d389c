"""Instruction tuning: the assistant's tokens and their end token are the targets, everything else is context."""

from dataclasses import dataclass

from yayan.corpus.batches import Shards
from yayan.errors import UserError
from yayan.train.training import Training


@dataclass(frozen=True, kw_only=True)
class Sft(Training):
    """Tune on chats, with loss on the assistant's tokens and their end token only."""

    learning_rate: float = 1e-4
    """Peak learning rate of the body (LoRA or whole)."""
    rows_learning_rate: float = 1e-3
    """Peak learning rate of the rows of the ends."""
    warmup: float = 0.03
    """Share of the steps in which the rates rise to their peak."""
    epochs: float = 3.0
    """Passes over the first shards folder."""

    def check(self) -> None:
        super().check()
        for folder in self.shards:
            if Shards.open(folder).index["kind"] != "chats":
                raise UserError(
                    "these shards hold documents", where=folder, cure="pack chats: yayan pack --chats FILE"
                )
