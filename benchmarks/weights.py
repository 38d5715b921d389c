"""How long do merging and writing GGUF files take, and in how much memory, whatever the model's size?

Question  Seconds and anonymous memory of `yayan merge` and `yayan gguf` for models of the shapes of 1.3B, 7B and 13B.
Peer      `cp` of the result, synced to the disk: less than reading and writing it once is not to be had.
Limit     For Q4_K_M: the weights that ggml's quantiser makes in a second on all cores, fed from memory.
Command   python benchmarks/weights.py --data DATA --out OUT [--shape 1.3B 7B 13B --keep]

Synthetic models in float16, 55,296 rows, made on the disk one at a time; an adapter of rank 64 on the seven projections
and 23,296 new rows of both ends. Random values; the tokenizer is a real one with pieces that make up the rows. Each
command runs in a process of its own. What it reads, and what `cp` reads, is put out of the page cache before; we write
past it, so that `cp` behind us would read from the disk anyway. 13B wants 80 GB of disk, or 55 without `cp`. Where
we expect to lose: against `cp` always; Q4_K_M takes what ggml takes.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType
from processes import Usage, measure, parser_of, refuse_busy_machine
from safetensors.torch import save_file

from yayan.model.size import PROJECTIONS, size_of
from yayan.weights.ggml import quantize_rows
from yayan.weights.quantize import row_bytes
from yayan.weights.stream import TensorSpec, TensorWriter

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "rms_norm_eps": 1e-5,
    "dtype": "float16",
}
SHAPES = {
    "1.3B": {
        "hidden_size": 4096,
        "num_hidden_layers": 4,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
    },
    "7B": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
    },
    "13B": {
        "hidden_size": 5120,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "intermediate_size": 13824,
    },
}
ROWS, NEW_ROWS, RANK = 55_296, 23_296, 64
BLOCK = 1 << 22  # random values that are repeated


def main() -> None:
    options = read_arguments()
    refuse_busy_machine(options.most_load)
    options.out.mkdir(parents=True, exist_ok=True)
    print("| shape | step | result | seconds | cp of the result | ratio | anonymous memory |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for shape in options.shape:
        folder = options.out / shape
        make_inputs(folder, shape, options.data)
        merged = folder / "merged"
        forget(folder)
        words = [
            "merge",
            "--base",
            folder / "base",
            "--adapter",
            folder / "adapter",
            "--out",
            merged,
            "--again",
        ]
        show(shape, "merge", merged, run(words))
        if not options.keep:
            shutil.rmtree(merged)
        for kind in options.type:
            out = folder / f"gguf-{kind}"
            forget(folder)
            usage = run(["gguf", "--model", folder / "base", "--type", kind, "--out", out, "--again"])
            show(shape, f"gguf {kind}", out, usage)
            if not options.keep:
                shutil.rmtree(out)
        if not options.keep:
            shutil.rmtree(folder)
    print(f"ggml's quantiser alone, Q4_K: {quantiser_rate() / 1e6:.1f} M weights/s on {os.cpu_count()} cores")


def read_arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora and tokenizers")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["1.3B", "7B"])
    parser.add_argument("--type", nargs="*", default=["F16", "Q4_K_M"], help="GGUF files that are written")
    parser.add_argument("--keep", action="store_true", help="do not remove the models")
    return parser.parse_args()


def run(words: list[object]) -> Usage:
    return measure([sys.executable, "-m", "yayan", *words])


def show(shape: str, step: str, out: Path, usage: Usage) -> None:
    size = sum(file.stat().st_size for file in out.iterdir())
    cells = [f"{size / 1e9:.2f} GB", f"{usage.seconds:.1f}"]
    if shutil.disk_usage(out).free > size:
        copied = seconds_of_copy(out)
        cells += [f"{copied:.1f}", f"{usage.seconds / copied:.2f}"]
    else:
        cells += ["no room", ""]
    print(f"| {shape} | {step} | {' | '.join(cells)} | {usage.peak_bytes / 1e6:,.0f} MB |", flush=True)


def seconds_of_copy(folder: Path) -> float:
    """`cp -r` of a folder, until everything is on the disk."""
    target = folder.with_name("copied")
    forget(folder)
    begun = time.monotonic()
    subprocess.run(["cp", "-r", folder, target], check=True)
    subprocess.run(["sync", "-f", target], check=True)
    seconds = time.monotonic() - begun
    shutil.rmtree(target)
    return seconds


def forget(folder: Path) -> None:
    """Put the files of a folder out of the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_inputs(folder: Path, shape: str, data: Path) -> None:
    """Base and adapter; kept for the next call."""
    base, adapter = folder / "base", folder / "adapter"
    if (adapter / "adapter_config.json").exists():
        return
    tokenizer = folder / "tokenizer"
    corpus = [data / name / "train.jsonl.xz" for name in ("zh-lctt-tech", "zh-juejin", "zh-weekly")]
    english = data.parent / "base" / "en-base-21m"
    run(["vocab", "--base", english, "--corpus", *corpus, "--size", ROWS, "--out", tokenizer])
    config = LLAMA | SHAPES[shape] | {"vocab_size": ROWS, "max_position_embeddings": 4096}
    base.mkdir(parents=True, exist_ok=True)
    adapter.mkdir(exist_ok=True)
    (base / "config.json").write_text(json.dumps(config))
    for file in tokenizer.glob("token*"):
        shutil.copy(file, base / file.name)
    plan = dict(tensors_of(config))
    values = values_of()
    with TensorWriter(base, plan) as writer:
        for name, spec in plan.items():
            writer.add(
                name, next(values).repeat(-(-spec.elements // BLOCK))[: spec.elements].view(spec.shape)
            )
    write_adapter(adapter, plan)


def tensors_of(config: dict) -> Iterator[tuple[str, TensorSpec]]:
    size = size_of(config)
    half = torch.float16
    yield "model.embed_tokens.weight", TensorSpec((size.rows, size.width), half)
    for layer in range(size.layers):
        stem = f"model.layers.{layer}"
        for projection, shape in zip(PROJECTIONS, size.projections, strict=True):
            part = "self_attn" if projection in PROJECTIONS[:4] else "mlp"
            yield f"{stem}.{part}.{projection}.weight", TensorSpec(shape, half)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{stem}.{name}.weight", TensorSpec((size.width,), half)
    yield "model.norm.weight", TensorSpec((size.width,), half)
    yield "lm_head.weight", TensorSpec((size.rows, size.width), half)


def values_of() -> Iterator[torch.Tensor]:
    """The same random values in another order each time."""
    values = torch.randn(BLOCK, generator=torch.Generator().manual_seed(1)).mul_(0.02).half()
    shift = 0
    while True:
        yield values.roll(shift)
        shift += 12_345


def write_adapter(folder: Path, plan: dict[str, TensorSpec]) -> None:
    """LoRA of rank 64 on the projections and the new rows of both ends, float32, in PEFT's format."""
    tensors = {}
    for name, spec in plan.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if "_proj" in name:
            tensors[f"{stem}.lora_A.weight"] = torch.full((RANK, spec.shape[1]), 0.01)
            tensors[f"{stem}.lora_B.weight"] = torch.full((spec.shape[0], RANK), 0.01)
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[f"{stem}.token_adapter.trainable_tokens_delta"] = torch.full(
                (NEW_ROWS, spec.shape[1]), 0.01
            )
    save_file(tensors, folder / "adapter_model.safetensors")
    ids = list(range(ROWS - NEW_ROWS, ROWS))
    rows = {"embed_tokens": ids, "lm_head": ids}
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 128, "target_modules": list(PROJECTIONS)}
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"trainable_token_indices": rows}))


def quantiser_rate(seconds: float = 10) -> float:
    """Weights a second of ggml's Q4_K on all cores, from float32 in memory."""
    kind = GGMLQuantizationType.Q4_K
    weight = np.random.default_rng(1).normal(0, 0.02, (64, 4096)).astype(np.float32)

    def work(_: int) -> int:
        out = np.empty((64, row_bytes(4096, kind)), np.uint8)
        done, begun = 0, time.monotonic()
        while time.monotonic() - begun < seconds:
            quantize_rows(weight, out, kind)
            done += weight.size
        return done

    with ThreadPoolExecutor() as pool:
        return sum(pool.map(work, range(os.cpu_count() or 1))) / seconds


if __name__ == "__main__":
    main()
