"""What a tokenizer that is to be continued must tell, whichever of the two families it is of."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from yayan.errors import UserError
from yayan.vocab.scripts import Wanted

PAD = "<pad>"


def require_end(specials: Mapping[str, int], where: Path) -> None:
    """Raises UserError unless a token that ends a text is declared: the finished tokenizer needs one."""
    if "eos" not in specials:
        cure = "name eos_token in its tokenizer_config.json"
        raise UserError("no token that ends a text is declared", where=where, cure=cure)


@dataclass(frozen=True, eq=False)
class Base(ABC):
    """A tokenizer to be continued. A token has a name, as its vocabulary writes it; joined tokens join names."""

    plain: tokenizers.Tokenizer
    """As it is; text that looks like a special token stays text."""
    size: int
    """Its own ids."""
    template: str | None
    model_max_length: int | None

    @property
    @abstractmethod
    def taken(self) -> int:
        """Ids before the first new piece: its own, and padding where it had none."""

    @abstractmethod
    def text_of(self, name: str) -> str | None:
        """The text of a token; None if it is not whole characters."""

    @abstractmethod
    def bytes_of(self, name: str) -> bytes:
        """The UTF-8 bytes that a token stands for; of an added one, those of its name."""

    @abstractmethod
    def joinable(self, token_id: int) -> bool:
        """Whether a token of its own may be joined with its neighbours in a run."""

    @abstractmethod
    def may_join(self, name: str, wanted: Wanted, longest: int) -> bool:
        """Whether a name may become a token of the scripts: whole characters of one run, at most `longest` of them."""

    @abstractmethod
    def missing_characters(self, weights: Mapping[str, int]) -> dict[str, int]:
        """Characters that become tokens without a join, and the tokens that each of them saves in all."""

    @abstractmethod
    def extended(self, names: Sequence[str]) -> tokenizers.Tokenizer:
        """`plain` with new tokens behind its own; each may be joined from any two tokens that spell it."""

    @abstractmethod
    def write(self, folder: Path, names: Sequence[str]) -> None:
        """Write the continued tokenizer's folder."""
