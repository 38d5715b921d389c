"""How fast do batches come, and how much of them is padding?

Question  Tokens a second of the loader in one thread, at 512 and 4,096 positions; the share of padding on each corpus;
          seconds until the first batch, and from a state in the middle.
Peer      Training itself: the tokens a second of the quickstart's model (about 5 million parameters), measured here.
Limit     Copying the same bytes in memory: ids, targets and positions, 12 bytes a token.
Command   python benchmarks/batches.py --data DATA --out OUT --tokenizer TOKENIZER

Where we expect to lose: padding of short sequences where a corpus has few documents, for there is little to fit.
"""

import argparse
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from processes import measure, parser_of, refuse_busy_machine
from transformers import LlamaConfig, LlamaForCausalLM

from yayan.corpus.batches import Mixture
from yayan.corpus.shards import Shards

LENGTHS = (512, 4096)
TOKENS = 1 << 24  # that are loaded for a rate
SHAPE = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 768}


def main() -> None:
    options = read_arguments()
    refuse_busy_machine(options.most_load)
    folders = pack(options)
    shards = [Shards.open(folder) for folder in folders]
    print("| corpus | documents | padding at 512 | at 4,096 |\n| --- | ---: | ---: | ---: |")
    for folder, item in zip(folders, shards, strict=True):
        shares = [mixture([item], length).describe()[0]["padding"] for length in LENGTHS]
        print(f"| {folder.name} | {len(item.lengths):,} | {shares[0]:.3%} | {shares[1]:.3%} |")
    print(
        "\n| positions | first batch, s | from a state, s | tokens/s | training, tokens/s | copying, tokens/s |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for length in LENGTHS:
        print(row(shards, length))


def read_arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--tokenizer", type=Path, required=True)
    return parser.parse_args()


def pack(options: argparse.Namespace) -> list[Path]:
    """Every corpus of the data, packed; what is there already is kept."""
    options.out.mkdir(parents=True, exist_ok=True)
    folders = []
    for corpus in sorted(options.data.glob("*/train.jsonl.xz")):
        if corpus.parent.name.startswith("sft"):
            continue
        folders.append(options.out / corpus.parent.name)
        words = ["--tokenizer", options.tokenizer, "--corpus", corpus, "--out", folders[-1]]
        measure([sys.executable, "-m", "yayan", "pack", *words])
    return folders


def mixture(shards: list[Shards], length: int) -> Mixture:
    shares = [float(item.index["tokens"]) for item in shards]
    return Mixture(shards, shares, sequence_length=length, batch_size=(1 << 13) // length, seed=1, pad_id=0)


def row(shards: list[Shards], length: int) -> str:
    """Rates at a sequence length, all corpora mixed."""
    begun = time.perf_counter()
    mixed = mixture(shards, length)
    _, state = next(mixed.batches())
    first = time.perf_counter() - begun
    batches = mixed.batches()
    steps = TOKENS >> 13
    begun = time.perf_counter()
    for _, after in islice(batches, steps):
        state = after
    rate = (steps << 13) / (time.perf_counter() - begun)
    begun = time.perf_counter()
    next(mixture(shards, length).batches(state))
    resumed = time.perf_counter() - begun
    cells = (
        f"{first:.2f} | {resumed:.2f} | {rate:,.0f} | {training_rate(length):,.0f} | {copying_rate():,.0f}"
    )
    return f"| {length:,} | {cells} |"


def training_rate(length: int) -> float:
    """Tokens a second of full training steps of the smallest model, without any loading."""
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8192, max_position_embeddings=length, **SHAPE))
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(0, 8192, (max(4096 // length, 1), length))
    seconds = []
    for _ in range(4):
        begun = time.perf_counter()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        seconds.append(time.perf_counter() - begun)
    return ids.numel() / min(seconds)


def copying_rate() -> float:
    """Tokens a second if the bytes of a batch were only copied."""
    source = np.ones((3, 1 << 22), np.int32)
    target = np.empty_like(source)
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - begun)
    return source.shape[1] / min(seconds)


if __name__ == "__main__":
    main()
