"""Which engine serves a model, and why."""

from pathlib import Path
from typing import Literal

from yayan.errors import UserError
from yayan.model.folder import MODEL_TYPES, read_json

EngineName = Literal["auto", "llamacpp", "torch", "vllm"]


def choose_engine(wanted: EngineName, model: Path) -> tuple[EngineName, str]:
    """The engine's name and the reason. Raises UserError where there is no such model."""
    if wanted != "auto":
        return wanted, "asked for"
    if not model.exists():
        raise UserError("there is no such model", where=model, cure="name a model folder or a .gguf file")
    if not (model / "config.json").is_file():
        return "llamacpp", "a GGUF file is its own format"
    config = read_json(model / "config.json")
    if "quantization_config" in config:
        return "torch", "the folder holds quantised weights, which are not written as GGUF"
    if config.get("model_type") not in MODEL_TYPES:
        return "torch", f"models of type {config.get('model_type')} are not written as GGUF"
    return "llamacpp", "several answers at once, from an F16 GGUF that is made once"
