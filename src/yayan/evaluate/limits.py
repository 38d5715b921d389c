"""The end of a report: what its figures do not say, and where they come from."""

from collections.abc import Iterator

from yayan.evaluate.languages import counted, listed, say, titles
from yayan.evaluate.page import Section, Table
from yayan.evaluate.steps import Measured, Step, measured_texts
from yayan.evaluate.words import CHOICES

HASH_DIGITS = 10


def limits(steps: list[Step]) -> Section:
    """What the figures do not say, as far as the records themselves tell."""
    points = [point for measured in measured_texts(steps) for point in limits_of_text(measured)]
    points += [point for step in steps if step.stage in CHOICES for point in limits_of_choices(step)]
    stages = [step.stage for step in steps]
    if "gguf" in stages and "eval quant" not in stages:
        points.append(say("Bits per byte were measured before quantisation, not of the GGUF files."))
    points.append(
        say(
            "An interval tells how far the figure depends on which documents or questions were taken, no more."
        )
    )
    return Section(say("What this page cannot say"), points=points)


def limits_of_text(measured: Measured) -> Iterator[str]:
    row, text = measured.row(measured.steps[-1]), measured.label
    if row["interval"] is None:
        yield say("{text} is one document: nothing is known of the spread of its figures.", text=text)
    if row["unknown_tokens"]:
        yield say("{text} holds unknown tokens, so its bits per byte are a lower bound.", text=text)
    if not row["complete"]:
        documents = counted(row["documents"], "document")
        yield say(
            "Of {text}, only {documents} at its beginning were measured.", text=text, documents=documents
        )


def limits_of_choices(step: Step) -> Iterator[str]:
    m = step.metrics
    low, high = m["interval"] or (1.0, 0.0)
    if low <= m["chance"] <= high:
        yield say("{step}: the interval holds chance, so this model may as well be guessing.", step=step.name)
    if m["too_long"]:
        questions = counted(m["too_long"], "question")
        yield say("{step}: {questions} did not fit and are not counted.", step=step.name, questions=questions)
    if m["missing_subjects"]:
        subjects = counted(len(m["missing_subjects"]), "subject")
        yield say("{step} lacks {subjects}.", step=step.name, subjects=subjects)


def provenance(steps: list[Step]) -> Section:
    rows = []
    for step in steps:
        record = step.record
        inputs = [f"{name} {digits}" for name, digits in input_hashes(record["inputs"])]
        tokenizer = (record["tokenizer"] or "–")[:HASH_DIGITS]
        started = record["started"][:16].replace("T", " ")
        rows.append([step.name, started, record["version"], tokenizer, listed(inputs) or "–"])
    licences = listed(sorted({name for step in steps for name in step.record["licences"]}))
    nothing = say("none, look them up at the sources")
    points = [say("Licences named by the inputs: {licences}.", licences=licences or nothing)]
    machines = sorted(
        {listed([f"{say(k)} {v}" for k, v in step.record["machine"].items()]) for step in steps}
    )
    points += [say("Machine: {machine}.", machine=machine) for machine in machines]
    columns = titles("step", "started (UTC)", "yayan", "tokenizer", "inputs (SHA-256)")
    return Section(say("Where it comes from"), table=Table(columns, rows), points=points)


def input_hashes(inputs: object, name: str = "") -> Iterator[tuple[str, str]]:
    """(field or field.name, first digits) of each input of a record, however deep."""
    if isinstance(inputs, list):
        for item in inputs:
            yield from input_hashes(item, name)
    elif isinstance(inputs, dict) and "sha256" in inputs:
        yield name, inputs["sha256"][:HASH_DIGITS]
    elif isinstance(inputs, dict):
        for key, item in inputs.items():
            yield from input_hashes(item, f"{name}.{key}".strip("."))
