"""How fast does text become token ids on disk, against the usual way on the same cores and files?

Question  MB of UTF-8 a second, memory and disk of `yayan pack`, for a SentencePiece and a byte-level tokenizer.
Peer      `datasets`: load_dataset, map with the fast tokenizer of `transformers`, map that joins and cuts into blocks
          of 512 (what the reference project does); in an environment of its own, --peer PYTHON.
Limit     The native tokenizer alone, one thread for each core, on texts in memory: no packing can be faster.
Command   python benchmarks/pack.py --data DATA --out OUT --peer PYTHON

Ours and the peer take turns. Both are whole commands, from their start until all is on the disk; of the peer the two
maps are timed by themselves as well. What is dropped: ours nothing, the peer's blocks lose the rest of every 1,000
documents; ours writes an EOS behind each document, the peer as the reference does a BOS before it, so ids are compared
without ours. Memory is the peak of anonymous memory of all processes together.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from processes import Usage, measure, parser_of, refuse_busy_machine

CHINESE = ("zh-lctt-tech", "zh-juejin", "zh-laws", "zh-classical-modern", "zh-novels-classical", "zh-weekly")
BLOCK = 512


def main() -> None:
    options = read_arguments()
    if options.as_peer:
        run_peer(options)
        return
    if options.as_limit:
        run_limit(options)
        return
    refuse_busy_machine(options.most_load)
    options.out.mkdir(parents=True, exist_ok=True)
    corpus, size = write_corpus(options.data, options.out / "corpus.jsonl", options.megabytes)
    for name, folder in write_tokenizers(options.data, options.out).items():
        measure_tokenizer(options, name, folder, corpus, size)


def read_arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, help="folder of the corpora and tokenizers")
    parser.add_argument("--peer", type=Path, help="a Python with datasets and transformers; none: ours alone")
    parser.add_argument("--megabytes", type=int, default=150, help="UTF-8 of the corpus")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--as-peer", type=Path, help=argparse.SUPPRESS)  # the tokenizer's folder
    parser.add_argument("--as-limit", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_corpus(data: Path, path: Path, megabytes: int) -> tuple[Path, int]:
    """One plain jsonl file of real Chinese documents, none twice; returns it and its bytes of text."""
    from mixture import mixture_of

    size = 0
    with path.open("w", encoding="utf-8") as stream:
        for text in mixture_of([data / name / "train.jsonl.xz" for name in CHINESE]):
            stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            size += len(text.encode())
            if size >= megabytes * 1e6:
                break
    return path, size


def write_tokenizers(data: Path, out: Path) -> dict[str, Path]:
    """Llama-2's SentencePiece, and GPT-2's byte-level BPE."""
    from yayan.tokenizer import load_tokenizer
    from yayan.tokenizer_files import open_byte_level

    folders = {"SentencePiece, Llama-2, 32,000": out / "llama-2", "byte-level, GPT-2, 50,257": out / "gpt-2"}
    llama, gpt = folders.values()
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    shutil.copy(data / "tokenizers" / "llama2-32000.tokenizer.model", llama / "tokenizer.model")
    load_tokenizer(llama).fast.save(str(llama / "tokenizer.json"))
    open_byte_level(data / "tokenizers" / "gpt2.vocab.json").fast.save(str(gpt / "tokenizer.json"))
    names = {llama: {"bos_token": "<s>", "eos_token": "</s>"}, gpt: {"eos_token": "<|endoftext|>"}}
    for folder, special in names.items():
        (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return folders


def measure_tokenizer(options: argparse.Namespace, name: str, folder: Path, corpus: Path, size: int) -> None:
    """Ours and the peer in turns, then the limit; prints a table."""
    out, grouped = options.out / "shards", options.out / "peer"
    ours, peers = [], []
    (options.out / "peer.ids").unlink(missing_ok=True)
    for _ in range(options.runs):
        shutil.rmtree(out, ignore_errors=True)
        words = [
            sys.executable,
            "-m",
            "yayan",
            "pack",
            "--tokenizer",
            folder,
            "--corpus",
            corpus,
            "--out",
            out,
        ]
        ours.append(measure(words))
        if options.peer:
            shutil.rmtree(grouped, ignore_errors=True)
            peers.append(measure([options.peer, __file__, "--as-peer", folder, "--out", options.out]))
    limit = subprocess.run(
        [sys.executable, __file__, "--as-limit", str(folder), "--out", str(options.out)],
        capture_output=True,
        text=True,
        check=True,
    )
    index = json.loads((out / "index.json").read_text(encoding="utf-8"))
    disk = sum(file.stat().st_size for file in out.iterdir())
    print(f"{name}: {size / 1e6:,.0f} MB in {index['documents']:,} documents, {index['tokens']:,} tokens")
    print("| | seconds | MB/s | CPU seconds | anonymous memory, MB |\n| --- | ---: | ---: | ---: | ---: |")
    print(row("yayan pack", min(ours, key=lambda run: run.seconds), size))
    if peers:
        best = min(peers, key=lambda run: run.seconds)
        maps = json.loads((options.out / "peer.json").read_text())
        print(row("datasets, whole", best, size))
        print(f"| datasets, the two maps | {maps['seconds']:.1f} | {size / maps['seconds'] / 1e6:.1f} | | |")
        print(f"ids: {compare(out, options.out, index)}")
        ratio = best.seconds / min(run.seconds for run in ours)
        print(
            f"ours / peer: {ratio:.2f} (whole), {maps['seconds'] / min(run.seconds for run in ours):.2f} (maps)"
        )
    print(f"limit, the native tokenizer alone: {limit.stdout.strip()} MB/s")
    print(f"disk: {disk / index['tokens']:.4f} bytes a token\n")


def row(name: str, run: Usage, size: int) -> str:
    rate = size / run.seconds / 1e6
    return (
        f"| {name} | {run.seconds:.1f} | {rate:.1f} | {run.cpu_seconds:.1f} | {run.peak_bytes / 1e6:,.0f} |"
    )


def compare(shards: Path, out: Path, index: dict) -> str:
    """Our ids without EOS against the peer's ids of every document."""
    import numpy as np

    ours = np.fromfile(shards / "tokens.ids", "<u2")
    lengths = np.array(index["lengths"])
    kept = np.ones(len(ours), bool)
    kept[np.cumsum(lengths) - 1] = False
    theirs = np.fromfile(out / "peer.ids", "<u4")
    if len(theirs) == kept.sum() and (ours[kept] == theirs).all():
        return f"all {len(theirs):,} equal the peer's"
    return f"DIFFERENT: {kept.sum():,} ours, {len(theirs):,} the peer's"


