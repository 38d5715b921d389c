"""A model folder of the LLaMA family as a `transformers` model: from the disk only, whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from yayan.errors import UserError
from yayan.model.folder import read_config

__all__ = ["load_model", "read_config"]


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The causal language model of a folder, in eval mode on the CPU, its attention computed by torch's SDPA.

    Only safetensors are read, no code and no pickle of the folder is executed. Raises UserError if the folder is no
    such model, or if its tensors are not exactly those that its configuration asks for (`transformers` itself fills
    missing ones with noise and goes on).
    """
    read_config(folder)
    try:
        with quiet_transformers():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation="sdpa",
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they come back in the report, with their shapes
                output_loading_info=True,
            )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"the model cannot be loaded, {reason}", where=folder, cure="make it again"
        ) from error
    refuse_misfits(report, folder)
    return model.eval()


def refuse_misfits(report: dict, folder: Path) -> None:
    """UserError unless weights and configuration name the same tensors with the same shapes."""
    misfits = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    misfits += [f"{name} is unknown" for name in sorted(report["unexpected_keys"])]
    misfits += [
        f"{name} is {tuple(found)} instead of {tuple(wanted)}"
        for name, found, wanted in sorted(report["mismatched_keys"])
    ]
    if misfits:
        more = f" and {len(misfits) - 1} more" if len(misfits) > 1 else ""
        what = f"weights and config.json do not fit together, {misfits[0]}{more}"
        raise UserError(what, where=folder, cure="fetch or make the folder again")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bar and no report on stderr while `transformers` loads."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
