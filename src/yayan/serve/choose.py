"""Which engine serves a model, and why."""

import shutil
from pathlib import Path
from typing import Literal

from yayan.errors import UserError

EngineName = Literal["auto", "llamacpp", "torch", "vllm"]


def choose_engine(wanted: EngineName, model: Path) -> tuple[EngineName, str]:
    """The engine's name and the reason. Raises UserError where there is no such model."""
    if wanted != "auto":
        return wanted, "asked for"
    if not model.exists():
        raise UserError("there is no such model", where=model, cure="name a model folder or a .gguf file")
    if not (model / "config.json").is_file():
        return "llamacpp", "a GGUF file is its own format"
    if shutil.which("nvidia-smi"):
        return "torch", "a GPU is here, which the llama.cpp of this package does not use"
    return (
        "llamacpp",
        "the fastest without a GPU, several answers at once, from an F16 GGUF that is made once",
    )