def run_peer(options: argparse.Namespace) -> None:
    """The usual way, in the peer's environment; writes its time, and after that its ids for the comparison."""
    from datasets import load_dataset
    from transformers import PreTrainedTokenizerFast

    folder, out = options.as_peer, options.out
    cut = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    cores = os.cpu_count() or 1

    def group(batch: dict) -> dict:
        joined = {name: [item for part in parts for item in part] for name, parts in batch.items()}
        whole = len(joined["input_ids"]) // BLOCK * BLOCK
        cut_up = {
            name: [values[i : i + BLOCK] for i in range(0, whole, BLOCK)] for name, values in joined.items()
        }
        return {**cut_up, "labels": [list(ids) for ids in cut_up["input_ids"]]}

    with tempfile.TemporaryDirectory(dir=out) as cache:
        texts = load_dataset("json", data_files=str(out / "corpus.jsonl"), split="train", cache_dir=cache)
        begun = time.monotonic()
        tokens = texts.map(
            lambda batch: cut(batch["text"]), batched=True, num_proc=cores, remove_columns=["text"]
        )
        blocks = tokens.map(group, batched=True, num_proc=cores)
        seconds = time.monotonic() - begun
        blocks.save_to_disk(str(out / "peer"))
        (out / "peer.json").write_text(json.dumps({"seconds": seconds}))
        if not (out / "peer.ids").exists():
            write_ids(tokens, out)


def write_ids(tokens: object, out: Path) -> None:
    import numpy as np

    with (out / "peer.ids").open("wb") as stream:
        for batch in tokens.iter(1000):  # type: ignore[attr-defined]
            stream.write(np.concatenate([np.array(ids, "<u4") for ids in batch["input_ids"]]).tobytes())


def run_limit(options: argparse.Namespace) -> None:
    """Prints MB/s of the encoder on all cores, the texts in memory, the ids thrown away."""
    from multiprocessing import get_context

    with (options.out / "corpus.jsonl").open(encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for line in stream]
    cores = os.cpu_count() or 1
    with get_context("fork").Pool(cores, open_for_limit, (options.as_limit,)) as pool:
        parts = [texts[i::cores] for i in range(cores)]
        pool.map(encode_for_limit, [part[:10] for part in parts], chunksize=1)
        begun = time.monotonic()
        pool.map(encode_for_limit, parts, chunksize=1)
        seconds = time.monotonic() - begun
    print(f"{sum(len(text.encode()) for text in texts) / seconds / 1e6:.1f}")


def open_for_limit(folder: Path) -> None:
    global encoder
    from yayan.corpus.encoders import open_encoder

    encoder = open_encoder(folder, text_bytes=1 << 40)


def encode_for_limit(texts: list[str]) -> int:
    return sum(len(encoder.encode_batch(texts[i : i + 256])[0]) for i in range(0, len(texts), 256))


if __name__ == "__main__":
    main()
