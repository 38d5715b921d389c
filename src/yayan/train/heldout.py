"""Held-out texts during training, in bits per byte."""

from collections.abc import Callable
from pathlib import Path

import torch

from yayan.corpus.read import documents
from yayan.errors import UserError
from yayan.model.ends import TwoEnds
from yayan.model.score import bits_per_byte, score_sequences
from yayan.tokenizer import Tokenizer


def make_evaluation(
    texts: dict[str, Path], tokenizer: Tokenizer, limit_bytes: int, context: int
) -> Callable[[TwoEnds], dict[str, float]] | None:
    """A function that measures a model in training on texts read once; None if there are no texts.

    Each document is scored alone from BOS on, as `eval bits` does; whole documents up to `limit_bytes` a text.
    """
    if not texts:
        return None
    read = {name: read_sequences(path, tokenizer, limit_bytes) for name, path in texts.items()}

    def evaluate(ends: TwoEnds) -> dict[str, float]:
        found, device = {}, ends.embedding.device

        def body(ids_BT: torch.Tensor) -> torch.Tensor:
            return ends.hidden(ids_BT.to(device))

        for name, (sequences, size) in read.items():
            nats = score_sequences(body, ends.logits, sequences, context=context)
            found[name] = round(bits_per_byte(sum(nats), size), 4)
        return found

    return evaluate


def read_sequences(path: Path, tokenizer: Tokenizer, limit_bytes: int) -> tuple[list[list[int]], int]:
    """Token ids of whole documents, BOS first, and the bytes of their text."""
    sequences: list[list[int]] = []
    size = 0
    for document in documents([path]):
        length = len(document.text.encode("utf-8"))
        if sequences and size + length > limit_bytes:
            break
        sequences.append([tokenizer.before, *tokenizer.encode(document.text)])
        size += length
    if not sequences:
        raise UserError("there is no document in it", where=path, cure="give a text with at least one")
    return sequences, size
