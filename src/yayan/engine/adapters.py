"""LoRA adapters beside a model in llama.cpp: asked for by name, applied to those requests alone.

llama.cpp begins a conversation anew where the next one in its place asks for another adapter.
"""

from collections.abc import Mapping
from pathlib import Path

import xllamacpp

from yayan.errors import UserError
from yayan.tokenizer import read_template


def templates_of(name: str, template: str | None, adapters: Mapping[str, Path]) -> dict[str, str | None]:
    """Chat templates of the model and of its adapters, which bring their own to a model that has none.

    Raises UserError for an adapter of the model's name, or where there are two templates: a server has one.
    """
    if name in adapters:
        raise UserError(
            f"the model is called {name} itself", where="adapter", cure="give the adapter another name"
        )
    templates = {name: template}
    for adapter, folder in adapters.items():
        templates[adapter] = read_template(folder) or template
        others = {text for text in templates.values() if text is not None}
        if len(others) > 1:
            what = "this adapter was trained with another chat template than the model, or the others"
            raise UserError(what, where=folder, cure="merge it first (yayan merge) and serve it alone")
    return templates


def add_adapters(
    settings: xllamacpp.CommonParams, gguf: Path, adapters: Mapping[str, Path], work: Path
) -> None:
    """Let llama.cpp load adapters, none of which is applied unless a request says so."""
    if not adapters:
        return
    from yayan.weights.gguf_adapter import write_gguf_adapter  # imports torch

    loaded = []
    for number, folder in enumerate(adapters.values()):
        write_gguf_adapter(folder, gguf, work / f"{number}.gguf")
        loaded.append(xllamacpp.CommonAdapterLoraInfo(str(work / f"{number}.gguf"), 0.0))
    settings.lora_adapters = loaded
