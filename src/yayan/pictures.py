"""Pictures as SVG: inside a page, whose colours they take, light or dark, or as a file of their own."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

INK = "#010203"  # becomes the page's text colour
SERIES = ("#a10001", "#a10002", "#a10003", "#a10004")  # become the page's --series-1 .. --series-4
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the reader's own fonts
    "svg.hashsalt": "yayan",  # the same data gives the same bytes
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
ALONE = {  # colours of a picture outside the page: the page's light ones
    "currentColor": "#23211d",
    "var(--series-1)": "#b4a68c",
    "var(--series-2)": "#a8322d",
    "var(--series-3)": "#3f6a8a",
    "var(--series-4)": "#5c7f4f",
}
PAPER = "#ffffff"
LINES = (*SERIES[1:], SERIES[0])  # the page's accent first: the first of the bars is the quiet one, "before"
SMOOTHED_SHARE = 40  # the smoothed loss is a mean over a 40th of the steps
FAINTEST, DARKEST = 0.08, 0.55  # of the shades of a heat map, so that figures stay legible on them


def svg_of(figure: Figure) -> str:
    """A figure as an `<svg>` element with the page's colours."""
    stream = StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser draws the text, not matplotlib
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(stream, format="svg", transparent=True, bbox_inches="tight", metadata=nothing)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    for number, colour in enumerate(SERIES, 1):
        svg = svg.replace(colour, f"var(--series-{number})")
    return svg


def standalone(svg: str) -> str:
    """A picture of the page as the text of an SVG file: with colours of its own, on white."""
    for name, colour in ALONE.items():
        svg = svg.replace(name, colour)
    head = svg.index(">") + 1
    paper = f'<rect width="100%" height="100%" fill="{PAPER}"/>'
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg[:head]}\n {paper}{svg[head:]}'


def draw_bars(groups: Mapping[str, Sequence[tuple[str, float, list[float] | None]]], unit: str) -> str:
    """Horizontal bars in groups: {group: [(label, value, 95 % interval or None)]}, the interval as a whisker."""
    rows = sum(map(len, groups.values())) + len(groups) - 1
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.5 + 0.3 * rows))
        axes = figure.subplots()
        place, ticks, labels = 0.0, [], []
        for group, bars in groups.items():
            for number, (label, value, interval) in enumerate(bars):
                axes.barh(place, value, height=0.72, color=SERIES[min(number, len(SERIES) - 1)])
                if interval:
                    axes.plot(interval, [place, place], color=INK, linewidth=1.2, marker="|", markersize=6)
                end = max(value, *(interval or [value]))
                axes.annotate(f"{value:.2f}", (end, place), (5, 0), textcoords="offset points", va="center")
                ticks.append(place)
                labels.append(f"{group}  {label}")
                place += 1
            place += 0.6
        axes.set_yticks(ticks, labels)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.margins(x=0.12)
        axes.set_xlabel(unit)
        return svg_of(figure)


def draw_training(
    lines: Sequence[dict],
    loss: str = "loss, nats a token",
    heldout: str = "held-out bits per byte",
    step: str = "step",
) -> str:
    """The loss of a training by step, and beside it held-out bits per byte where they were measured.

    `loss` and `heldout` are the titles of the two, `step` names their axis.
    """
    held = [line for line in lines if line.get("bits_per_byte")]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.4))
        figure.set_layout_engine("tight", w_pad=2)
        panels = figure.subplots(1, 2 if held else 1, squeeze=False)[0]
        draw_loss(panels[0], [line for line in lines if "loss" in line])
        panels[0].set_title(loss)
        for panel in panels:
            panel.set_xlabel(step)
        if held:
            names = held[0]["bits_per_byte"]
            for colour, name in zip(LINES * len(names), names, strict=False):
                values = [line["bits_per_byte"][name] for line in held]
                panels[1].plot([line["step"] for line in held], values, color=colour, marker=".", label=name)
            panels[1].set_title(heldout)
            panels[1].legend()
        return svg_of(figure)


def draw_loss(axes: Axes, lines: Sequence[dict]) -> None:
    """Each step faintly, a running mean on top."""
    steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
    width = max(len(losses) // SMOOTHED_SHARE, 1)
    recent = [losses[max(end - width, 0) : end] for end in range(1, len(losses) + 1)]
    means = [sum(values) / len(values) for values in recent]
    if width > 1:
        axes.plot(steps, losses, color=LINES[0], alpha=0.3, linewidth=0.7)
    axes.plot(steps, means, color=LINES[0])


@dataclass(frozen=True)
class Curve:
    """Points of a line, and the 95 % interval of each (None where there is none)."""

    xs: Sequence[float]
    ys: Sequence[float]
    intervals: Sequence[list[float] | None]


def draw_curves(curves: Mapping[str, Curve], across: str, up: str) -> str:
    """Lines over a common axis, with their intervals as bands; `across` and `up` name the axes."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.6))
        axes = figure.subplots()
        for colour, (name, curve) in zip(LINES * len(curves), curves.items(), strict=False):
            axes.plot(curve.xs, curve.ys, color=colour, marker=".", label=name)
            known = [(x, *pair) for x, pair in zip(curve.xs, curve.intervals, strict=True) if pair]
            if known:
                xs, lows, highs = zip(*known, strict=True)
                axes.fill_between(xs, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.set_ylim(bottom=0)
        axes.legend()
        return svg_of(figure)


def draw_heat_map(
    shares: Sequence[Sequence[float]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    row_title: str,
    column_title: str,
) -> str:
    """A table of shares, 0 to 1, as shaded cells with the percent in each: the fuller, the more."""
    with mpl.rc_context(STYLE | {"axes.spines.left": False, "axes.spines.bottom": False}):
        figure = Figure(figsize=(7.2, 0.9 + 0.34 * len(rows)))
        axes = figure.subplots()
        for y, row in enumerate(shares):
            for x, share in enumerate(row):
                shade = FAINTEST + (1 - FAINTEST) * share
                axes.add_patch(Rectangle((x, y), 0.95, 0.92, facecolor=SERIES[2], alpha=shade * DARKEST))
                axes.text(x + 0.475, y + 0.46, f"{100 * share:.0f} %", ha="center", va="center")
        axes.set_xlim(0, len(columns))
        axes.set_ylim(len(rows), 0)
        axes.set_xticks([x + 0.475 for x in range(len(columns))], columns)
        axes.set_yticks([y + 0.46 for y in range(len(rows))], rows)
        axes.tick_params(length=0)
        axes.set_xlabel(column_title)
        axes.set_ylabel(row_title)
        return svg_of(figure)
