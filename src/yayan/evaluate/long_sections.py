"""LongBench and planted facts as tables and pictures: for the terminal and for the report."""

from collections.abc import Mapping
from typing import Any

from yayan.evaluate.languages import counted, paragraph, say, titles
from yayan.evaluate.page import Picture, Section, Table
from yayan.evaluate.steps import Step
from yayan.evaluate.words import percent, span
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
            say(row["column"]),
            say(row["metric"].replace("_", " ")),
            one(row["score"]),
            span(row["interval"], one),
            f"{row['items']:,}",
            f"{row['truncated']:,}",
        ]
        for name, row in m["tasks"].items()
    ]
    names = titles("task", "column", "metric", "score", "95 % interval", "items", "cut in the middle")
    tasks = Table(names, rows, [3, 4, 5, 6])
    found = {language: part for language, part in m["languages"].items() if any_of(part)}
    if not found:
        return [tasks]
    columns = list(next(iter(found.values()))["columns"])
    means = [
        [say(NAMES[language]), *(one(part["columns"][column]) for column in columns), one(part["average"])]
        for language, part in found.items()
    ]
    numeric = list(range(1, len(columns) + 2))
    return [tasks, Table(titles("columns", *columns, "average"), means, numeric)]


def any_of(part: Metrics) -> bool:
    return any(value is not None for value in part["columns"].values())


def longbench(steps: list[Step]) -> list[Section]:
    """The tasks of each model, and the columns that are whole."""
    found = []
    for step in steps:
        if step.stage == "eval longbench":
            m = step.metrics
            tables = longbench_tables(m)
            found.append(Section(say("LongBench: {step}", step=step.name), longbench_rules(m), tables[0]))
            title = say("LongBench columns: {step}", step=step.name)
            found += [Section(title, table=table) for table in tables[1:]]
    return found


def longbench_rules(m: Metrics) -> str:
    asked = say("as plain text")
    if m["chat"]:
        asked = say("in the model's chat template where the protocol wants it")
    text = say(
        "Asked {how}, in a context of {context:,} tokens; scores are 0 to 100.",
        how=asked,
        context=m["context"],
    )
    parts = [text, *answered_elsewhere(m)]
    if m["limit"]:
        few = say("Asked of each task: {items} at its beginning.", items=counted(m["limit"], "item"))
        parts.append(few)
    return paragraph(parts)


def answered_elsewhere(m: Metrics) -> list[str]:
    """The sentence on an endpoint, if one answered."""
    if "endpoint" not in m:
        return []
    names = {"name": m["endpoint_model"], "url": m["endpoint"]}
    return [say("Answered by {name} at {url}, prompts cut as the local model cuts them.", **names)]


def needle_table(m: Metrics) -> Table:
    """How many planted facts were found, by depth (rows) and length (columns)."""
    rows = [[f"{depth} %", *map(found_of, row)] for depth, row in zip(m["depths"], m["cells"], strict=True)]
    columns = [say("depth"), *(say("{tokens:,} tokens", tokens=length) for length in m["lengths"])]
    control = [say("not planted"), *map(found_of, m["control"])]
    return Table(columns, [*rows, control], list(range(1, len(columns))))


def found_of(cell: Metrics) -> str:
    return say("{part} of {whole}", part=cell["found"], whole=cell["asked"])


def needle_picture(m: Metrics) -> str:
    """The shares of the table as an `<svg>` element."""
    shares = [[cell["found"] / cell["asked"] for cell in row] for row in m["cells"]]
    return draw_heat_map(
        shares,
        rows=[f"{depth} %" for depth in m["depths"]],
        columns=[f"{length:,}" for length in m["lengths"]],
        row_title=say("depth of the fact"),
        column_title=say("tokens of the prompt"),
    )


def needles(steps: list[Step]) -> list[Section]:
    found = []
    for step in steps:
        if step.stage == "eval needle":
            m = step.metrics
            text = say(
                "{found} of {asked} facts found, {share} ({interval}); without the fact, {control_found} of "
                "{control_asked} answers held it all the same.",
                share=percent(m["share"]),
                interval=span(m["interval"], percent),
                **{name: m[name] for name in ("found", "asked", "control_found", "control_asked")},
            )
            caption = say("{step}: share of planted facts that were found.", step=step.name)
            title = say("Planted facts: {step}", step=step.name)
            text = paragraph([text, *answered_elsewhere(m)])
            found.append(Section(title, text, needle_table(m), [Picture(needle_picture(m), caption)]))
    return found
