"""Which engine answers: llama.cpp where it can, torch for what only it has."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from yayan.errors import UserError
from yayan.model.folder import Context, choose_context, context_of

if TYPE_CHECKING:  # torch and llama.cpp are imported when one of them is opened
    from yayan.engine.llamacpp import LlamaCpp
    from yayan.engine.torch import TorchEngine

Engine = Literal["auto", "llamacpp", "torch"]
TORCH_ONLY = ("dtype", "quantize", "draft_length")
LOOKUP = "lookup"  # a draft that is no model: what followed the last time
LLAMACPP_ONLY = ("host", "port", "api_key", "parallel", "exact", "kv_cache", "adapters")
KvCache = Literal["16bit", "8bit", "4bit"]  # numbers of keys and values


@dataclass(frozen=True)
class Choice:
    """An engine and why it, in one clause."""

    engine: Literal["llamacpp", "torch"]
    why: str


def choose_engine(model: Path, engine: Engine = "auto", *, guidance: bool = False, **settings: Any) -> Choice:
    """The engine for a model, `settings` that were asked for (those that are None were not), and perhaps guidance.

    Raises UserError for an unknown engine, or for one that cannot do what was asked.
    """
    if engine not in get_args(Engine):
        raise UserError(f"there is no engine {engine}", cure=f"take one of {', '.join(get_args(Engine))}")
    asked = [name for name in TORCH_ONLY if settings.get(name) is not None] + ["guidance"] * guidance
    asked += ["look-up"] * (settings.get("draft") == LOOKUP)
    served = [name for name in LLAMACPP_ONLY if settings.get(name) is not None]
    folder = (model / "config.json").is_file()
    chosen: Literal["llamacpp", "torch"]
    if engine != "auto":
        chosen, why = engine, "it was asked for"
    elif asked:
        chosen, why = "torch", f"only torch has {asked[0]}"
    elif folder and settings.get("draft"):
        chosen, why = "torch", "its draft guesses as far as it pays, and answers stay exact"
    elif folder and settings.get("context") == "auto":
        chosen, why = "torch", "only torch stretches each request by what it needs"
    elif folder and not served and (reason := reason_against_gguf(model)):
        chosen, why = "torch", f"llama.cpp cannot have this folder, {reason}"
    else:
        chosen, why = "llamacpp", "this folder can be converted, once" if folder else "this is a GGUF file"
    if chosen == "torch" and not folder:
        raise UserError(
            "the torch engine opens model folders", where=model, cure="name the folder it was made from"
        )
    if chosen == "llamacpp" and asked:
        raise UserError(f"llama.cpp has no {asked[0]}", where="engine", cure="use the torch engine")
    if chosen == "torch" and served:
        raise UserError(f"the torch engine has no {served[0]}", where="engine", cure="use llamacpp")
    return Choice(chosen, why)


def positions_of(model: Path, asked: Context = None) -> int:
    """Tokens that a request to a model folder or a GGUF file may have: as asked, else as many as it has positions; with
    "auto" as many as a folder can be stretched to. Raises UserError if it has fewer.
    """
    if not model.is_file():
        return context_of(model, asked)
    if asked == "auto":
        raise no_stretch_of(model)
    from yayan.weights.ggml import read_header

    return choose_context(read_header(model).context, asked, model)


def no_stretch_of(gguf: Path) -> UserError:
    """What is wrong with a context "auto" of a file."""
    cure = "name the folder it was made from, or stretch that (yayan stretch)"
    return UserError("llama.cpp turns all texts as the file says", where=gguf, cure=cure)


def refuse_base_model(template: str | None, name: str) -> None:
    """UserError for a model without a chat template: made up without a word, one would answer with nonsense."""
    if template is None:
        cure = "tune it on chats first (yayan sft), or use a tuned model"
        raise UserError("this is a base model, it continues text and cannot chat", where=name, cure=cure)


def reason_against_gguf(folder: Path) -> str | None:
    """Why a model folder cannot become a GGUF file; None if it can, or did before."""
    from yayan.engine.gguf import cached_gguf
    from yayan.weights.gguf_plan import plan_file

    if cached_gguf(folder).exists():
        return None
    try:
        plan_file(folder, "F16")
    except UserError as error:
        return str(error).rstrip(".")
    return None


def open_engine(
    model: Path, engine: Engine = "auto", *, guidance: bool = False, **settings: Any
) -> "tuple[LlamaCpp | TorchEngine, Choice]":
    """The engine chosen for a model, open, and why it was chosen. Settings that are None are left to the engine."""
    choice = choose_engine(model, engine, guidance=guidance, **settings)
    given = {name: value for name, value in settings.items() if value is not None}
    if choice.engine == "torch":
        from yayan.engine.torch import TorchEngine

        return TorchEngine(model, **given), choice
    from yayan.engine.llamacpp import open_model

    return open_model(model, **given), choice
