"""`yayan vocab --curve`: what each size of a vocabulary costs and gives, and which one to take.

Every candidate is made of those before it, so that the first n of them are the vocabulary of that size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from yayan.errors import UserError
from yayan.evaluate.cuts import show
from yayan.evaluate.page import Table
from yayan.model.folder import read_config, write_json
from yayan.model.size import Size, size_of
from yayan.pictures import INK, LINES, STYLE, standalone, svg_of
from yayan.progress import Progress
from yayan.vocab.base import Base

CURVE_FILE, PICTURE_FILE = "curve.json", "curve.svg"
HALVINGS = 7  # points at the whole of the new rows, a half, a quarter, ...
NEAR_BEST = 1.02  # the recommended size is the smallest within this of the least work a character
WORTH_IT = 0.85  # below this share of the base's work a character, extending is advised
ROUND_TO = 64  # rows; tensor cores and shards like multiples
F16_BYTES = 2
# Where the base is a tokenizer alone: Llama-2-7B's shape (https://huggingface.co/meta-llama/Llama-2-7b-hf).
LLAMA_2_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


@dataclass(frozen=True)
class Point:
    """One size. Costs are those of the model, gains those of held-out text."""

    size: int
    added_rows: int
    tokens_per_character: float
    added_parameters: int
    head_gflops_per_token: float
    """Forward pass of the output head: 2 operations for each weight."""
    gflops_per_character: float
    """Forward pass of the whole model but attention's scores, times tokens per character."""
    gguf_bytes: int
    """What the new rows add to an F16 file."""
    speed: float
    """Characters per second against the base, at equal tokens per second."""


def shape_of(base: Path | None) -> tuple[Size, str]:
    """The model that pays for the rows: the base's own, or Llama-2-7B's shape where the base is a tokenizer alone."""
    if base is not None and (base / "config.json").is_file():
        return size_of(read_config(base)), str(base)
    return size_of(LLAMA_2_7B), "Llama-2-7B's shape"


def measure_points(base: Base, names: Sequence[str], sample: Sequence[str], model: Size) -> list[Point]:
    """The base itself, and sizes up to all names. `sample`: texts that were not learnt from."""
    counts = sorted({0, *(len(names) >> halving for halving in range(HALVINGS)), len(names) * 3 // 4})
    characters = sum(map(len, sample))
    points: list[Point] = []
    with Progress("measure sizes", total=len(counts), unit="sizes") as bar:
        for count in counts:
            fast = base.extended(names[:count]) if count else base.plain
            cuts = fast.encode_batch_fast(list(sample), add_special_tokens=False)
            ratio = sum(len(cut.ids) for cut in cuts) / characters
            points.append(make_point(base, count, ratio, points[0] if points else None, model))
            bar.advance()
    return points


def make_point(base: Base, count: int, ratio: float, first: Point | None, model: Size) -> Point:
    size = base.taken + count if count else base.size
    added = (size - base.size) * model.width * model.ends
    head = 2 * size * model.width
    return Point(
        size=size,
        added_rows=size - base.size,
        tokens_per_character=round(ratio, 4),
        added_parameters=added,
        head_gflops_per_token=round(head / 1e9, 4),
        gflops_per_character=round((head + 2 * model.body_parameters) * ratio / 1e9, 4),
        gguf_bytes=F16_BYTES * added,
        speed=round(first.tokens_per_character / ratio, 3) if first else 1.0,
    )


def recommend(points: Sequence[Point]) -> tuple[int, str]:
    """A size, and why. Work a character falls with the tokens and rises with the head, so it has a least."""
    base, least = points[0], min(point.gflops_per_character for point in points)
    if least > WORTH_IT * base.gflops_per_character:
        saved = 1 - least / base.gflops_per_character
        return base.size, (
            f"do not extend: this base already takes {base.tokens_per_character:.2f} tokens a character, and the best "
            f"size saves {max(saved, 0):.0%} of the work a character"
        )
    point = next(point for point in points if point.gflops_per_character <= NEAR_BEST * least)
    size = -(-point.size // ROUND_TO) * ROUND_TO
    return size, (
        f"take {size:,} ids: {point.tokens_per_character:.2f} tokens a character instead of "
        f"{base.tokens_per_character:.2f}, {point.speed:.2f} times the characters at equal tokens per second, "
        f"{point.added_parameters / 1e6:,.0f} M more parameters"
    )


def draw_curve(
    folder: Path, base: Base, names: Sequence[str], sample: Sequence[str], shape: tuple[Size, str]
) -> dict[str, object]:
    """Write `curve.json` and `curve.svg`; returns the metrics. Raises UserError without held-out text."""
    if not any(sample):
        raise UserError("a curve needs at least 50 documents, of which one in 50 is kept to measure on")
    model, name = shape
    points = measure_points(base, names, sample, model)
    size, advice = recommend(points)
    rows = [asdict(point) for point in points]
    write_json(
        folder / CURVE_FILE, {"model": name, "recommended_size": size, "advice": advice, "points": rows}
    )
    (folder / PICTURE_FILE).write_text(picture(points, size), encoding="utf-8")
    return {"model": name, "recommended_size": size, "advice": advice, "points": rows}


def tell_curve(metrics: Mapping) -> None:
    """Print the points as a table, and the advice."""
    rows = [
        [
            f"{point['size']:,}",
            f"{point['tokens_per_character']:.3f}",
            f"{point['speed']:.2f}",
            f"{point['added_parameters'] / 1e6:,.1f}",
            f"{point['head_gflops_per_token']:.3f}",
            f"{point['gflops_per_character']:.3f}",
            f"{point['gguf_bytes'] / 1e6:,.1f}",
        ]
        for point in metrics["points"]
    ]
    columns = ["ids", "tokens a character", "characters a second", "added parameters, M"]
    columns += ["head GFLOPs a token", "GFLOPs a character", "added to an F16 GGUF, MB"]
    show(Table(columns, rows, list(range(len(columns)))))
    print(
        f"costs are those of {metrics['model']}; characters a second at equal tokens a second, the base's are 1"
    )
    print(metrics["advice"])


def picture(points: Sequence[Point], size: int) -> str:
    """Tokens a character and work a character by size, as an SVG file that stands alone."""
    panels = {
        "tokens_per_character": "tokens a character",
        "gflops_per_character": "GFLOPs a character (forward)",
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.8))
        for axes, (name, title) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            values = [getattr(point, name) for point in points]
            axes.plot([point.size for point in points], values, marker=".", color=LINES[0])
            axes.axvline(size, linewidth=0.8, linestyle=":", color=INK)
            axes.set_title(title)
            axes.set_xlabel("ids (dotted: recommended)")
            axes.set_ylim(bottom=0)
        figure.tight_layout(w_pad=2)
        return standalone(svg_of(figure))
