"""The figures of `eval tokens` as tables and as a picture: for the terminal, for its folder and for the report."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from yayan.evaluate.languages import say, titles
from yayan.evaluate.page import Table
from yayan.evaluate.words import percent, two
from yayan.pictures import draw_bars

WIDE = 1000  # columns of a terminal: a row is never broken by us
Metrics = Mapping[str, Any]


def tables(metrics: Metrics) -> list[Table]:
    """The texts under each tokenizer, and the tokenizers."""
    return [text_table(metrics), tokenizer_table(metrics)]


def text_table(metrics: Metrics) -> Table:
    rows = []
    for text, size in metrics["texts"].items():
        for name, row in size["tokenizers"].items():
            rows.append(
                [
                    text,
                    name,
                    f"{row['tokens_per_character']:.3f}",
                    two(row["bytes_per_token"]),
                    percent(row["byte_fallback_share"]),
                    f"{row['unknown_tokens']:,}",
                    f"{row['round_trip_failures']:,}",
                    f"{size['documents']:,}",
                    f"{size['bytes']:,}",
                ]
            )
    columns = titles("text", "tokenizer", "tokens a character", "bytes a token", "byte fallback")
    columns += titles("unknown tokens", "documents changed", "documents", "bytes")
    return Table(columns, rows, list(range(2, 9)))


def tokenizer_table(metrics: Metrics) -> Table:
    rows = [
        [
            name,
            say(row["kind"]),
            *(f"{row[key]:,}" for key in ("ids", "dead_ids", "unreachable_bytes", "special_ids")),
        ]
        for name, row in metrics["tokenizers"].items()
    ]
    columns = titles("tokenizer", "kind", "ids", "dead ids", "bytes that no text gives", "special ids")
    return Table(columns, rows, list(range(2, 6)))


def picture(metrics: Metrics) -> str:
    """Tokens per character of each text under each tokenizer, as an `<svg>` element."""
    bars = {
        text: [(name, row["tokens_per_character"], None) for name, row in size["tokenizers"].items()]
        for text, size in metrics["texts"].items()
    }
    return draw_bars(bars, say("tokens a character"))


def show(table: Table) -> None:
    """Print a table on standard output."""
    drawn = RichTable(box=box.SIMPLE, pad_edge=False)
    for number, column in enumerate(table.columns):
        drawn.add_column(escape(column), justify="right" if number in table.numeric else "left")
    for row in table.rows:
        drawn.add_row(*map(escape, row))
    Console(highlight=False, width=WIDE).print(drawn)
