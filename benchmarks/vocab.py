"""How fast is a vocabulary continued, in what memory, and how well does it cut text that it has not seen?

Question  Seconds, memory and tokens per character of `yayan vocab` from Llama-2's 32,000 ids to 55,296.
Peers     The reference project's tokenizer as it was published (55,296 ids), and its procedure on the same corpus: a
          SentencePiece Unigram model of its own, whose pieces are put behind the base's (on --peer-megabytes of text,
          where ours is run again: it takes minutes and gigabytes for each 10 MB).
Limit     Reading the corpus once and finding its runs of Chinese: no method can do less.
Command   python benchmarks/vocab.py --data DATA --out OUT

Where we expect to lose: time against the peer's append, which proves nothing of what it writes, and text that is not
Chinese, which the base cuts as before. Sources are cut to equal shares of their sizes; every document that is taken is
whole. Memory is the peak of the process's resident set, libraries included (`ru_maxrss`).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from yayan.corpus.read import documents
from yayan.vocab.scripts import Wanted

CHINESE = (
    *("zh-classical-modern", "zh-csl-abstracts", "zh-docs-pingcap", "zh-docs-react", "zh-juejin", "zh-laws"),
    *("zh-lctt-tech", "zh-novels-classical", "zh-poetry", "zh-reviews", "zh-weekly"),
)
UNSEEN = {  # kinds of text that the corpus does not hold, and English
    "C-Eval questions": ("eval-ceval/test.jsonl.xz", ("question", "A", "B", "C", "D")),
    "LongBench zh documents": ("eval-longbench/multifieldqa_zh.jsonl.xz", ("context",)),
    "LongBench zh passages": ("eval-longbench/passage_retrieval_zh.jsonl.xz", ("context",)),
    "instructions (translated Alpaca)": (
        "sft-zh-alpaca/heldout.jsonl.xz",
        ("instruction", "input", "output"),
    ),
    "English: wikitext-2": ("en-wikitext2-test/wiki.test.raw.xz", ()),
}
BASE, REFERENCE = (
    "tokenizers/llama2-32000.tokenizer.model",
    "tokenizers/chinese-llama-2-55296.tokenizer.model",
)
MOST_CHARACTERS = 600_000  # of each text that is measured


def main() -> None:
    options = read_arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    if load > options.most_load:
        sys.exit(f"the machine is busy (load {load:.1f}): wait, or pass --most-load")
    sources = write_corpus(options.data, options.out / "corpus", options.megabytes)
    runs = {"ours": run_ours(options, sources, options.out / "ours")}
    models = {
        "base": options.data / BASE,
        "reference": options.data / REFERENCE,
        "ours": options.out / "ours" / "tokenizer.model",
    }
    if options.peer_megabytes:
        few = write_corpus(options.data, options.out / "corpus-peer", options.peer_megabytes)
        small = f"on {options.peer_megabytes} MB"
        runs[f"ours {small}"] = run_ours(options, few, options.out / "ours-peer")
        models[f"ours {small}"] = options.out / "ours-peer" / "tokenizer.model"
        models[f"append {small}"] = options.out / "append.model"
        runs[f"append {small}"] = measure(
            [sys.executable, __file__, "--append", "--data", options.data, "--out", options.out]
        )
    runs["limit: find the runs once"] = measure(
        [sys.executable, __file__, "--limit", "--data", options.data, "--out", options.out]
    )
    print(table_of_runs(runs))
    print(table_of_texts(models, options.data))


def read_arguments() -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora and tokenizers")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--megabytes", type=int, default=150, help="UTF-8 of the corpus")
    parser.add_argument(
        "--peer-megabytes", type=int, default=20, help="of the peer's corpus; 0 leaves it out"
    )
    parser.add_argument("--size", type=int, default=55296)
    parser.add_argument("--most-load", type=float, default=0.5, help="load of the machine at which to begin")
    parser.add_argument("--append", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--limit", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def write_corpus(data: Path, folder: Path, megabytes: int) -> list[Path]:
    """A file for each source, its first documents; all together have `megabytes` of UTF-8, in shares as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [data / name / "train.jsonl.xz" for name in CHINESE]
    sizes = {file: sum(len(item.text.encode()) for item in documents([file])) for file in files}
    share = megabytes * 1e6 / sum(sizes.values())
    written = []
    for file, size in sizes.items():
        written.append(folder / f"{file.parent.name}.jsonl")
        room = size * share
        with written[-1].open("w", encoding="utf-8") as out:
            for item in documents([file]):
                room -= len(item.text.encode())
                if room < 0:
                    break
                out.write(json.dumps({"text": item.text}, ensure_ascii=False) + "\n")
    return written


