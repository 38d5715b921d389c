"""How should the rows of new tokens start? All initialisations of `yayan grow`, at equal bytes of text.

Question  Bits per byte of held-out Chinese and English before training and after the same Chinese documents.
Peer      Not extending: the base model as it is, trained by the same recipe on the same documents.
Limit     What training takes back: an initialisation moves the beginning, and the more is trained the less it matters;
          the spread of a column over its rows is all that any of them can still win. Speed: the share of the machine's
          measured matrix product that training reaches. Where we expect to lose: English, and Chinese before training,
          where a new token cannot yet do what bytes did.
Command   python benchmarks/inits.py --base BASE --data DATA --out OUT --bytes 250000,1000000,4000000 --seeds 1,2,3

Every row trains on the first bytes of one fixed mixture of documents: segment by segment between the marks, each token
a target once, so that at a mark all rows have read the same documents. The order within a segment and LoRA's start are
the seed's. LoRA and rates as in recipes/small-base-to-zh.yaml, but the rate stays at its peak after the warm-up: a mark
does not depend on how far the run goes on. float32 by default: a CPU without bf16 instructions takes more than ten
times as long in bfloat16. The vocabulary, and the initialisations that need a corpus, see the whole training part of
the data. A finished run is a JSON file in OUT and is not repeated; one that was stopped begins again.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean

import torch
from mixture import mixture_of, take, write_texts

from yayan.corpus.batches import Batch, Mixture
from yayan.corpus.pack import Pack
from yayan.machine import DTYPES, matmul_rate
from yayan.model.folder import read_config
from yayan.model.size import size_of, training_cost
from yayan.progress import Progress
from yayan.stage import execute
from yayan.tokenizer import load_tokenizer
from yayan.train.heldout import make_evaluation
from yayan.train.loop import Plan, Run, Trainer
from yayan.train.optim import Rates
from yayan.train.pretrain import Pretrain
from yayan.train.training import build, count, make_mixture, make_plan
from yayan.vocab.grow import Grow
from yayan.vocab.init import NEED_CORPUS
from yayan.vocab.learn import Vocab

CHINESE = ("zh-lctt-tech", "zh-juejin", "zh-weekly", "zh-reviews", "zh-csl-abstracts")
ENGLISH = ("en-lctt-tech", "en-public-domain", "en-tinystories")
NOT_EXTENDED = "not extended"
PLAIN = ("noise", "mean", "noisy_mean", "mean_of_pieces", "weighted_mean_of_pieces", "similar")
ROWS = (NOT_EXTENDED, *PLAIN, "mean_of_pieces+mean", "mean_of_pieces+noise")
HELDOUT = ("zh", "en")
POSITIONS = 512  # of a sequence
WARMUP_BYTES = 50_000  # of text: a fifth of the first default mark
FAR_AWAY = 10**9  # steps


@dataclass(frozen=True)
class Settings:
    """What all rows of a table have in common."""

    vocab: int
    marks: list[int]  # bytes of text
    heldout_bytes: int
    batch_size: int
    dtype: str
    threads: int


def main() -> None:
    options = read_arguments()
    torch.set_num_threads(options.threads)
    settings = Settings(
        options.vocab,
        sorted(options.bytes),
        options.heldout_bytes,
        options.batch_size,
        options.dtype,
        options.threads,
    )
    data = prepare_data(options.data, options.out / "data", settings)
    for seed in options.seeds:
        for row in options.inits:
            result = options.out / f"{row.replace(' ', '-')}-{settings.marks[-1]}-seed-{seed}.json"
            if not finished(result, settings):
                print(f"{row}, seed {seed}", file=sys.stderr)
                folders = prepare_model(row, seed, options.base, options.data, options.out, settings)
                found = run(*folders, data, options.out, row, seed, settings)
                result.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    results = [json.loads(path.read_text()) for path in sorted(options.out.glob("*-seed-*.json"))]
    print(table([result for result in results if comparable(result["settings"], asdict(settings))]))


def read_arguments() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, help="folder of the model to extend")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the corpora, each NAME/train.jsonl.xz"
    )
    parser.add_argument("--out", type=Path, required=True)
    inits = "INPUT, INPUT+OUTPUT, or " + NOT_EXTENDED
    parser.add_argument("--inits", type=lambda text: text.split(","), default=ROWS, help=inits)
    parser.add_argument("--seeds", type=numbers, default=[1, 2, 3])
    parser.add_argument("--bytes", type=numbers, default=[250_000, 1_000_000, 4_000_000], help="marks")
    parser.add_argument("--vocab", type=int, default=40960, help="ids of the extended tokenizer")
    parser.add_argument("--heldout-bytes", type=int, default=50_000, help="of each language")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def finished(result: Path, settings: Settings) -> bool:
    """Whether the run is there. Stops the program if it is one of other settings."""
    if not result.is_file():
        return False
    if not comparable(json.loads(result.read_text())["settings"], asdict(settings)):
        sys.exit(f"{result} was made with other settings: name another --out, or remove it")
    return True


def comparable(one: dict, other: dict) -> bool:
    """The same settings, or one run goes on where the other ends."""
    shared = min(len(one["marks"]), len(other["marks"]))
    return one | {"marks": one["marks"][:shared]} == other | {"marks": other["marks"][:shared]}


def train_files(data: Path) -> list[Path]:
    return [data / name / "train.jsonl.xz" for name in CHINESE]


def prepare_data(data: Path, out: Path, settings: Settings) -> dict[str, Path]:
    """Held-out texts of both languages and the training text between the marks, as jsonl; read only once."""
    files = {name: out / f"heldout-{name}-{settings.heldout_bytes}.jsonl" for name in HELDOUT}
    spans = list(zip([0, *settings.marks], settings.marks, strict=False))
    files |= {f"{start}-{end}": out / f"train-{start}-{end}.jsonl" for start, end in spans}
    if all(path.is_file() for path in files.values()):
        return files
    out.mkdir(parents=True, exist_ok=True)
    for name, sources in (("zh", CHINESE), ("en", ENGLISH)):
        mixture = mixture_of([data / source / "heldout.jsonl.xz" for source in sources])
        write_texts(files[name], take(mixture, settings.heldout_bytes))
    mixture = mixture_of(train_files(data))
    for start, end in spans:
        write_texts(files[f"{start}-{end}"], take(mixture, end - start))
    return files


def prepare_model(
    row: str, seed: int, base: Path, data: Path, out: Path, settings: Settings
) -> tuple[Path, Path]:
    """Tokenizer and model folder of a row: the base itself, or the base grown for the extended tokenizer."""
    if row == NOT_EXTENDED:
        return base, base
    vocab, model = out / f"vocab-{settings.vocab}", out / "models" / f"{row}-{settings.vocab}-{seed}"
    execute(Vocab(base=base, corpus=train_files(data), size=settings.vocab, out=vocab))
    first, _, last = row.partition("+")
    corpus = train_files(data) if {first, last} & set(NEED_CORPUS) else None
    starts = {"init": first, "init_output": last or None}
    execute(Grow(model=base, tokenizer=vocab, corpus=corpus, seed=seed, out=model, **starts))  # type: ignore[arg-type]
    return vocab, model


def run(
    tokenizer: Path, model: Path, data: dict[str, Path], out: Path, row: str, seed: int, settings: Settings
) -> dict[str, object]:
    """Train through all marks and measure at each."""
    segments = {name: path for name, path in data.items() if name not in HELDOUT}
    shards = {name: out / "shards" / f"{tokenizer.name}-{name}" for name in segments}
    for name, path in segments.items():
        execute(Pack(tokenizer=tokenizer, corpus=[path], out=shards[name]))
    recipes = [recipe_of(model, folder, seed, settings) for folder in shards.values()]
    ends, groups, _ = build(recipes[0])
    texts = {name: data[name] for name in HELDOUT}
    evaluate = make_evaluation(texts, load_tokenizer(model), settings.heldout_bytes, POSITIONS)
    mixtures = [make_mixture(recipe) for recipe in recipes]
    plan = constant_rate(recipes[0], mixtures[0], settings)
    trainer = Trainer(ends, groups, mixtures[0], plan, out)
    state = trainer.run
    marks: list[dict] = [mark(0, 0, state) | trainer.measure(evaluate)]
    for size, mixture in zip(settings.marks, mixtures, strict=True):
        steps = math.ceil(mixture.sequences_per_epoch[0] / mixture.batch_size)
        stream, started = once(mixture), time.monotonic()
        with Progress(f"train to {size:,} bytes", total=steps, unit="steps") as bar:
            for _ in range(steps):
                trainer.step(stream)
                bar.advance()
        state.seconds += time.monotonic() - started
        tokens = marks[-1]["tokens"] + mixture.tokens_per_epoch[0]
        marks.append(mark(size, tokens, state) | trainer.measure(evaluate))
    trained = {name: count(group) for name, group in groups.items()}
    limit = limit_tokens_per_second(model, trained["body"], settings)
    about = {"row": row, "seed": seed, "settings": asdict(settings), "trained_parameters": trained}
    return about | {"limit_tokens_per_second": limit, "load": os.getloadavg()[0], "marks": marks}


def recipe_of(model: Path, shards: Path, seed: int, settings: Settings) -> Pretrain:
    """LoRA and rates of recipes/small-base-to-zh.yaml."""
    return Pretrain(
        model=model,
        shards=[shards],
        rows="all",
        rank=64,
        alpha=128,
        learning_rate=1e-3,
        rows_learning_rate=2e-3,
        sequence_length=POSITIONS,
        batch_size=settings.batch_size,
        dtype=settings.dtype,  # type: ignore[arg-type]
        seed=seed,
        out=Path("nowhere"),  # the stage itself is not carried out
    )


def constant_rate(recipe: Pretrain, mixture: Mixture, settings: Settings) -> Plan:
    """The plan of a run whose end is so far away that the rates stay at their peak after the warm-up."""
    warmup = max(round(mixture.steps(1) * WARMUP_BYTES / settings.marks[0]), 1)
    plan = make_plan(recipe, mixture)
    return replace(plan, rates=Rates(FAR_AWAY, warmup))


def once(mixture: Mixture) -> Iterator[tuple[Batch, dict]]:
    """All sequences of an epoch, each once: the last batch may have fewer."""
    left = mixture.sequences_per_epoch[0]
    for batch, state in mixture.batches():
        rows = min(left, mixture.batch_size)
        yield Batch(batch.ids[:rows], batch.targets[:rows], batch.positions[:rows]), state
        left -= rows
        if not left:
            return


def mark(size_bytes: int, tokens: int, state: Run) -> dict[str, object]:
    """What has been trained up to a mark, and the memory that is held then (mapped files apart)."""
    status = Path("/proc/self/status").read_text()
    held = int(status.split("RssAnon:")[1].split()[0]) * 1000
    about = {"bytes": size_bytes, "tokens": tokens, "targets": state.targets, "steps": state.step}
    return about | {"seconds": round(state.seconds, 1), "anonymous_bytes": held}


def limit_tokens_per_second(model: Path, trained_body: int, settings: Settings) -> float:
    """Tokens a second if all operations of training ran at the rate of this machine's matrix product."""
    size = size_of(read_config(model))
    cost = training_cost(
        size,
        trained_body=trained_body,
        trained_rows=size.rows,
        whole_body=False,
        dtype=settings.dtype,
        positions=settings.batch_size * POSITIONS,
        sequence_length=POSITIONS,
    )
    return matmul_rate(DTYPES[settings.dtype]) / cost.flops_per_token


