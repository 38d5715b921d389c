"""A llama model in the layout of Meta's own releases: consolidated.00.pth, ... and params.json.

Their RoPE turns neighbouring rows of a head, that of `transformers` a row of the first half with one of the second; a
model of more than one rank is split as tensor parallelism wants it (https://github.com/meta-llama/llama, model.py).
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from yayan.errors import UserError
from yayan.model.folder import INPUT_END, OUTPUT_END, read_config, write_json
from yayan.model.rope import rope_of
from yayan.progress import Progress
from yayan.weights.gguf_file import interleave_halves
from yayan.weights.gguf_plan import heads_of
from yayan.weights.stream import TensorSource, TensorSpec, TensorWriter, open_tensors

RANKS_OF_WIDTH = {5120: 2, 6656: 4, 8192: 8}  # as Meta released them; other widths are one file
MULTIPLE_OF = 256
ROWS, COLUMNS = 0, 1  # the axis along which ranks share a matrix
OUTSIDE = {
    "model.embed_tokens": ("tok_embeddings", COLUMNS),
    "model.norm": ("norm", None),
    "lm_head": ("output", ROWS),
}
INSIDE = {
    "self_attn.q_proj": ("attention.wq", ROWS),
    "self_attn.k_proj": ("attention.wk", ROWS),
    "self_attn.v_proj": ("attention.wv", ROWS),
    "self_attn.o_proj": ("attention.wo", COLUMNS),
    "mlp.gate_proj": ("feed_forward.w1", ROWS),
    "mlp.down_proj": ("feed_forward.w2", COLUMNS),
    "mlp.up_proj": ("feed_forward.w3", ROWS),
    "input_layernorm": ("attention_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
}
TURNED = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k"}


def refuse_beyond_layout(config: Mapping[str, Any], names: list[str], where: Path) -> None:
    """UserError for a model that Meta's layout cannot say: another family, biases, a scaled RoPE, uneven ranks."""
    cure = "write safetensors, which every program of today reads"
    if config["model_type"] != "llama":
        raise UserError(f"Meta's layout has no model of type {config['model_type']}", where=where, cure=cure)
    if odd := [name for name in names if name.endswith(".bias")]:
        raise UserError(f"Meta's layout has no place for {odd[0]}", where=where, cure=cure)
    if (kind := rope_of(config)["rope_type"]) != "default":
        raise UserError(f"Meta's layout cannot say RoPE of type {kind}", where=where, cure=cure)
    ranks = RANKS_OF_WIDTH.get(config["hidden_size"], 1)
    heads = heads_of(config)
    if any(count % ranks for count in heads.values()):
        what = f"{heads['attn_k']} key heads cannot be shared by {ranks} files"
        raise UserError(what, where=where, cure=cure)


def write_meta_layout(model: Path, out: Path) -> list[Path]:
    """Write a model folder as consolidated.NN.pth and params.json; returns the files of weights.

    What is neither turned nor split is written straight from the mapped file; the rest goes through a scratch file, so
    that no rank is held in memory. Raises UserError as `refuse_beyond_layout` does.
    """
    config, source = read_config(model), open_tensors(model)
    refuse_beyond_layout(config, source.names(), model)
    ranks = RANKS_OF_WIDTH.get(config["hidden_size"], 1)
    paths = [out / f"consolidated.{rank:02}.pth" for rank in range(ranks)]
    scratch = out / "scratch"
    with Progress("write Meta's layout", total=ranks, unit="files") as bar:
        for rank, path in enumerate(paths):
            scratch.mkdir(exist_ok=True)
            torch.save(parts_of_rank(config, source, rank, ranks, scratch), path)
            shutil.rmtree(scratch)
            bar.advance()
    write_json(out / "params.json", parameters(config))
    return paths


def parts_of_rank(
    config: Mapping[str, Any], source: TensorSource, rank: int, ranks: int, scratch: Path
) -> dict[str, torch.Tensor]:
    """The tensors of one file, all of them mapped from the disk."""
    places = dict(placed(source.names(), tied=OUTPUT_END not in source.specs))
    parts = {name: part(source.read(origin), axis, rank, ranks) for name, (origin, axis) in places.items()}
    heads = {name: turned_heads(origin, config) for name, (origin, _) in places.items()}
    changed = [name for name in places if heads[name] or ranks > 1]
    if changed:
        plan = {name: TensorSpec(tuple(parts[name].shape), parts[name].dtype) for name in changed}
        with TensorWriter(scratch, plan) as writer:
            for name in changed:
                origin, axis = places[name]
                whole = source.read(origin)
                turned = interleave_halves(whole, heads[name]) if heads[name] else whole
                writer.add(name, part(turned, axis, rank, ranks))
        written = open_tensors(scratch)
        parts |= {name: written.read(name) for name in changed}
    return parts


def placed(names: list[str], *, tied: bool) -> Iterator[tuple[str, tuple[str, int | None]]]:
    """Meta's name of each tensor, its name here, and the axis along which ranks share it."""
    for name in names:
        module = name.removesuffix(".weight")
        if module in OUTSIDE:
            meta, axis = OUTSIDE[module]
            yield f"{meta}.weight", (name, axis)
        elif module.startswith("model.layers."):
            layer, _, inside = module.removeprefix("model.layers.").partition(".")
            meta, axis = INSIDE[inside]
            yield f"layers.{layer}.{meta}.weight", (name, axis)
    if tied:
        yield "output.weight", (INPUT_END, ROWS)


def turned_heads(name: str, config: Mapping[str, Any]) -> int:
    """The heads of a matrix that RoPE turns, 0 for any other."""
    inside = name.removesuffix(".weight").partition("model.layers.")[2].partition(".")[2]
    return heads_of(config)[TURNED[inside]] if inside in TURNED else 0


def part(tensor: torch.Tensor, axis: int | None, rank: int, ranks: int) -> torch.Tensor:
    """A rank's part of a tensor, as a view; the last one has what is left over, and without an axis each has it all."""
    if axis is None:
        return tensor
    start, size = rank * (tensor.shape[axis] // ranks), tensor.shape[axis] // ranks
    return tensor.narrow(axis, start, tensor.shape[axis] - start if rank == ranks - 1 else size)


def parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """params.json; vocab_size is -1, as Meta's is: the tokenizer says it."""
    heads, width = heads_of(config), config["hidden_size"]
    known: dict[str, Any] = {
        "dim": width,
        "n_layers": config["num_hidden_layers"],
        "n_heads": heads["attn_q"],
        "norm_eps": config["rms_norm_eps"],
        "vocab_size": -1,
    }
    if heads["attn_k"] != heads["attn_q"]:
        known["n_kv_heads"] = heads["attn_k"]
    if (theta := rope_of(config)["rope_theta"]) != 10000.0:
        known["rope_theta"] = theta
    usual, wanted = int(8 * width / 3), config["intermediate_size"]
    if -(-usual // MULTIPLE_OF) * MULTIPLE_OF == wanted:
        return known | {"multiple_of": MULTIPLE_OF}
    # hidden = int(multiplier * int(8 dim / 3)), rounded up to a multiple of multiple_of
    return known | {"multiple_of": 1, "ffn_dim_multiplier": (wanted + 0.5) / usual}
