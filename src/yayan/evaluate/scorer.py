"""A model folder opened for scoring: its tokenizer and its network, which fit together."""

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from yayan.errors import UserError, WorkError
from yayan.model.load import Quantization, load_model
from yayan.tokenizer import Tokenizer, load_tokenizer


def open_network(
    model: Path,
    dtype: torch.dtype = torch.float32,
    quantization: Quantization | None = None,
    device: torch.device | None = None,
) -> tuple[Tokenizer, PreTrainedModel]:
    """Open a model folder on a device (the CPU), dropout off. Raises UserError for tokens that have no row."""
    tokenizer = load_tokenizer(model)
    network = load_model(model, dtype, quantization, device)
    rows = network.get_input_embeddings().num_embeddings
    if tokenizer.size > rows:
        what = f"the tokenizer has {tokenizer.size} tokens, the model only {rows} rows"
        raise UserError(what, where=model, cure="grow the model, or take its own tokenizer")
    return tokenizer, network


def refuse_nonsense(nats: Iterable[float], model: Path) -> None:
    """WorkError if a likelihood is no finite number: there is nothing to compare then, and nothing to guess."""
    if not all(map(math.isfinite, nats)):
        cure = "look for infinite or missing weights in it"
        raise WorkError("the model gives likelihoods that are no numbers", where=model, cure=cure)
