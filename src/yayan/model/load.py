"""A model folder of the LLaMA family as a `transformers` model: from the disk only, whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging

from yayan.errors import UserError
from yayan.model.folder import read_config

__all__ = ["load_model", "read_config"]


Quantization = Literal["nf4", "int8"]
HEAD = ("lm_head",)


def load_model(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    quantization: Quantization | None = None,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """The causal language model of a folder, in eval mode on a device (the CPU), attention by SDPA.

    `quantization`: the body's matrices in 4 bits (arXiv:2305.14314, their scales quantised as well) or 8
    (arXiv:2208.07339), by bitsandbytes.

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
                device_map={"": device} if device and device.type != "cpu" else None,
                **quantized(quantization, dtype),
            )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"the model cannot be loaded, {reason}", where=folder, cure="make it again"
        ) from error
    refuse_misfits(report, folder)
    for module in model.modules():
        # On a CPU a pass without gradients would repack a 4-bit weight, and later passes then lose their gradients
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model.eval()


def quantized(quantization: Quantization | None, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is told."""
    if quantization is None:
        return {}
    skipped = {"llm_int8_skip_modules": list(HEAD)}
    if quantization == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, **skipped)}
    settings = {
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
    }
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **settings, **skipped)}


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
