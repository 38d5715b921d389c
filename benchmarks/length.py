"""Does the memory of a training step grow with the length alone, not with its square?

Question  Anonymous memory and seconds of a real step of `yayan pretrain` at 4,096, 8,192 and 16,384 positions.
Peer      --attention mask: the same step with the mask of length squared that `transformers` makes for documents.
Limit     A straight line through the first two lengths: the last column is how far a longer one lies above it. Within
          15 % is called linear.
Command   python benchmarks/length.py --out OUT [--lengths 4096 8192 16384 --attention documents mask]

One sequence a batch, with activation checkpointing, LoRA of rank 64 and all rows of both ends, random weights. Half of
the sequences are one document, the others hold several, so that both sides attend inside documents. The time is that
of the second step. The memory is the peak of the process, with the freed blocks that its allocator keeps; glibc gives
them back with MALLOC_MMAP_THRESHOLD_=1000000 MALLOC_TRIM_THRESHOLD_=1000000 in the environment. `predicted`: what
`yayan check` says. Where we expect to lose: time, for attention inside a long document takes its length squared.
"""

import argparse
import json
import random
from pathlib import Path

from processes import Usage, parser_of, refuse_busy_machine, step_ends
from train import RANK, prepare, yayan

from yayan.corpus.read import documents
from yayan.inputs import sample_path
from yayan.model.size import size_of, training_cost

STEPS = 2
LINEAR = 0.15
CHARACTERS_PER_TOKEN = 4  # at most, of the built-in sample: a long document is long enough
SHORT_CHARACTERS = 2000


def main() -> None:
    options = read_arguments()
    refuse_busy_machine(options.most_load)
    options.out.mkdir(parents=True, exist_ok=True)
    options.length = max(options.lengths)
    model, _ = prepare(options, options.shape)
    shards = pack_long(options)
    columns = [
        "attention",
        "positions",
        "seconds a step",
        "tokens/s",
        "memory, MB",
        "predicted",
        "off the line",
    ]
    print(f"| {' | '.join(columns)} |\n| --- |" + " ---: |" * (len(columns) - 1), flush=True)
    for attention in options.attention:
        peaks: list[tuple[int, int]] = []
        for length in options.lengths:
            seconds, usage = step(options, model, shards, length, attention)
            peaks.append((length, usage.peak_bytes))
            cells = [attention, f"{length:,}", f"{seconds:,.1f}", f"{length / seconds:,.0f}"]
            cells += [
                f"{usage.peak_bytes / 1e6:,.0f}",
                f"{predicted_bytes(options, model, length) / 1e6:,.0f}",
            ]
            print(f"| {' | '.join([*cells, off_the_line(peaks)])} |", flush=True)


def off_the_line(peaks: list[tuple[int, int]]) -> str:
    """How far the last peak lies above the line through the first two; nothing is said of these two."""
    if len(peaks) < 3:
        return ""
    (first, least), (second, more), *_, (length, found) = peaks
    share = found / (least + (more - least) / (second - first) * (length - first)) - 1
    return f"{share:+.0%}, {'no more than linear' if share <= LINEAR else 'not linear'}"


def read_arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16_384])
    parser.add_argument("--attention", nargs="+", choices=("documents", "mask"), default=["documents"])
    parser.add_argument("--shape", default="B", help="of benchmarks/train.py; B is 1024 x 4")
    parser.add_argument("--vocabulary", type=int, default=32_001)
    parser.add_argument("--dtype", default="bfloat16")
    parser.set_defaults(data=None)
    return parser.parse_args()


def pack_long(options: argparse.Namespace) -> Path:
    """Shards of the sample's text: documents as long as the longest sequence, and as much text in short ones."""
    text = "\n".join(document.text for document in documents([sample_path(Path("sample:zh-train.jsonl"))]))
    long = CHARACTERS_PER_TOKEN * options.length
    text *= 1 + STEPS * long // len(text)
    rng = random.Random(0)
    pieces = [text[start : start + long] for start in range(0, STEPS * long, long)]
    while sum(map(len, pieces)) < 2 * STEPS * long:
        start = rng.randrange(len(text) - SHORT_CHARACTERS)
        pieces.append(text[start : start + rng.randrange(SHORT_CHARACTERS // 4, SHORT_CHARACTERS)])
    corpus = options.out / f"long-{options.length}.jsonl"
    corpus.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    shards = options.out / f"shards-long-{options.length}"
    tokenizer = options.out / f"tokenizer-{options.vocabulary}"
    yayan("pack", "--again", "--tokenizer", tokenizer, "--corpus", corpus, "--out", shards)
    return shards


def step(
    options: argparse.Namespace, model: Path, shards: Path, length: int, attention: str
) -> tuple[float, Usage]:
    """Seconds of the last step, and what the process took."""
    out = options.out / "trained"
    words = ["--again", "--model", model, "--shards", shards, "--out", out, "--rank", RANK, "--checkpointing"]
    words += ["--sequence-length", length, "--batch-size", 1, "--steps", STEPS, "--save-minutes", 60]
    usage = yayan("pretrain", *words, "--dtype", options.dtype, "--attention", attention)
    ends = step_ends(out)
    metrics = json.loads((out / "yayan.json").read_text())["metrics"]
    usage.peak_bytes = metrics.get("gpu_bytes", usage.peak_bytes)
    return ends[-1] - ends[-2], usage


def predicted_bytes(options: argparse.Namespace, model: Path, length: int) -> int:
    size = size_of(json.loads((model / "config.json").read_text()))
    return training_cost(
        size,
        trained_body=size.lora_parameters(RANK),
        trained_rows=size.rows,
        whole_body=False,
        dtype=options.dtype,
        positions=length,
        sequence_length=length,
        checkpointing=True,
    ).memory_bytes


if __name__ == "__main__":
    main()
