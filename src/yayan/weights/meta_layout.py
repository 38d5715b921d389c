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
from yayan.progress import Progress
from yayan.weights.gguf_file import heads_of, interleave_halves, rope_of
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
    if (kind := rope_of(dict(config))["rope_type"]) != "default":
        raise UserError(f"Meta's layout cannot say RoPE of type {kind}", where=where, cure=cure)
    ranks = RANKS_OF_WIDTH.get(config["hidden_size"], 1)
    heads = heads_of(dict(config))
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
    copied = {name: place for name, place in places.items() if turned_heads(place[0], config) or ranks > 1}
    plan = {}
    for name, (origin, axis) in copied.items():
        shape = list(source.shape(origin))
        if axis is not None:
            start, end = share(shape[axis], rank, ranks)
            shape[axis] = end - start
        plan[name] = TensorSpec(tuple(shape), source.dtype(origin))
    if plan:
        with TensorWriter(scratch, plan) as writer:
            for name, (origin, axis) in copied.items():
                tensor = source.read(origin)
                if heads := turned_heads(origin, config):
                    tensor = interleave_halves(tensor, heads)
                if axis is not None:
                    start, end = share(tensor.shape[axis], rank, ranks)
                    tensor = tensor.narrow(axis, start, end - start)
                writer.add(name, tensor)
    changed = open_tensors(scratch) if plan else None
    return {
        name: changed.read(name) if changed and name in copied else source.read(origin)
        for name, (origin, _) in places.items()
    }


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
    return heads_of(dict(config))[TURNED[inside]] if inside in TURNED else 0


def share(size: int, rank: int, ranks: int) -> tuple[int, int]:
    """Where a rank's part begins and ends; the last one has what is left over."""
    part = size // ranks
    return rank * part, size if rank == ranks - 1 else (rank + 1) * part


def parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """params.json; vocab_size is -1, as Meta's is: the tokenizer says it."""
    heads, width = heads_of(dict(config)), config["hidden_size"]
    known: dict[str, Any] = {
        "dim": width,
        "n_layers": config["num_hidden_layers"],
        "n_heads": heads["attn_q"],
        "norm_eps": config["rms_norm_eps"],
        "vocab_size": -1,
    }
    if heads["attn_k"] != heads["attn_q"]:
        known["n_kv_heads"] = heads["attn_k"]
    if (theta := rope_of(dict(config))["rope_theta"]) != 10000.0:
        known["rope_theta"] = theta
    usual, wanted = int(8 * width / 3), config["intermediate_size"]
    if -(-usual // MULTIPLE_OF) * MULTIPLE_OF == wanted:
        return known | {"multiple_of": MULTIPLE_OF}
    # hidden = int(multiplier * int(8 dim / 3)), rounded up to a multiple of multiple_of
    return known | {"multiple_of": 1, "ffn_dim_multiplier": (wanted + 0.5) / usual}
