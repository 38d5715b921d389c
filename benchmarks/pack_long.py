"""Does packing stay small when the corpus is large, does it survive being killed, and how soon can training begin?

Question  Anonymous memory of `yayan pack` from 10 MB to 20 GB; the same bytes after kills on the way; many chats.
Limit     The size of the shards: 2 bytes a token.
Command   python benchmarks/pack_long.py --data DATA --out OUT --tokenizer TOKENIZER

The corpora are repeated, each document with a number of its own before it, so none is like another. The largest size
is packed twice: in one piece, and killed (SIGKILL of the parent, at the given shares of the first run's time); their
hashes must be equal. Chats are repeated with a number as well; then the time to the first batch is measured.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pack import CHINESE
from processes import Usage, measure, parser_of, refuse_busy_machine

from yayan import lineage
from yayan.corpus.chats import chats
from yayan.corpus.read import documents

FIRST_BATCH = """
import sys, time
begun = time.monotonic()
from pathlib import Path
from yayan.corpus.batches import Mixture
from yayan.corpus.shards import Shards
shards = Shards.open(Path(sys.argv[1]))
opened = time.monotonic()
mixture = Mixture([shards], [1], sequence_length=512, batch_size=8, seed=1, pad_id=0)
next(mixture.batches())
print(f"{opened - begun:.1f} s to open, {time.monotonic() - begun:.1f} s to the first batch")
"""


def main() -> None:
    options = read_arguments()
    refuse_busy_machine(options.most_load)
    options.out.mkdir(parents=True, exist_ok=True)
    print("| corpus, MB | seconds | MB/s | anonymous memory, MB: peak | median |", flush=True)
    print("| ---: | ---: | ---: | ---: | ---: |", flush=True)
    for megabytes in options.megabytes:
        corpus = write_documents(options, megabytes)
        run = pack(options, "--corpus", corpus)
        print(row(megabytes, run), flush=True)
    if options.kills:
        survive(options, corpus, run)
    corpus.unlink()
    if options.chats:
        pack_chats(options)


def read_arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100, 1000, 20000])
    parser.add_argument("--kills", type=float, nargs="*", default=[0.2, 0.5, 0.9], help="shares of the time")
    parser.add_argument("--chats", type=int, default=5_000_000)
    return parser.parse_args()


def write_documents(options: argparse.Namespace, megabytes: int) -> Path:
    """A plain jsonl file of that size."""
    path = options.out / "long.jsonl"
    texts = (
        document.text
        for _ in itertools.count()
        for document in documents([options.data / name / "train.jsonl.xz" for name in CHINESE])
    )
    return write_numbered(path, ({"text": text} for text in texts), megabytes * 10**6)


def write_numbered(path: Path, rows: Iterator[dict], size: int) -> Path:
    """Rows until the file has `size` bytes, each text with the number of its line before it."""
    with path.open("w", encoding="utf-8") as stream:
        for number, item in enumerate(rows, 1):
            stream.write(json.dumps({"text": f"第{number}篇\n{item['text']}"}, ensure_ascii=False) + "\n")
            if stream.tell() >= size:
                break
    return path


def pack(options: argparse.Namespace, *words: object, kill_after: float | None = None) -> Usage:
    """Pack anew into OUT/shards, or go on there after a kill."""
    out = options.out / "shards"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "yayan", "pack", "--tokenizer", options.tokenizer, *words, "--out", out]
    return measure(command, kill_after=kill_after)


def row(megabytes: int, run: Usage) -> str:
    sizes = sorted(size for _, size in run.samples)
    median, rate = sizes[len(sizes) // 2], megabytes / run.seconds
    return f"| {megabytes:,} | {run.seconds:.0f} | {rate:.1f} | {run.peak_bytes / 1e6:,.0f} | {median / 1e6:,.0f} |"


def survive(options: argparse.Namespace, corpus: Path, whole: Usage) -> None:
    """Pack the same again with kills, and compare with the run in one piece."""
    expected = lineage.sha256_of(options.out / "shards")
    for before, share in itertools.pairwise([0.0, *options.kills]):
        run = pack(options, "--corpus", corpus, kill_after=(share - before) * whole.seconds)
        print(f"killed after {run.seconds:.0f} s: {run.killed}", flush=True)
    run = pack(options, "--corpus", corpus)
    same = lineage.sha256_of(options.out / "shards") == expected
    print(f"gone on for {run.seconds:.0f} s: {'the same bytes' if same else 'OTHER BYTES'}", flush=True)


def pack_chats(options: argparse.Namespace) -> None:
    """Millions of short chats: the time to pack them, and from there to the first batch."""
    path = options.out / "chats.jsonl"
    known = [chat.messages for chat in chats([options.data / "sft-zh-alpaca" / "train.jsonl.xz"])]
    with path.open("w", encoding="utf-8") as stream:
        for number in range(options.chats):
            question, *rest = known[number % len(known)]
            first = {**question, "content": f"{number} {question['content']}"}
            stream.write(json.dumps({"messages": [first, *rest]}, ensure_ascii=False) + "\n")
    megabytes = path.stat().st_size // 10**6
    run = pack(options, "--chats", path)
    index_bytes = (options.out / "shards" / "index.json").stat().st_size
    print(f"{options.chats:,} chats, {megabytes:,} MB, {options.chats / run.seconds:,.0f} chats/s")
    print(row(megabytes, run))
    path.unlink()
    command = [sys.executable, "-c", FIRST_BATCH, str(options.out / "shards")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(f"index of {index_bytes / 1e6:.0f} MB: {done.stdout.strip()}")


if __name__ == "__main__":
    main()
