"""Which rows of the two ends should move, is a new vocabulary worth it, and what does replay save?

Question  Bits per byte of held-out Chinese and English after the same bytes of Chinese, and after the same time: rows
          new, all, none, or new ones beside a low-rank update of the old, the vocabulary extended or not, with and
          without a tenth of English, rates tuned for each.
Peer      rows all on the base's own vocabulary: continued pre-training as it is done without a tool for languages.
Limit     The spread over seeds: a difference below it is none.
Command   python benchmarks/rows.py --base BASE --data DATA --out OUT

First the rates of each way are tuned at the smallest size, without replay, with the first seed: from the middle of
what is usual, one rate at a time by a factor, as long as Chinese gets better. Then each row is trained on --bytes of
Chinese with every seed, and then for as long as the slowest row took, on a corpus that does not end before. Time is
the median of a step times the steps, so that a short disturbance does not count; a row that is to be trained for its
own number of steps again, within a twentieth, is not. The rates that were found stand in OUT/rates.json, and are not
looked for again. LoRA of rank 64 on the body, a cosine of the rates, float32 moments; every run is a `yayan pretrain`,
and a finished one is not repeated. Where we expect to lose: English, always.
"""

import argparse
import json
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

from mixture import mixture_of, take, write_texts
from processes import parser_of, refuse_busy_machine, step_ends

CHINESE = ("zh-lctt-tech", "zh-juejin", "zh-weekly", "zh-reviews", "zh-csl-abstracts")
ENGLISH = ("en-lctt-tech", "en-public-domain", "en-tinystories")
WAYS = (
    "extended:new",
    "extended:low-rank",
    "extended:all",
    "base:low-rank",
    "base:all",
    "base:none",
)
FIRST_RATES, BODY_FACTOR, ROWS_FACTOR = (1e-3, 3e-3), 2, 3
SAME_STEPS = 0.05
LENGTH, BATCH = 512, 8


@dataclass(frozen=True)
class Way:
    """What is trained, on which vocabulary, at which rates."""

    vocabulary: str
    rows: str
    body_rate: float
    rows_rate: float


def main() -> None:
    options = read_arguments()
    refuse_busy_machine(options.most_load)
    prepare(options)
    best = {way: found_rates(options, way) for way in options.ways}
    print(f"Rates, tuned on {options.tune_bytes / 1e6:g} MB:", end=" ")
    print("; ".join(f"{name}: body {w.body_rate:g}, rows {w.rows_rate:g}" for name, w in best.items()))
    table = {
        (way, replay): [run(options, way, options.bytes, replay, seed) for seed in options.seeds]
        for way in best.values()
        for replay in options.replays
    }
    print_table(f"{options.bytes / 1e6:g} MB of Chinese", table)
    longest = max(mean(found["seconds"] for found in runs) for runs in table.values())
    timed = {}
    for (way, replay), runs in table.items():
        steps = round(runs[0]["steps"] * longest / mean(found["seconds"] for found in runs))
        again = abs(steps / runs[0]["steps"] - 1) > SAME_STEPS
        timed[way, replay] = (
            [run(options, way, options.bytes, replay, seed, steps=steps) for seed in options.timed_seeds]
            if again
            else runs
        )
    print_table(f"{longest:,.0f} s of training each", timed)


def read_arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--base", type=Path, required=True, help="model to teach")
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--bytes", type=int, default=1_000_000, help="of Chinese")
    parser.add_argument("--tune-bytes", type=int, default=250_000)
    parser.add_argument("--heldout-bytes", type=int, default=50_000, help="of each language")
    parser.add_argument("--vocab", type=int, default=40_960)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, metavar="VOCABULARY:ROWS")
    parser.add_argument("--replays", type=float, nargs="+", default=[0.0, 0.1], help="shares of English")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--timed-seeds", type=int, nargs="+", default=[1, 2, 3], help="at equal time")
    parser.add_argument("--dtype", default="bfloat16")
    return parser.parse_args()


def found_rates(options: argparse.Namespace, name: str) -> Way:
    """A way with its rates, found before or now."""
    vocabulary, rows = name.split(":")
    file = options.out / "rates.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    if name not in known:
        way = tuned(options, vocabulary, rows)
        known[name] = [way.body_rate, way.rows_rate]
        file.write_text(json.dumps(known, indent=1))
    return Way(vocabulary, rows, *known[name])


def tuned(options: argparse.Namespace, vocabulary: str, rows: str) -> Way:
    """The rates from which no step by a factor makes Chinese better, on a little text."""
    seen: dict[Way, float] = {}

    def bits(way: Way) -> float:
        if way not in seen:
            seen[way] = run(options, way, options.tune_bytes, 0.0, options.seeds[0])["zh"]
            print(f"  {way}: {seen[way]:.3f}", flush=True)
        return seen[way]

    best, last = Way(vocabulary, rows, *FIRST_RATES), None
    while best != last:
        last = best
        moves = {"body_rate": BODY_FACTOR} | ({"rows_rate": ROWS_FACTOR} if rows != "none" else {})
        for name, factor in moves.items():
            rate = getattr(best, name)
            ways = [replace(best, **{name: round(rate * by, 9)}) for by in (factor, 1 / factor)]
            best = min([best, *ways], key=bits)
    return best


