"""What a packing says of itself: metrics for the record, and tables for the reader."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from yayan.corpus.counts import Counts, source_name, total

SHOWN_SOURCES = 20
PLAIN_WIDTH = 132  # characters


def metrics_of(files: Sequence[Path], counts: Sequence[Counts], targets: int) -> dict[str, Any]:
    """Sizes of all documents together and of each source; what was dropped, rewritten or could not be read."""
    whole = total(counts)
    sources = [
        {"name": source_name(path), **item.figures(), "dropped": item.dropped.counts}
        for path, item in zip(files, counts, strict=True)
    ]
    return {
        "read": whole.read,
        **whole.figures(),
        "targets": targets,
        "dropped": whole.dropped.counts,
        "dropped_examples": whole.dropped.examples,
        "rewritten": whole.rewritten.counts,
        "rewritten_examples": whole.rewritten.examples,
        "bad": whole.bad,
        "bad_places": whole.bad_places,
        "sources": sources,
    }


def tell(metrics: Mapping[str, Any]) -> None:
    """Print the sources, and what became of what did not come through as it was."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)  # figures in a log are not to be cut short
    console.print(table_of_sources(metrics))
    for name, title in (("dropped", "left out"), ("rewritten", "rewritten")):
        for what, count in metrics[name].items():
            if count:
                console.print(f"{title}, {what}: {count:,} documents")
                for example in metrics[f"{name}_examples"].get(what, []):
                    console.print(f"  {example}", markup=False)
    for reason, count in metrics["bad"].items():
        console.print(f"not readable, {reason}: {count:,}")
    for place in metrics["bad_places"]:
        console.print(f"  {place}", markup=False)
    dropped = sum(metrics["dropped"].values())
    console.print(f"{metrics['read']:,} in = {metrics['documents']:,} packed + {dropped:,} left out")


def table_of_sources(metrics: Mapping[str, Any]) -> Table:
    """A row for each source (of many, the first), and one for all."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("source")
    for head in ("documents", "left out", "characters", "bytes", "tokens", "tokens/character"):
        table.add_column(head, justify="right")
    rows = list(metrics["sources"][:SHOWN_SOURCES])
    more = len(metrics["sources"]) - len(rows)
    for row in [*rows, {**metrics, "name": f"all, {more} more" if more else "all"}]:
        sizes = [f"{row[name]:,}" for name in ("characters", "bytes", "tokens")]
        dropped = sum(row["dropped"].values())
        ratio = f"{row['tokens_per_character']:.4f}"
        table.add_row(row["name"], f"{row['documents']:,}", f"{dropped:,}", *sizes, ratio)
    return table
