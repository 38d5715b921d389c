"""How many tokens a second does training take in, and in how much memory, against the usual stack?

Question  Tokens a second and anonymous memory of `yayan pretrain`, for three shapes and two ways of training.
Peer      Trainer of `transformers` with `peft`, set as the reference project sets them: LoRA of rank 64 on the seven
          projections, embedding and head whole in modules_to_save, bfloat16, no padding, no checkpointing. `lora`:
          what is trained is float32 on both sides, as DeepSpeed keeps it there; `lora16`: the peer's whole embedding
          and head and their moments stay in bfloat16, as `peft` leaves them without it (ours are float32 always).
          `low-rank`: no row whole, LoRA on both ends as well.
Limit     The operations that a token costs over this machine's own rate in square products, in the same format.
Command   python benchmarks/train.py --data DATA --out OUT [--shape A --way lora --dtype bfloat16]
          on a GPU: python benchmarks/train.py --out OUT --shape 7B --way lora lora16 --length 4096 --batch-size 2

Both train the same parameters (lora: the LoRA pairs and all rows of both ends; full: everything) on sequences of
--length tokens: ours whole documents packed by best fit, attention and positions inside them; the peer's the same ids,
cut into blocks, attention over their borders, as the reference does it. AdamW on both sides. They take turns, each in a
process of its own; a rate is that of the fastest turn, of its steps behind the first two. Memory is the peak of
anonymous memory of the whole process, on a GPU what torch allocated there. `predicted`: what `yayan check` says. The
weights are random: no figure here says how well anything was learned; without --data the built-in sample is read again
and again.
Where we expect to lose: nothing is won where the body is large and the vocabulary small, since both call the same
matrix products; --vocabulary 32000 shows it.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from processes import Usage, measure, parser_of, refuse_busy_machine, yayan
from transformers import LlamaConfig, LlamaForCausalLM

from yayan.corpus.shards import Shards
from yayan.machine import DTYPES, device, matmul_rate
from yayan.model.size import PROJECTIONS, TrainingCost, size_of, training_cost
from yayan.train.forecast import measure_speeds

SHAPES: Mapping[str, Mapping[str, int]] = {  # and steps that are timed
    "A": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 688},
    "B": {"hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 16, "intermediate_size": 2752},
    "C": {"hidden_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 32, "intermediate_size": 11008},
    "7B": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
    },
}
WAYS = ("lora", "lora16", "full")
STEPS = {"A": 16, "B": 8, "C": 5, "7B": 12}
WARM = 2  # steps that are not timed
RANK, ALPHA = 64, 128
SAMPLE_PIECES = (
    4096  # of a tokenizer learnt from the built-in sample; the model has --vocabulary rows all the same
)


def main() -> None:
    options = read_arguments()
    if options.as_peer:
        run_peer(options)
        return
    refuse_busy_machine(options.most_load)
    options.out.mkdir(parents=True, exist_ok=True)
    rate = matmul_rate(DTYPES[options.dtype], seconds=5)
    print(
        f"{options.dtype}, sequences of {options.length}, vocabulary {options.vocabulary:,}, square products at",
        end=" ",
    )
    print(f"{rate / 1e9:,.0f} GFLOP/s, {torch.get_num_threads()} threads", flush=True)
    print(
        "| shape | trained | batch | ours, tokens/s | peer | ours / peer | of the matmul rate: ours | peer |",
        end="",
    )
    print(
        " memory, MB: ours | predicted | peer | tokens/s predicted |\n|" + " --- |" * 2 + " ---: |" * 10,
        flush=True,
    )
    for shape in options.shape:
        for way in options.way:
            print(row(options, shape, way, rate), flush=True)


def read_arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, help="folder of the corpora and tokenizers")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["A", "B", "C"])
    parser.add_argument("--way", nargs="+", choices=(*WAYS, "low-rank"), default=WAYS)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--vocabulary", type=int, default=55_296)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--as-peer", type=Path, help=argparse.SUPPRESS)  # the model
    return parser.parse_args()


def row(options: argparse.Namespace, shape: str, way: str, rate: float) -> str:
    """Both sides in turns."""
    model, shards = prepare(options, shape)
    steps = STEPS[shape]
    ours: list[tuple[float, Usage]] = []
    peers: list[tuple[float, Usage]] = []
    for _ in range(options.runs):
        ours.append(run_ours(options, model, shards, way, steps))
        if not options.ours_only:
            words = ["--as-peer", model, "--out", options.out, "--way", way, "--dtype", options.dtype]
            words += ["--batch-size", options.batch_size, "--shape", shape]
            words += ["--vocabulary", options.vocabulary, "--length", options.length]
            usage = measure([sys.executable, __file__, *words])
            found = json.loads((options.out / "peer.json").read_text())
            usage.peak_bytes = found["gpu_bytes"] or usage.peak_bytes
            peers.append((found["tokens_per_second"], usage))
    cost = cost_of(model, way, options)
    best = [max(side, key=lambda run: run[0]) for side in (ours, peers) if side]
    speeds = [run[0] for run in best]
    memory = [min(run[1].peak_bytes for run in side) for side in (ours, peers) if side]
    shares = [f"{speed * cost.flops_per_token / rate:.0%}" for speed in speeds]
    columns = [[f"{speed:,.0f}" for speed in speeds], shares, [f"{size / 1e6:,.0f}" for size in memory]]
    (speed, *peer_speed), (share, *peer_share), (held, *peer_held) = columns
    ratio = [f"{speeds[0] / speeds[1]:.2f}"] if peers else []
    one = [speed, *(peer_speed or [""]), *(ratio or [""]), share, *(peer_share or [""])]
    predicted = 1 / measure_speeds(options.dtype).seconds_per_token(cost, options.batch_size * options.length)
    cells = [*one, held, f"{cost.memory_bytes / 1e6:,.0f}", *(peer_held or [""]), f"{predicted:,.0f}"]
    return f"| {shape} | {way} | {options.batch_size} x {options.length} | {' | '.join(cells)} |"


def cost_of(model: Path, way: str, options: argparse.Namespace) -> TrainingCost:
    """Operations for each token, by count, and the memory that `yayan check` predicts for ours."""
    size = size_of(json.loads((model / "config.json").read_text()))
    whole, low_rank = way == "full", way == "low-rank"
    return training_cost(
        size,
        trained_body=size.body_parameters if whole else size.lora_parameters(RANK),
        trained_rows=0 if low_rank else size.rows,
        updates=RANK * (size.rows + size.width) if low_rank else 0,
        whole_body=whole,
        dtype=options.dtype,
        positions=options.batch_size * options.length,
        sequence_length=options.length,
        device_type=device().type,
    )


def prepare(options: argparse.Namespace, shape: str) -> tuple[Path, Path]:
    """A random model of the shape with a tokenizer that was made for the corpus, and shards; kept for the next call."""
    rows = max(options.vocabulary, 32_001)
    tokenizer, shards = (options.out / f"{name}-{options.vocabulary}" for name in ("tokenizer", "shards"))
    if options.data:
        names = ("zh-lctt-tech", "zh-juejin", "zh-weekly")
        corpus: list[object] = [options.data / name / "train.jsonl.xz" for name in names]
        base = ["--base", options.data.parent / "base" / "en-base-21m", "--size", rows]
    else:
        corpus, base = ["sample:zh-train.jsonl", "sample:en-train.jsonl"], ["--size", SAMPLE_PIECES]
    yayan("vocab", *base, "--corpus", *corpus, "--out", tokenizer)
    yayan("pack", "--tokenizer", tokenizer, "--corpus", *corpus[-2:], "--out", shards)
    model = options.out / f"model-{shape}-{options.vocabulary}"
    if not (model / "config.json").exists():
        config = LlamaConfig(
            vocab_size=rows, max_position_embeddings=max(options.length, 2048), **SHAPES[shape]
        )
        torch.manual_seed(1)
        with torch.device(device()):
            random = LlamaForCausalLM(config)
        random.to(torch.bfloat16).save_pretrained(model)
        for file in tokenizer.glob("token*"):
            (model / file.name).write_bytes(file.read_bytes())
    return model, shards


def run_ours(
    options: argparse.Namespace, model: Path, shards: Path, way: str, steps: int
) -> tuple[float, Usage]:
    """Tokens a second of the steps behind the first ones, and what the process took."""
    out = options.out / "ours"
    train = [
        "--train",
        "full" if way == "full" else "lora",
        "--rows",
        "low-rank" if way == "low-rank" else "all",
        "--rank",
        RANK,
        "--alpha",
        ALPHA,
        "--dtype",
        options.dtype,
    ]
    sizes = [
        "--sequence-length",
        options.length,
        "--batch-size",
        options.batch_size,
        "--steps",
        steps,
        "--save-minutes",
        60,
    ]
    usage = yayan("pretrain", "--again", "--model", model, "--shards", shards, "--out", out, *train, *sizes)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    metrics = json.loads((out / "yayan.json").read_text())["metrics"]
    usage.peak_bytes = metrics.get("gpu_bytes", usage.peak_bytes)
    return rate_of([line["seconds"] for line in lines], options.batch_size * options.length), usage


def rate_of(ends: Sequence[float], tokens_per_step: int) -> float:
    """Tokens a second from the seconds at which steps ended."""
    return tokens_per_step * (len(ends) - WARM) / (ends[-1] - ends[WARM - 1])


def run_peer(options: argparse.Namespace) -> None:
    """The usual stack; writes its rate."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments

    (shape,), (way,) = options.shape, options.way
    half = options.dtype == "bfloat16"
    dtype = torch.bfloat16 if half and way != "full" else torch.float32
    model: Any = LlamaForCausalLM.from_pretrained(options.as_peer, dtype=dtype)
    if way != "full":
        ends = ["embed_tokens", "lm_head"]
        pairs, whole = ([*PROJECTIONS, *ends], None) if way == "low-rank" else (list(PROJECTIONS), ends)
        settings = {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "target_modules": pairs}
        model = get_peft_model(model, LoraConfig(TaskType.CAUSAL_LM, modules_to_save=whole, **settings))
    for value in model.parameters():
        if value.requires_grad and way in ("lora", "low-rank"):
            value.data = value.data.float()
    ends_of_steps: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            ends_of_steps.append(time.monotonic())

    ids = Shards.open(options.out / f"shards-{options.vocabulary}").ids
    steps = STEPS[shape]
    blocks = np.resize(ids, (steps * options.batch_size, options.length)).astype(np.int64)
    examples = [{"input_ids": block, "labels": block.clone()} for block in torch.from_numpy(blocks)]
    arguments = TrainingArguments(
        output_dir=str(options.out / "peer"),
        per_device_train_batch_size=options.batch_size,
        max_steps=steps,
        learning_rate=2e-4,
        weight_decay=0.0,
        bf16=half,
        use_cpu=device().type == "cpu",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_num_workers=0,
    )
    Trainer(model=model, args=arguments, train_dataset=examples, callbacks=[Clock()]).train()
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    rate = rate_of(ends_of_steps, options.batch_size * options.length)
    gpu = torch.cuda.max_memory_allocated() if device().type == "cuda" else None
    found = {"tokens_per_second": rate, "trained": trained, "gpu_bytes": gpu}
    (options.out / "peer.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