def prepare(options: argparse.Namespace) -> None:
    """Models of both vocabularies, texts, and their shards."""
    out, data = options.out, options.data
    out.mkdir(parents=True, exist_ok=True)
    zh = [data / name / "train.jsonl.xz" for name in CHINESE]
    en = [data / name / "train.jsonl.xz" for name in ENGLISH]
    yayan("vocab", "--base", options.base, "--corpus", *zh, "--size", options.vocab, "--out", out / "vocab")
    yayan("grow", "--model", options.base, "--tokenizer", out / "vocab", "--out", out / "extended")
    # What is trained longer than --bytes last goes on with texts that were not read yet
    sizes = {f"zh-{size}": (zh, size) for size in (options.tune_bytes, options.bytes)}
    for name, (sources, size) in {
        **sizes,
        "en": (en, options.bytes),
        "zh-more": (zh, 6 * options.bytes),
    }.items():
        if not (out / f"{name}.jsonl").exists():
            write_texts(out / f"{name}.jsonl", take(mixture_of(sources), size))
        for vocabulary in ("base", "extended"):
            shards = out / f"shards-{vocabulary}-{name}"
            yayan(
                "pack",
                "--tokenizer",
                model_of(options, vocabulary),
                "--corpus",
                out / f"{name}.jsonl",
                "--out",
                shards,
            )
    for name, corpora in (("zh", CHINESE), ("en", ENGLISH)):
        heldout = mixture_of([data / corpus / "heldout.jsonl.xz" for corpus in corpora])
        write_texts(out / f"heldout-{name}.jsonl", take(heldout, options.heldout_bytes))


def model_of(options: argparse.Namespace, vocabulary: str) -> Path:
    return options.base if vocabulary == "base" else options.out / "extended"


def run(
    options: argparse.Namespace, way: Way, size: int, replay: float, seed: int, steps: int | None = None
) -> dict[str, float]:
    """One training -> bits per byte of both languages before and after, seconds, tokens, steps."""
    name = "-".join(map(str, (*vars(way).values(), size, replay, seed, steps or "once")))
    corpus = f"zh-{size}" if steps is None else "zh-more"
    shards = [
        options.out / f"shards-{way.vocabulary}-{part}" for part in (corpus, *(["en"] if replay else []))
    ]
    out = options.out / "runs" / name
    words: list[object] = [
        "--model",
        model_of(options, way.vocabulary),
        "--shards",
        *shards,
        "--rows",
        way.rows,
    ]
    words += ["--learning-rate", way.body_rate, "--rows-learning-rate", way.rows_rate, "--seed", seed]
    words += ["--batch-size", BATCH, "--sequence-length", LENGTH, "--dtype", options.dtype]
    words += ["--evaluate-every", 10**6, "--heldout-bytes", options.heldout_bytes]
    words += [f"--heldout.{text}={options.out / f'heldout-{text}.jsonl'}" for text in ("zh", "en")]
    words += ["--share", 1 - replay, replay] if replay else []
    words += ["--steps", steps] if steps else []
    metrics = yayan("pretrain", *words, "--out", out)["metrics"]
    after, before = metrics["bits_per_byte_after"], metrics["bits_per_byte_before"]
    counts = {"seconds": seconds_of(out), "tokens": metrics["tokens"], "steps": metrics["steps"]}
    return {**after, "zh_before": before["zh"], "en_before": before["en"], **counts}


def seconds_of(out: Path) -> float:
    """The median of a step times the steps."""
    ends = step_ends(out)
    return median(after - before for before, after in pairwise(ends)) * (len(ends) - 1)


def yayan(*words: object) -> dict:
    """A verb's record."""
    command = [sys.executable, "-m", "yayan", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def print_table(title: str, table: dict[tuple[Way, float], list[dict[str, float]]]) -> None:
    print(
        f"\n{title}\n\n| vocabulary | rows | English replay | Chinese, bits per byte | English | tokens | seconds |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for (way, replay), runs in table.items():
        cells = [spread([found[text] for found in runs]) for text in ("zh", "en")]
        tokens, seconds = (mean(found[name] for found in runs) for name in ("tokens", "seconds"))
        print(
            f"| {way.vocabulary} | {way.rows} | {replay:.0%} | {' | '.join(cells)} | {tokens:,.0f} | {seconds:,.0f} |"
        )
    starts = {way.vocabulary: runs[0] for (way, _), runs in table.items()}
    for vocabulary, found in starts.items():
        print(
            f"| {vocabulary} | before | | {found['zh_before']:.3f} | {found['en_before']:.3f} | 0 | 0 |",
            flush=True,
        )


def spread(values: list[float]) -> str:
    """The mean, and the least and the most."""
    assert all(map(math.isfinite, values))
    return f"{mean(values):.3f} ({min(values):.3f}..{max(values):.3f})"


if __name__ == "__main__":
    main()
