"""A model folder of the LLaMA family as one GGUF file: hyperparameters, tokens, and the tensors one by one.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Shapes: H heads, K half a head, C columns.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_VERSION, GGUF_DEFAULT_ALIGNMENT, GGUFWriter, RopeScalingType

from yayan.machine import one_thread_each
from yayan.model.rope import frequencies, head_width, plain, rope_of
from yayan.progress import Progress
from yayan.weights.gguf_plan import ARCHITECTURES, PAIRED, PlannedFile, heads_of, plan_file
from yayan.weights.gguf_tokens import write_tokens
from yayan.weights.quantize import FILE_TYPES, FileType, quantize_blocks
from yayan.weights.stream import refuse_full_disk
from yayan.weights.written_file import WrittenFile

Importance = Mapping[str, np.ndarray]
ROPE_FACTORS = "rope_freqs.weight"  # what llama.cpp divides each frequency by; its `llama` alone reads them


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
    with ExitStack() as opened:
        files = {
            kind: opened.enter_context(closing(begin_file(model, path, kind, plans[kind])))
            for kind, path in paths.items()
        }
        write_tensors([(files[kind], plans[kind]) for kind in paths], importance or {})
    return {
        kind: {
            "bytes": path.stat().st_size,
            "bits_per_weight": round(8 * needed[kind] / sum(prod(i.shape) for i in plans[kind].tensors), 3),
            "tensors": dict(Counter(item.kind.name for item in plans[kind].tensors)),
        }
        for kind, path in paths.items()
    }


def begin_file(model: Path, path: Path, file_type: FileType, plan: PlannedFile) -> WrittenFile:
    """A file with all but the values of the model's tensors."""
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
    writer.close()
    beginning = path.read_bytes()
    file = WrittenFile(path)
    file.append(beginning)
    return file


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


def write_tensors(files: Sequence[tuple[WrittenFile, PlannedFile]], importance: Importance) -> None:
    """Write each tensor, as it is read, into all files (which differ in nothing but types), and finish them."""
    plan = files[0][1]
    heads, paired = heads_of(plan.config), ARCHITECTURES[plan.config["model_type"]] in PAIRED
    names = ", ".join(str(file.path) for file, _ in files)
    megabytes = sum(item.bytes for _, plan in files for item in plan.tensors) / 1e6
    with one_thread_each() as workers, Progress(f"write {names}", total=megabytes, unit="MB") as bar:
        for number, item in enumerate(plan.tensors):
            tensor = plan.source.read(item.source)
            module = item.name.split(".")[-2]
            if paired and module in heads:
                tensor = interleave_halves(tensor, heads[module])
            matrix = tensor if tensor.dim() == 2 else tensor[None]
            for file, own in files:
                file.align(GGUF_DEFAULT_ALIGNMENT)
                planned = own.tensors[number]
                for block in quantize_blocks(matrix, planned.kind, importance.get(item.source), workers):
                    file.append(block.data.cast("B"))
                bar.advance(planned.bytes / 1e6)
    for file, _ in files:
        file.align(GGUF_DEFAULT_ALIGNMENT)
        file.finish()


def interleave_halves(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from the order of `transformers` (first halves, then second halves) to ggml's pairs.

    RoPE of `transformers` turns row i of a head with row i + K, that of ggml's `llama` rows 2i and 2i + 1.
    """
    halves_H2KC = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, -1)
    return halves_H2KC.transpose(1, 2).reshape(tensor.shape)
