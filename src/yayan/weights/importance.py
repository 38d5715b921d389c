"""How much an error in each column of a matrix counts: the mean square of what the column is multiplied with.

The importance matrix of llama.cpp (its imatrix tool), from a text that the model reads. Shapes: N positions, C columns.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from yayan.corpus.read import documents
from yayan.errors import UserError
from yayan.model.load import load_model
from yayan.progress import Progress
from yayan.tokenizer import load_tokenizer

CONTEXT = 512  # positions read at once, as llama.cpp's tool does
FLOOR = 1e-6  # of the mean: a column that the text never uses may not be worth nothing


@torch.no_grad()
def importance_of(model: Path, text: Path, limit_tokens: int) -> dict[str, np.ndarray]:
    """Names of the layers' matrices -> float32 [C], from the first `limit_tokens` tokens of a text.

    Raises UserError if the text has none.
    """
    pieces = read_pieces(model, text, limit_tokens)
    network = load_model(model)
    sums: dict[str, torch.Tensor] = {}
    for name, module in network.get_decoder().named_modules(prefix="model"):
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(adder(sums, f"{name}.weight"))
    with Progress("calibrate", total=sum(map(len, pieces)), unit="tok") as bar:
        for ids in pieces:
            network.get_decoder()(input_ids=torch.tensor([ids]), use_cache=False)
            bar.advance(len(ids))
    return {name: (total + FLOOR * total.mean()).float().numpy() for name, total in sums.items()}


def adder(sums: dict[str, torch.Tensor], name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    """A hook that adds the squares of a module's inputs. Only ratios count, so nothing is divided."""

    def add(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        squares_C = inputs[0].flatten(0, -2).double().square().sum(0)
        sums[name] = sums[name] + squares_C if name in sums else squares_C

    return add


def read_pieces(model: Path, text: Path, limit_tokens: int) -> list[list[int]]:
    """Pieces of at most CONTEXT tokens, each of one document, BOS before each document."""
    tokenizer = load_tokenizer(model)
    pieces: list[list[int]] = []
    left = limit_tokens
    for document in documents([text]):
        ids = [*tokenizer.begin, *tokenizer.encode(document.text)][: max(left, 0)]
        pieces += [ids[at : at + CONTEXT] for at in range(0, len(ids), CONTEXT)]
        left -= len(ids)
        if left <= 0:
            break
    if not pieces:
        raise UserError("there is no document in it", where=text, cure="give a text with at least one")
    return pieces
