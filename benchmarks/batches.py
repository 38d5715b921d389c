"""How fast do batches come, and how much of them is padding?

Question  Tokens a second of the loader in one thread, at 512 and 4,096 positions; the share of padding on each corpus
          and on all as one; seconds until the first batch, and from a state in the middle.
Peer      Training itself: the tokens a second of the quickstart's model (about 5 million parameters), measured here.
Limit     Copying the same bytes in memory: ids, targets and positions, 12 bytes a token. For padding, a lower bound of
          the sequences that any packing of the same pieces needs (L2: Martello and Toth 1990).
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
from yayan.corpus.plan import make_plan
from yayan.corpus.shards import Shards

LENGTHS = (512, 4096)
TOKENS = 1 << 24  # that are loaded for a rate
SHAPE = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 768}


def main() -> None:
    options = read_arguments()
    refuse_busy_machine(options.most_load)
    folders = pack(options)
    shards = [Shards.open(folder) for folder in folders]
    print("| corpus | documents | padding at 512 | least possible | at 4,096 | least possible |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    lengths = {folder.name: item.lengths for folder, item in zip(folders, shards, strict=True)}
    for name, lengths_D in {**lengths, "all as one": np.concatenate(list(lengths.values()))}.items():
        cells = [cell for length in LENGTHS for cell in padding(lengths_D, length)]
        print(f"| {name} | {len(lengths_D):,} | {' | '.join(f'{share:.3%}' for share in cells)} |")
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


def padding(lengths_D: np.ndarray, length: int) -> tuple[float, float]:
    """Share of positions that hold no token, and a lower bound of it for whatever packs the same pieces."""
    plan = make_plan(lengths_D, None, length, [1])
    whole, rest_D = np.divmod(lengths_D.astype(np.int64) - 1, length)
    least = int(whole.sum()) + least_bins(rest_D[rest_D > 0], length)
    return tuple(1 - plan.positions / (count * length) for count in (plan.sequences, least))


def least_bins(sizes: np.ndarray, capacity: int) -> int:
    """Martello and Toth's L2: items of more than half a bin stand alone, and small ones fill what is left of them."""
    counts = np.bincount(sizes, minlength=capacity + 1)
    items, total = np.cumsum(counts), np.cumsum(counts * np.arange(capacity + 1))
    half, bounds = capacity // 2, []
    for small in range(half + 1):  # items of less than this are not looked at
        full = items[-1] - items[capacity - small]  # no looked-at item fits beside them
        large = items[capacity - small] - items[half]
        room = large * capacity - (total[capacity - small] - total[half])
        middle = total[half] - (total[small - 1] if small else 0)
        bounds.append(full + large + max(0, -(-(middle - room) // capacity)))
    return int(max(bounds))


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
