"""A model folder opened for scoring: its tokenizer, the two halves of its network, and how far it sees."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from yayan.errors import UserError, WorkError
from yayan.model.folder import context_of
from yayan.model.load import load_model
from yayan.model.score import Body, Head, body_and_head
from yayan.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Scorer:
    """Ready to score; `context` is the number of positions of one row."""

    tokenizer: Tokenizer
    network: PreTrainedModel
    body: Body
    head: Head
    context: int
    model: Path


def refuse_nonsense(nats: Iterable[float], model: Path) -> None:
    """WorkError if a likelihood is no finite number: there is nothing to compare then, and nothing to guess."""
    if not all(map(math.isfinite, nats)):
        cure = "look for infinite or missing weights in it"
        raise WorkError("the model gives likelihoods that are no numbers", where=model, cure=cure)


def open_scorer(
    model: Path,
    context: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Scorer:
    """Open a model folder on a device (the CPU), dropout off."""
    tokenizer = load_tokenizer(model)
    network = load_model(model, dtype, device=device).eval()
    rows = network.get_input_embeddings().num_embeddings
    if tokenizer.size > rows:
        what = f"the tokenizer has {tokenizer.size} tokens, the model only {rows} rows"
        raise UserError(what, where=model, cure="grow the model, or take its own tokenizer")
    body, head = body_and_head(network)
    return Scorer(tokenizer, network, body, head, context_of(model, context), model)
