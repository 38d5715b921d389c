"""Tensors of older `.bin` files, without running what is in them.

Such a file is a pickle. Torch's restricted reader builds tensors and plain containers from it and refuses everything
else (`weights_only`), and maps the values instead of reading them.
"""

import pickle
from pathlib import Path

import torch

from yayan.errors import UserError

BadFile = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError)


def read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Names and mapped tensors of a file. Raises UserError for a file that is damaged, or that holds anything else."""
    cure = "fetch it again, or write it as safetensors where it was made"
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except BadFile as error:
        runs = isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error)
        what = "this file wants to run code when it is read" if runs else "this file is truncated or damaged"
        raise UserError(what, where=path, cure=cure) from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise UserError("this file holds something else than tensors", where=path, cure=cure)
    return found