def table(results: Sequence[dict]) -> str:
    """Markdown: bits per byte at each mark, mean over the seeds (least..most); then what it took."""
    runs: dict[str, dict[int, dict]] = {}
    for result in sorted(results, key=lambda result: result["settings"]["marks"][-1]):
        runs.setdefault(result["row"], {})[result["seed"]] = result  # the longest run of a seed
    sizes = sorted({found["bytes"] for result in results for found in result["marks"]})
    names = {"zh": "Chinese", "en": "English"}
    head = ["new rows", *(f"{names[text]}, {size / 1e6:g} MB" for text in HELDOUT for size in sizes)]
    head += ["seeds", "tokens", "tokens/s", "of the limit", "memory"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in sorted(runs, key=lambda row: (ROWS.index(row) if row in ROWS else len(ROWS), row)):
        found = list(runs[row].values())
        cells = [row]
        for text in HELDOUT:
            for size in sizes:
                values = [at[text] for run in found for at in run["marks"] if at["bytes"] == size]
                cells.append(spread(values))
        last = [run["marks"][-1] for run in found]
        speeds = [at["tokens"] / at["seconds"] for at in last]
        shares = [speed / run["limit_tokens_per_second"] for speed, run in zip(speeds, found, strict=True)]
        memory = max(at["anonymous_bytes"] for at in last)
        cells += [str(len(found)), f"{max(at['tokens'] for at in last):,}", f"{mean(speeds):,.0f}"]
        lines.append([*cells, f"{mean(shares):.0%}", f"{memory / 1e6:,.0f} MB"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Sequence[float]) -> str:
    if len(values) < 2 or min(values) == max(values):
        return f"{values[0]:.3f}" if values else ""
    return f"{mean(values):.3f} ({min(values):.3f}..{max(values):.3f})"


if __name__ == "__main__":
    main()
