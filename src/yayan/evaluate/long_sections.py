"""LongBench and planted facts as tables and pictures: for the terminal and for the report."""

from collections.abc import Mapping
from typing import Any

from yayan.evaluate.page import Picture, Section, Table
from yayan.evaluate.steps import Step
from yayan.evaluate.words import counted, percent, span
from yayan.pictures import draw_heat_map

Metrics = Mapping[str, Any]
NAMES = {"zh": "Chinese and code", "en": "English and code"}


def one(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def longbench_tables(m: Metrics) -> list[Table]:
    """The tasks that were asked, and the six columns of the languages that have a whole one."""
    rows = [
        [
            name,
            row["column"],
            row["metric"].replace("_", " "),
            one(row["score"]),
            span(row["interval"], one),
            f"{row['items']:,}",
            f"{row['truncated']:,}",
        ]
        for name, row in m["tasks"].items()
    ]
    names = ["task", "column", "metric", "score", "95 % interval", "items", "cut in the middle"]
    tasks = Table(names, rows, [3, 4, 5, 6])
    found = {language: part for language, part in m["languages"].items() if any_of(part)}
    if not found:
        return [tasks]
    columns = list(next(iter(found.values()))["columns"])
    means = [
        [NAMES[language], *(one(part["columns"][column]) for column in columns), one(part["average"])]
        for language, part in found.items()
    ]
    numeric = list(range(1, len(columns) + 2))
    return [tasks, Table(["columns", *columns, "average"], means, numeric)]


def any_of(part: Metrics) -> bool:
    return any(value is not None for value in part["columns"].values())


def longbench(steps: list[Step]) -> list[Section]:
    """The tasks of each model, and the columns that are whole."""
    found = []
    for step in steps:
        if step.stage == "eval longbench":
            m = step.metrics
            asked = (
                "in the model's chat template where the protocol wants it" if m["chat"] else "as plain text"
            )
            few = (
                f" Asked of each task: {counted(m['limit'], 'item')} at its beginning." if m["limit"] else ""
            )
            text = f"Asked {asked}, in a context of {m['context']:,} tokens; scores are 0 to 100.{few}"
            tables = longbench_tables(m)
            found += [Section(f"LongBench: {step.name}", text, tables[0])]
            found += [Section(f"LongBench columns: {step.name}", table=table) for table in tables[1:]]
    return found


def needle_table(m: Metrics) -> Table:
    """How many planted facts were found, by depth (rows) and length (columns)."""
    rows = [
        [f"{depth} %", *(f"{cell['found']} of {cell['asked']}" for cell in row)]
        for depth, row in zip(m["depths"], m["cells"], strict=True)
    ]
    control = [f"{cell['found']} of {cell['asked']}" for cell in m["control"]]
    columns = ["depth", *(f"{length:,} tokens" for length in m["lengths"])]
    return Table(columns, [*rows, ["not planted", *control]], list(range(1, len(columns))))


def needle_picture(m: Metrics) -> str:
    """The shares of the table as an `<svg>` element."""
    shares = [[cell["found"] / cell["asked"] for cell in row] for row in m["cells"]]
    return draw_heat_map(
        shares,
        rows=[f"{depth} %" for depth in m["depths"]],
        columns=[f"{length:,}" for length in m["lengths"]],
        row_title="depth of the fact",
        column_title="tokens of the prompt",
    )


def needles(steps: list[Step]) -> list[Section]:
    found = []
    for step in steps:
        if step.stage == "eval needle":
            m = step.metrics
            text = (
                f"{m['found']} of {m['asked']} facts found, {percent(m['share'])} "
                f"({span(m['interval'], percent)}); without the fact, {m['control_found']} of {m['control_asked']} "
                "answers held it all the same."
            )
            picture = Picture(needle_picture(m), f"{step.name}: share of planted facts that were found.")
            found.append(Section(f"Planted facts: {step.name}", text, needle_table(m), [picture]))
    return found
