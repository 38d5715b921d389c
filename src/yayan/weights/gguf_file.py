"""A model folder of the LLaMA family as one GGUF file: hyperparameters, tokens, and the tensors one by one.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Shapes: H heads, K half a head, C columns.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from gguf import GGML_QUANT_VERSION, GGUFWriter, RopeScalingType

from yayan.errors import UserError
from yayan.machine import one_thread_each
from yayan.model.folder import INPUT_END, OUTPUT_END, read_config
from yayan.model.longer import window_of
from yayan.model.rope import frequencies, head_width, plain, rope_of
from yayan.model.size import size_of
from yayan.progress import Progress
from yayan.tokenizer import Tokenizer
from yayan.weights.gguf_tokens import TokenTable, read_tokenizer, write_tokens
from yayan.weights.quantize import FILE_TYPES, BlockType, FileType, block_type, quantize_blocks, row_bytes
from yayan.weights.stream import TensorSource, open_tensors, refuse_full_disk

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
Importance = Mapping[str, np.ndarray]
ROPE_FACTORS = "rope_freqs.weight"  # what llama.cpp divides each frequency by; its `llama` alone reads them


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


def write_gguf(
    model: Path, path: Path, file_type: FileType, importance: Importance | None = None
) -> dict[str, object]:
    """`write_gguf_files` for one file."""
    return write_gguf_files(model, {file_type: path}, importance)[file_type]


def write_gguf_files(
    model: Path, paths: Mapping[FileType, Path], importance: Importance | None = None
) -> dict[FileType, dict[str, object]]:
    """Write a model folder as one file a type in one pass over its tensors, of which one is held in memory.

    `importance`: by name of a matrix, how much an error of each of its columns counts. Returns bytes, bits a weight and
    tensors a type of each file. Raises UserError as `plan_file` does, or if a weight does not fit a type, WorkError if
    the disk has not enough room for all files.
    """
    first = plan_file(model, next(iter(paths)), weighted=bool(importance))
    plans = {kind: first.of_type(kind, weighted=bool(importance)) for kind in paths}
    needed = {kind: sum(item.bytes for item in plan.tensors) for kind, plan in plans.items()}
    refuse_full_disk(next(iter(paths.values())).parent, sum(needed.values()))
    writers = {kind: begin_file(model, path, kind, plans[kind]) for kind, path in paths.items()}
    write_tensors([(writers[kind], plans[kind]) for kind in paths], importance or {})
    return {
        kind: {
            "bytes": path.stat().st_size,
            "bits_per_weight": round(8 * needed[kind] / sum(prod(i.shape) for i in plans[kind].tensors), 3),
            "tensors": dict(Counter(item.kind.name for item in plans[kind].tensors)),
        }
        for kind, path in paths.items()
    }


def begin_file(model: Path, path: Path, file_type: FileType, plan: PlannedFile) -> GGUFWriter:
    """A file with all but the values of its tensors."""
    writer = GGUFWriter(path, ARCHITECTURES[plan.config["model_type"]])
    writer.add_name(model.resolve().name)
    writer.add_file_type(FILE_TYPES[file_type])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    write_hyperparameters(writer, plan.config)
    write_tokens(writer, plan.tokenizer, plan.tokens, plan.rows)
    factors = rope_factors(plan.config)
    if factors is not None:
        writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
    for item in plan.tensors:
        writer.add_tensor_info(item.name, item.shape, np.dtype(np.float32), item.bytes, raw_dtype=item.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    return writer


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


def rope_factors(config: dict[str, Any]) -> np.ndarray | None:
    """What Llama 3's way divides the plain frequencies by, float32; None for what llama.cpp computes itself."""
    rope, width = rope_of(config), head_width(config)
    if rope["rope_type"] != "llama3":
        return None
    freqs_K, _ = frequencies(rope, width, config["max_position_embeddings"])
    return (plain(rope["rope_theta"], width) / freqs_K).numpy()


def write_hyperparameters(writer: GGUFWriter, config: dict[str, Any]) -> None:
    heads, rope = heads_of(config), rope_of(config)
    width = head_width(config)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads["attn_q"])
    writer.add_head_count_kv(heads["attn_k"])
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def write_tensors(files: Sequence[tuple[GGUFWriter, PlannedFile]], importance: Importance) -> None:
    """Write each tensor, as it is read, into all files (which differ in nothing but types), and close them."""
    plan = files[0][1]
    heads, paired = heads_of(plan.config), ARCHITECTURES[plan.config["model_type"]] in PAIRED
    names = ", ".join(str(writer.path) for writer, _ in files)
    megabytes = sum(item.bytes for _, plan in files for item in plan.tensors) / 1e6
    with one_thread_each() as workers, Progress(f"write {names}", total=megabytes, unit="MB") as bar:
        for number, item in enumerate(plan.tensors):
            tensor = plan.source.read(item.source)
            module = item.name.split(".")[-2]
            if paired and module in heads:
                tensor = interleave_halves(tensor, heads[module])
            matrix = tensor if tensor.dim() == 2 else tensor[None]
            for writer, own in files:
                planned = own.tensors[number]
                blocks = quantize_blocks(matrix, planned.kind, importance.get(item.source), workers)
                writer.write_tensor_data(InBlocks(planned.bytes, blocks))
                bar.advance(planned.bytes / 1e6)
    for writer, _ in files:
        writer.close()


@dataclass(frozen=True)
class InBlocks:
    """What `GGUFWriter` asks of an array, made while it is written."""

    nbytes: int
    blocks: Iterable[np.ndarray]

    def tofile(self, file: IO[bytes]) -> None:
        for block in self.blocks:
            file.write(block.data)


def interleave_halves(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from the order of `transformers` (first halves, then second halves) to ggml's pairs.

    RoPE of `transformers` turns row i of a head with row i + K, that of ggml's `llama` rows 2i and 2i + 1.
    """
    halves_H2KC = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, -1)
    return halves_H2KC.transpose(1, 2).reshape(tensor.shape)
