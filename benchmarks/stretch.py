"""What does each way of stretching a model give by position, untrained and trained a little, and what does it cost?

Question  Bits per byte by position up to --times the trained length, and of short texts, for every method.
Peer      `none`: the model's own frequencies beyond its limit, as it fails. `adaptive`: its own up to the limit and the
          larger base of the step that the text needs (yayan.model.longer), without any training.
Limit     Short texts: what the model itself gives. Long ones: no worse beyond the old limit than at it.
Command   python benchmarks/stretch.py --model MODEL --data DATA --out OUT --minutes 10
          with --minutes 0 nothing is trained. MODEL for the page in docs/: the small base of 512 positions, adapted by
          yayan run recipes/small-base-to-zh.yaml base=../shared/base/en-base-21m-512 out=runs/small-512-to-zh

Every stretched model is made by `yayan stretch` and trained by `yayan pretrain --train full` at the new length, on
--long and, for three tenths of the tokens, on --short texts, all for as many steps as fit into --minutes at the speed
of the first. A long document counts from its first token to the last position; all are read in one pass. Where we
expect to lose: short texts by all ways but `adaptive` and `dynamic`, before the training and a little after it.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import matplotlib as mpl
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from processes import parser_of, refuse_busy_machine, step_ends, yayan
from transformers import PreTrainedModel

from yayan.corpus.read import documents
from yayan.model.folder import read_config
from yayan.model.load import load_model
from yayan.model.longer import Method, choose_stretch, positions_of, rope_applied
from yayan.model.score import HEAD_ROWS, bits_per_byte, body_and_head, score_sequences
from yayan.pictures import LINES, STYLE, standalone, svg_of
from yayan.tokenizer import Tokenizer, load_tokenizer

PARTS = 4  # of each trained length
SHORT_SHARE = 0.3
TRIAL_STEPS = 3
BATCH = 4
LEARNING_RATE, SEED = 3e-4, 1


@dataclass(frozen=True)
class Texts:
    """What is measured: ids after BOS; `edges`: positions between which the bits of long ones are summed."""

    long: list[list[int]]
    short: list[list[int]]
    long_bytes: list[list[int]]  # of each part of each long text
    short_bytes: int
    edges: list[int]


def main() -> None:
    options = read_arguments()
    refuse_busy_machine(options.most_load)
    options.out.mkdir(parents=True, exist_ok=True)
    trained = positions_of(read_config(options.model))
    texts = read_texts(options, load_tokenizer(options.model), trained)
    stretched = {method: stretch(options, method, options.times * trained) for method in options.methods}
    rows = {name: measured(folder, texts, name) for name, folder in folders(options.model, stretched)}
    show("untrained", rows, texts, trained)
    draw(options.out / "stretch-untrained.svg", rows, texts, trained)
    if options.minutes:
        steps = steps_of(options, next(iter(stretched.values())), options.times * trained)
        rows = {}
        for method, folder in stretched.items():
            if (
                method != "dynamic"
            ):  # its frequencies follow each batch: there is nothing to train at the new length
                done = train(options, folder, options.times * trained, steps)
                rows[method] = measured(done, texts, method)
        title = f"after {steps} steps of {options.times * trained * BATCH:,} tokens"
        show(title, rows, texts, trained)
        draw(options.out / "stretch-trained.svg", rows, texts, trained)


def read_arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--long", default="zh-novels-classical", help="corpus of long documents")
    parser.add_argument("--short", nargs="+", default=["zh-csl-abstracts", "zh-reviews"])
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--methods", nargs="+", choices=get_args(Method), default=list(get_args(Method)))
    parser.add_argument(
        "--documents", type=int, default=20, help="long documents; short ones are ten times as many"
    )
    parser.add_argument("--minutes", type=float, default=10)
    return parser.parse_args()


def corpus(options: argparse.Namespace, name: str, split: str) -> Path:
    return options.data / name / f"{split}.jsonl.xz"


def read_texts(options: argparse.Namespace, tokenizer: Tokenizer, trained: int) -> Texts:
    """Long documents that reach the last position, and short ones that fit into the trained length."""
    end = options.times * trained
    edges = [part * trained // PARTS for part in range(options.times * PARTS + 1)]
    long = list(taken(tokenizer, [corpus(options, options.long, "heldout")], end, None, options.documents))
    paths = [corpus(options, name, "heldout") for name in options.short]
    short = list(taken(tokenizer, paths, 1, trained, 10 * options.documents))
    if not long or not short:
        sys.exit("the held-out texts have no document that is long enough, or none that is short enough")
    return Texts(
        [ids[: end + 1] for ids in long],
        short,
        [byte_counts(tokenizer, ids, edges) for ids in long],
        sum(len(tokenizer.decode(ids[1:]).encode()) for ids in short),
        edges,
    )


def taken(
    tokenizer: Tokenizer, paths: Sequence[Path], least: int, most: int | None, count: int
) -> Iterator[list[int]]:
    """Ids of the first documents of each corpus with so many tokens, after BOS."""
    begin = [tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id]
    for path in paths:
        encoded = (begin + tokenizer.encode(document.text) for document in documents([path]))
        fitting = (ids for ids in encoded if least < len(ids) and (most is None or len(ids) <= most))
        yield from itertools.islice(fitting, count // len(paths))


def byte_counts(tokenizer: Tokenizer, ids: list[int], edges: list[int]) -> list[int]:
    """Bytes of the text of each part."""
    ends = [len(tokenizer.decode(ids[1 : edge + 1]).encode()) for edge in edges]
    return [end - start for start, end in itertools.pairwise(ends)]


def folders(model: Path, stretched: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    yield from (("none", model), ("adaptive", model))
    yield from stretched.items()


def stretch(options: argparse.Namespace, method: Method, to: int) -> Path:
    out = options.out / method
    yayan("stretch", options.model, "--to", to, "--method", method, "--out", out)
    return out


def measured(folder: Path, texts: Texts, name: str) -> tuple[list[float], float]:
    """Bits per byte of each part of the long texts, and of the short ones."""
    model = load_model(folder)
    parts = [0.0] * (len(texts.edges) - 1)
    with frequencies_for(model, name, texts.edges[-1]):
        for ids in texts.long:
            nats = nats_of(model, ids)
            for part, (start, end) in enumerate(itertools.pairwise(texts.edges)):
                parts[part] += nats[start:end].sum().item()
    body, head = body_and_head(model)
    short = sum(score_sequences(body, head, texts.short, context=max(map(len, texts.short))))
    sizes = [sum(column) for column in zip(*texts.long_bytes, strict=True)]
    return [bits_per_byte(*pair) for pair in zip(parts, sizes, strict=True)], bits_per_byte(
        short, texts.short_bytes
    )


def frequencies_for(model: PreTrainedModel, name: str, tokens: int) -> AbstractContextManager[None]:
    """Those of the step that a text needs, where they are chosen for each."""
    if name != "adaptive":
        return nullcontext()
    return rope_applied(model, choose_stretch(model.config.to_dict(), tokens).rope)


@torch.no_grad()
def nats_of(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Nats of every token but the first, in one pass over all of them."""
    body, head = body_and_head(model)
    h_TD, targets_T = body(torch.tensor([ids[:-1]]))[0], torch.tensor(ids[1:])
    pairs = zip(h_TD.split(HEAD_ROWS), targets_T.split(HEAD_ROWS), strict=True)
    return torch.cat([F.cross_entropy(head(h).float(), t, reduction="none").double() for h, t in pairs])


