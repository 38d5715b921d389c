"""The sections of a report on what was measured position by position, of each type of the weights, and with a clock."""

from yayan.evaluate import positions as by_position
from yayan.evaluate import quant, speed
from yayan.evaluate.languages import counted, listed, say
from yayan.evaluate.page import Picture, Section, Table
from yayan.evaluate.steps import Step
from yayan.evaluate.words import megabytes, two
from yayan.pictures import draw_bars


def positions(steps: list[Step]) -> Section | None:
    """Curves of bits per byte by position, one picture for each evaluation that has them."""
    pictures = []
    for step in steps:
        if step.stage == "eval bits":
            texts = {
                name: row["by_position"]
                for name, row in step.metrics["texts"].items()
                if "by_position" in row
            }
            if texts:
                caption = say("{step}, with 95 % intervals.", step=step.name)
                pictures.append(Picture(by_position.picture(texts), caption))
    text = say(
        "A curve that falls shows that the model makes use of what stands far before. Later parts are those of the "
        "longer documents alone."
    )
    return Section(say("By position in the document"), text, pictures=pictures) if pictures else None


def quantised(steps: list[Step]) -> Section | None:
    """Each type beside F16: the whole table, and size against bits per byte."""
    found = [step for step in steps if step.stage == "eval quant"]
    if not found:
        return None
    pictures, points = [], []
    for step in found:
        types = step.metrics["types"]
        bars = {
            text: [
                (listed([kind, megabytes(row["bytes"])]), figures["bits_per_byte"], figures["interval"])
                for kind, row in types.items()
                for figures in [row["texts"][text]]
            ]
            for text in types[quant.REFERENCE]["texts"]
        }
        caption = say("{step}: less is better.", step=step.name)
        pictures.append(Picture(draw_bars(bars, say("bits per byte")), caption))
        for text, figures in types[quant.REFERENCE]["texts"].items():
            points.append(
                say(
                    "{step}, {text}: {documents} of {tokens:,} tokens, divergence over {positions:,} positions.",
                    step=step.name,
                    text=text,
                    documents=counted(figures["documents"], "document"),
                    tokens=figures["tokens"],
                    positions=figures["positions_compared"],
                )
            )
        points.append(load_of(step))
    text = say(
        "KL is the Kullback-Leibler divergence of a type's distribution from that of F16, in nats a token. The engine "
        "says what computed the figures of a row."
    )
    section = Section(say("Quantised"), text, pictures=pictures, points=points)
    return with_table(section, [(step, quant.table(step.metrics)) for step in found])


def speeds(steps: list[Step]) -> Section | None:
    """Milliseconds a token and memory; what a draft added stands below as sentences."""
    found = [step for step in steps if step.stage == "eval speed"]
    if not found:
        return None
    points = [load_of(step) for step in found]
    for step in found:
        for row in step.metrics.get("draft", []):
            points.append(
                say(
                    "{step}, {threads}: {accepted:,} of {proposed:,} tokens of the draft accepted, {ms:.2f} ms/token "
                    "instead of {without:.2f}, {times:.2f} times as fast.",
                    step=step.name,
                    threads=counted(row["threads"], "thread"),
                    accepted=row["accepted"],
                    proposed=row["proposed"],
                    ms=row["ms_per_token"],
                    without=row["ms_per_token_without"],
                    times=row["speed_up"],
                )
            )
    section = Section(say("Speed"), points=points)
    return with_table(section, [(step, speed.tables(step.metrics)[0]) for step in found])


def load_of(step: Step) -> str:
    load = two(step.metrics["load"])
    return say("{step}: load of the machine {load} when it began.", step=step.name, load=load)


def with_table(section: Section, tables: list[tuple[Step, Table]]) -> Section:
    """A section with the tables of several steps as one, the step in front; columns that one lacks stay empty."""
    columns = list(dict.fromkeys(column for _, table in tables for column in table.columns))
    numeric = {table.columns[i] for _, table in tables for i in table.numeric}
    rows = []
    for step, table in tables:
        for row in table.rows:
            cells = dict(zip(table.columns, row, strict=True))
            rows.append([step.name, *(cells.get(column, "") for column in columns)])
    places = [1 + i for i, column in enumerate(columns) if column in numeric]
    whole = Table([say("step"), *columns], rows, places)
    return Section(section.title, section.text, whole, section.pictures, section.talks, section.points)
