"""What a GGUF file of a model folder will hold: known from its headers, before anything is written."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from yayan.errors import UserError
from yayan.model.folder import INPUT_END, OUTPUT_END, read_config
from yayan.model.longer import window_of
from yayan.model.rope import rope_of
from yayan.model.size import size_of
from yayan.tokenizer import Tokenizer
from yayan.weights.gguf_tokens import TokenTable, read_tokenizer
from yayan.weights.quantize import BlockType, FileType, block_type, row_bytes
from yayan.weights.stream import TensorSource, open_tensors

OUTSIDE_LAYERS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}  # llama.cpp's names
PAIRED = (
    "llama",
)  # those in which RoPE turns neighbours, not a row of the first half with one of the second
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}  # qwen3 alone has them
INSIDE_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor: where it is found, and what it becomes."""

    source: str
    name: str
    shape: tuple[int, ...]
    kind: BlockType

    @property
    def bytes(self) -> int:
        return prod(self.shape[:-1]) * row_bytes(self.shape[-1], self.kind)


@dataclass(frozen=True)
class PlannedFile:
    """All that a GGUF file will hold; only headers were read to know it."""

    config: dict[str, Any]
    source: TensorSource
    tensors: list[PlannedTensor]
    tokenizer: Tokenizer
    tokens: TokenTable
    rows: int

    def of_type(self, file_type: FileType, *, weighted: bool) -> "PlannedFile":
        """The same model in another type."""
        return replace(self, tensors=plan_tensors(self.source, self.config, file_type, weighted=weighted))


def plan_file(model: Path, file_type: FileType, *, weighted: bool = False) -> PlannedFile:
    """Find out what a file will hold. Raises UserError unless the folder is a whole model that GGUF can say."""
    config = read_config(model)
    family = config["model_type"]
    if config.get("hidden_act", "silu") != "silu":
        what = f"a model of type {family} with {config['hidden_act']} cannot be written as GGUF"
        raise UserError(what, where=model / "config.json", cure="those with silu can")
    window = window_of(config)
    if window and window < config["max_position_embeddings"]:
        what = f"llama.cpp computes a model of type {family} without its sliding window of {window}"
        cure = f"set max_position_embeddings to {window}, or sliding_window to null, in a copy"
        raise UserError(what, where=model / "config.json", cure=cure)
    if "rms_norm_eps" not in config:
        what = "the configuration has no rms_norm_eps"
        raise UserError(what, where=model / "config.json", cure="fetch or make the folder again")
    refuse_rope(config, model / "config.json")
    source = open_tensors(model)
    if source.pickled:
        what = "the weights are older .bin files, which only merge and grow read"
        raise UserError(what, where=model, cure="merge its adapter first, or save it as safetensors")
    tensors = plan_tensors(source, config, file_type, weighted=weighted)
    rows = source.shape(INPUT_END)[0]
    tokenizer, tokens = read_tokenizer(model, rows)
    return PlannedFile(config, source, tensors, tokenizer, tokens, rows)


def weights_bytes(config: dict[str, Any], file_type: FileType) -> int:
    """Bytes of the matrices of a `llama` model in a file of a type, from its configuration alone."""
    size, heads = size_of(config), heads_of(config)
    shared, tied = heads["attn_q"] // heads["attn_k"], size.ends == 1
    matrices = [("token_embd.weight", (size.rows, size.width))]
    matrices += [] if tied else [("output.weight", (size.rows, size.width))]
    modules = [name for name in INSIDE_LAYER.values() if not name.endswith("_norm")]
    for layer in range(size.layers):
        names = [f"blk.{layer}.{module}.weight" for module in modules]
        matrices += zip(names, size.projections, strict=True)
    return sum(
        rows
        * row_bytes(
            columns, block_type(name, columns, file_type, size.layers, tied=tied, shared_heads=shared)
        )
        for name, (rows, columns) in matrices
    )


def plan_tensors(
    source: TensorSource, config: dict[str, Any], file_type: FileType, *, weighted: bool = False
) -> list[PlannedTensor]:
    """Each tensor's name and type in the file. Tied ends have no output.weight: llama.cpp takes token_embd.weight."""
    tied = bool(config.get("tie_word_embeddings"))
    layers, heads = config["num_hidden_layers"], heads_of(config)
    shared = heads["attn_q"] // heads["attn_k"]
    # a table that old checkpoints carry, and a second copy of the embedding, are left out
    names = [name for name in source.names() if not name.endswith("rotary_emb.inv_freq")]
    names = [name for name in names if not (tied and name == OUTPUT_END)]
    inside = INSIDE_LAYER | (HEAD_NORMS if config["model_type"] == "qwen3" else {})
    refuse_missing(names, layers, inside, tied=tied, where=source.folder)
    tensors = []
    for name in names:
        shape, kind = source.shape(name), BlockType.F32
        if len(shape) == 2:
            kind = block_type(
                gguf_name(name),
                shape[1],
                file_type,
                layers,
                tied=tied,
                shared_heads=shared,
                weighted=weighted,
            )
        tensors.append(PlannedTensor(name, gguf_name(name), shape, kind))
    return tensors


def refuse_missing(
    names: Iterable[str], layers: int, inside: Iterable[str], *, tied: bool, where: Path
) -> None:
    needed = [INPUT_END, "model.norm.weight"] if tied else [INPUT_END, "model.norm.weight", OUTPUT_END]
    needed += [f"model.layers.{layer}.{module}.weight" for layer in range(layers) for module in inside]
    missing = sorted(set(needed) - set(names))
    if missing:
        raise UserError(f"the model has no {missing[0]}", where=where, cure="fetch or make the folder again")


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`."""
    module, _, suffix = name.rpartition(".")
    if module in OUTSIDE_LAYERS:
        return f"{OUTSIDE_LAYERS[module]}.{suffix}"
    found, inside = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module), INSIDE_LAYER | HEAD_NORMS
    if found is None or found[2] not in inside:
        raise UserError(f"GGUF has no place for the tensor {name}", cure="give a merged model")
    return f"blk.{found[1]}.{inside[found[2]]}.{suffix}"


def heads_of(config: Mapping[str, Any]) -> dict[str, int]:
    """Number of heads of the two projections that RoPE turns."""
    heads = config["num_attention_heads"]
    return {"attn_q": heads, "attn_k": config.get("num_key_value_heads") or heads}


def refuse_rope(config: dict[str, Any], where: Path) -> None:
    """UserError for settings of RoPE that llama.cpp would compute otherwise than `transformers`."""
    kind, family = rope_of(config)["rope_type"], config["model_type"]
    if kind == "dynamic":
        cure = "stretch the model that it was made from with --method ntk"
        raise UserError("llama.cpp knows no RoPE that follows the length", where=where, cure=cure)
    if kind == "llama3" and ARCHITECTURES[family] not in PAIRED:
        what = f"llama.cpp reads no frequencies of Llama 3's kind in a model of type {family}"
        raise UserError(what, where=where, cure="stretch it with --method yarn, ntk or pi")