def steps_of(options: argparse.Namespace, folder: Path, length: int) -> int:
    """As many as fit into the minutes, by the last step of a short trial."""
    done = train(options, folder, length, TRIAL_STEPS)
    ends = step_ends(done)
    return max(round(60 * options.minutes / (ends[-1] - ends[-2])), 1)


def train(options: argparse.Namespace, folder: Path, length: int, steps: int) -> Path:
    """The whole model at the new length, on long and short documents."""
    shards = []
    for name, sources in (("long", [options.long]), ("short", options.short)):
        shards.append(options.out / f"shards-{name}")
        paths = [corpus(options, source, "train") for source in sources]
        yayan("pack", "--tokenizer", options.model, "--corpus", *paths, "--out", shards[-1])
    out = options.out / f"{folder.name}-{steps}"
    words: list[object] = ["--model", folder, "--shards", *shards, "--share", 1 - SHORT_SHARE, SHORT_SHARE]
    for name in ("--learning-rate", "--rows-learning-rate"):
        words += [name, LEARNING_RATE]
    words += ["--train", "full", "--batch-size", BATCH, "--dtype", "bfloat16", "--seed", SEED]
    words += ["--sequence-length", length, "--steps", steps]
    yayan("pretrain", *words, "--out", out)
    return out


def show(title: str, rows: Mapping[str, tuple[list[float], float]], texts: Texts, trained: int) -> None:
    """A table: one row a method, one column for each trained length, and the short texts."""
    lengths = [f"{start:,}..{start + trained:,}" for start in range(0, texts.edges[-1], trained)]
    print(f"\n{title}: {len(texts.long)} long texts, {len(texts.short)} short ones, bits per byte\n")
    print(f"| method | {' | '.join(lengths)} | short texts |\n| --- |" + " ---: |" * (len(lengths) + 1))
    for name, (parts, short) in rows.items():
        sizes = [sum(column) for column in zip(*texts.long_bytes, strict=True)]
        cells = []
        for start in range(0, len(parts), PARTS):
            own = slice(start, start + PARTS)
            bits = sum(part * size for part, size in zip(parts[own], sizes[own], strict=True))
            cells.append(f"{bits / sum(sizes[own]):.3f}")
        print(f"| {name} | {' | '.join(cells)} | {short:.3f} |", flush=True)


def draw(path: Path, rows: Mapping[str, tuple[list[float], float]], texts: Texts, trained: int) -> None:
    """Bits per byte by position, a line for each method; the old limit dotted."""
    middles = [(start + end) / 2 for start, end in itertools.pairwise(texts.edges)]
    styles = [(colour, dash) for dash in ("-", "--") for colour in LINES]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.4))
        axes = figure.subplots()
        for (colour, dash), (name, (parts, _)) in zip(styles, rows.items(), strict=False):
            axes.plot(middles, parts, color=colour, linestyle=dash, label=name)
        axes.axvline(trained, color="#010203", linewidth=0.8, linestyle=":")
        axes.set_xlabel("position, tokens (dotted: the trained length)")
        axes.set_ylabel("bits per byte")
        axes.legend()
        path.write_text(standalone(svg_of(figure)), encoding="utf-8")


if __name__ == "__main__":
    main()