def run_ours(options: argparse.Namespace, sources: list[Path], out: Path) -> dict[str, float]:
    words = [sys.executable, "-m", "yayan", "vocab", "--base", options.data / BASE, "--size", options.size]
    return measure([*words, "--corpus", *sources, "--out", out, "--again"])


def measure(command: list[object]) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory (bytes) of a process. Ends the program if it fails."""
    begun = time.monotonic()
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(map(str, command))} failed")
    return {
        "seconds": time.monotonic() - begun,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "bytes": usage.ru_maxrss * 1024,
    }


def append(data: Path, out: Path, size: int) -> None:
    """The reference project's procedure: a Unigram model's pieces behind the base's, all with score 0."""
    lines = (
        line
        for item in documents(sorted((out / "corpus-peer").iterdir()))
        for line in item.text.split("\n")
        if line
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_prefix=str(out / "unigram"),
        model_type="unigram",
        vocab_size=26000,
        character_coverage=0.9995,
        num_threads=os.cpu_count(),
        minloglevel=2,
    )
    base, other = ModelProto(), ModelProto()
    base.ParseFromString((data / BASE).read_bytes())
    other.ParseFromString((out / "unigram.model").read_bytes())
    known = {item.piece for item in base.pieces}
    for item in other.pieces:
        if item.piece not in known and item.type == item.NORMAL and len(base.pieces) < size:
            base.pieces.add(piece=item.piece, score=0.0)
    (out / "append.model").write_bytes(base.SerializeToString())


def find_runs(out: Path) -> None:
    """What every method must do: read the corpus, and find what is Chinese in it."""
    find = Wanted().parts.findall
    print(
        sum(len(find(item.text)) for item in documents(sorted((out / "corpus").iterdir()))),
        "runs",
        file=sys.stderr,
    )


def held_out(data: Path) -> Iterator[tuple[str, list[str]]]:
    """Names and texts: the held-out part of each source, then what is unlike all of them."""
    for name in CHINESE:
        yield name, some(item.text for item in documents([data / name / "heldout.jsonl.xz"]))
    import lzma

    for name, (path, fields) in UNSEEN.items():
        with lzma.open(data / path, "rt", encoding="utf-8") as file:
            lines = (json.loads(line) for line in file) if fields else ({"": line} for line in file)
            yield name, some("\n".join(row[field] for field in fields or ("",)) for row in lines)


def some(texts: Iterator[str]) -> list[str]:
    taken: list[str] = []
    characters = 0
    for text in texts:
        taken.append(text)
        characters += len(text)
        if characters > MOST_CHARACTERS:
            break
    return taken


def table_of_runs(runs: dict[str, dict[str, float]]) -> str:
    rows = ["| run | seconds | CPU seconds | peak memory, MB |", "| --- | ---: | ---: | ---: |"]
    for name, run in runs.items():
        rows.append(
            f"| {name} | {run['seconds']:.0f} | {run['cpu_seconds']:.0f} | {run['bytes'] / 1e6:,.0f} |"
        )
    return "\n".join(rows) + "\n"


def table_of_texts(models: dict[str, Path], data: Path) -> str:
    """Tokens per character, and the share of the reference's tokens that ours takes."""
    opened = {
        name: sentencepiece.SentencePieceProcessor(model_file=str(path)) for name, path in models.items()
    }
    heads = [*opened, "ours / reference"]
    rows = [f"| tokens a character | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    shares = []
    for name, texts in held_out(data):
        characters = sum(map(len, texts))
        counts = {key: sum(map(len, model.encode(texts))) for key, model in opened.items()}
        shares.append(counts["ours"] / counts["reference"])
        cells = [f"{count / characters:.3f}" for count in counts.values()]
        rows.append(f"| {name} | {' | '.join(cells)} | {shares[-1]:.3f} |")
    mean = sum(shares[: len(CHINESE)]) / len(CHINESE)
    rows.append(f"| mean of the {len(CHINESE)} held-out sets |" + " |" * len(opened) + f" {mean:.3f} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    arguments = read_arguments()
    if arguments.append:
        append(arguments.data, arguments.out, arguments.size)
    elif arguments.limit:
        find_runs(arguments.out)
    else:
        main()
