"""The sections of a report, each made of the records of the steps that concern it; no step, no section."""

import json
from collections.abc import Iterator
from pathlib import Path

from yayan.cli import VERBS
from yayan.evaluate import cuts
from yayan.evaluate.page import Card, Picture, Section, Table, Talk
from yayan.evaluate.steps import Step, measured_texts
from yayan.evaluate.words import CHOICES, counted, describe, gguf_type, megabytes, percent, span, two
from yayan.pictures import draw_bars, draw_training
from yayan.progress import format_seconds

HASH_DIGITS = 10


def changed(share: float) -> str:
    """`−76.0 %` for 0.24."""
    return f"{share - 1:+.1%}".replace("%", " %").replace("-", "−")


def cards(steps: list[Step]) -> list[Card]:
    """The few figures to see first."""
    found = []
    for measured in measured_texts(steps):
        first, last = (measured.row(measured.steps[i])["bits_per_byte"] for i in (0, -1))
        meaning = f"bits per byte of {measured.label}"
        if len(measured.steps) > 1:
            meaning += f", {first:.2f} before ({changed(last / first)})"
        found.append(Card(two(last), meaning))
    for step in steps:
        if step.stage in CHOICES and step.metrics["accuracy"] is not None:
            found.append(
                Card(
                    percent(step.metrics["accuracy"]),
                    f"of {step.metrics['asked']} questions right ({step.name})",
                )
            )
    seconds = sum(step.record["seconds"] for step in steps)
    return [*found, Card(format_seconds(seconds), f"for {counted(len(steps), 'step')}")]


def road(steps: list[Step]) -> Section:
    rows = [
        [step.name, VERBS[step.stage][1], format_seconds(step.record["seconds"]), describe(step.record)]
        for step in steps
    ]
    return Section("The road", table=Table(["step", "what it does", "time", "what came of it"], rows, [2]))


def languages(steps: list[Step]) -> Section | None:
    """Bits per byte of each held-out text under each model, and the change from the first to the last."""
    texts = measured_texts(steps)
    if not texts:
        return None
    rows, bars = [], {}
    for measured in texts:
        share, interval = measured.change()
        for step in measured.steps:
            row = measured.row(step)
            last = step is measured.steps[-1] and len(measured.steps) > 1
            rows.append(
                [
                    measured.label,
                    step.name,
                    f"{row['bits_per_byte']:.3f}",
                    span(row["interval"], two),
                    f"{changed(share)} ({span(interval, changed)})" if last else "",
                    f"{row['bits_per_character']:.2f}",
                    f"{row['tokens_per_character']:.2f}",
                    f"{row['perplexity_per_token']:,.1f}",
                    f"{row['documents']:,} / {row['bytes']:,}",
                ]
            )
        bars[measured.label] = [
            (step.name, measured.row(step)["bits_per_byte"], measured.row(step)["interval"])
            for step in measured.steps
        ]
    columns = ["text", "measured by", "bits per byte", "95 % interval", "change (paired interval)"]
    columns += ["bits a character", "tokens a character", "perplexity a token", "documents / bytes"]
    text = (
        "Bits per byte can be compared across vocabularies, perplexity per token cannot. Less is better. "
        "A language that was there before and now costs more has been forgotten to that extent."
    )
    if any(measured.label != measured.text for measured in texts):
        text += " A number in brackets: another file, limit, context or overlap under the same name: "
        text += "not to be compared."
    picture = Picture(
        draw_bars(bars, "bits per byte of held-out text"), "Held-out text, with 95 % intervals."
    )
    return Section("Both languages", text, Table(columns, rows, list(range(2, 9))), [picture])


def vocabulary(steps: list[Step]) -> Section | None:
    found = [step for step in steps if step.stage == "vocab"]
    rows = []
    for step in found:
        m = step.metrics
        before = m["tokens_per_character_before"]
        rows.append(
            [
                step.name,
                f"{m['size']:,}",
                f"{m['new_pieces']:,}",
                "–" if before is None else two(before),
                two(m["tokens_per_character_after"]),
                " ".join(m["longest_pieces"]).replace("▁", ""),
            ]
        )
    columns = ["step", "tokens", "new", "tokens a character before", "after", "longest new pieces"]
    return Section("Vocabulary", table=Table(columns, rows, [1, 2, 3, 4])) if rows else None


def tokens(steps: list[Step]) -> Section | None:
    """How each tokenizer cuts each text, and what is dead in it."""
    found = [step for step in steps if step.stage == "eval tokens"]
    if not found:
        return None
    parts = [cuts.text_table(step.metrics) for step in found]
    rows = [[step.name, *row] for step, part in zip(found, parts, strict=True) for row in part.rows]
    pictures = [
        Picture(cuts.picture(step.metrics), f"{step.name}: tokens a character, less is better.")
        for step in found
    ]
    points = [
        f"{step.name}, {name}: {row['kind']}, {row['ids']:,} ids, of which no text produces {row['dead_ids']:,}."
        for step in found
        for name, row in step.metrics["tokenizers"].items()
    ]
    numeric = [number + 1 for number in parts[0].numeric]
    return Section(
        "Tokenizers",
        table=Table(["step", *parts[0].columns], rows, numeric),
        pictures=pictures,
        points=points,
    )


def training(steps: list[Step]) -> Section | None:
    pictures = []
    for step in steps:
        path = step.folder / "metrics.jsonl"
        if path.is_file():
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            pictures.append(Picture(draw_training(lines), f"{step.name}: {describe(step.record)}."))
    return Section("Training", pictures=pictures) if pictures else None


def choices(steps: list[Step]) -> Section | None:
    """Accuracy of each model over all questions and over the groups, beside what guessing gives; models in pairs."""
    rows, points = [], []
    for step in steps:
        if step.stage in CHOICES:
            m = step.metrics
            rules = f"{m['protocol']} {m['protocol_version']}, {m['prompt']}, {m['shots']}-shot, {m['split']}"
            for group, part in {"all": m, **m["groups"]}.items():
                share = "–" if part["accuracy"] is None else percent(part["accuracy"])
                counts = [f"{part[name]:,}" for name in ("asked", "too_long", "examples_dropped")]
                interval = span(part["interval"], percent)
                rows.append([step.name, rules, group, share, interval, percent(m["chance"]), *counts])
        elif step.stage == "eval compare":
            points.append(f"{step.name}: {describe(step.record)}.")
    if not rows and not points:
        return None
    columns = ["step", "protocol", "group", "accuracy", "95 % interval", "chance", "asked", "too long"]
    table = Table([*columns, "examples dropped"], rows, list(range(3, 9)))
    return Section("Multiple choice", table=table if rows else None, points=points)


def quantisation(steps: list[Step]) -> Section | None:
    rows = []
    for step in steps:
        if step.stage == "gguf":
            files = step.metrics["files"]
            largest = max(file["bytes"] for file in files.values())
            for name, file in files.items():
                difference = file.get("largest_difference_of_logprobs")
                rows.append(
                    [
                        gguf_type(name),
                        name,
                        megabytes(file["bytes"]),
                        percent(file["bytes"] / largest),
                        two(file["bits_per_weight"]),
                        "–" if difference is None else f"{difference:.4f}",
                    ]
                )
    columns = ["type", "file", "size", "of the largest", "bits a weight", "largest difference of log p"]
    return Section("GGUF files", table=Table(columns, rows, [2, 3, 4, 5])) if rows else None


def samples(steps: list[Step]) -> Section | None:
    talks = []
    for step in steps:
        if step.stage == "eval samples":
            model = Path(step.record["inputs"]["model"]["path"]).name
            for item in step.results["items"]:
                note = f"{model}, {item['tokens']} tokens in {item['seconds']:.2f} s"
                note += "" if item["complete"] else ", cut at the limit"
                talks.append(Talk(item["prompt"], item["answer"] or "(nothing to be seen)", note))
    text = "Every prompt that was asked, answered greedily: nothing is chosen."
    return Section("Samples", text, talks=talks) if talks else None


def limits(steps: list[Step]) -> Section:
    """What the figures do not say, as far as the records themselves tell."""
    points = []
    for measured in measured_texts(steps):
        row = measured.row(measured.steps[-1])
        if row["interval"] is None:
            points.append(f"{measured.label} is one document: nothing is known of the spread of its figures.")
        if row["unknown_tokens"]:
            points.append(f"{measured.label} holds unknown tokens, so its bits per byte are a lower bound.")
        if not row["complete"]:
            points.append(
                f"Of {measured.label}, only {counted(row['documents'], 'document')} at its beginning were measured."
            )
    for step in steps:
        if step.stage in CHOICES:
            m = step.metrics
            low, high = m["interval"] or (1.0, 0.0)
            if low <= m["chance"] <= high:
                points.append(
                    f"{step.name}: the interval holds chance, so this model may as well be guessing."
                )
            if m["too_long"]:
                points.append(
                    f"{step.name}: {counted(m['too_long'], 'question')} did not fit and are not counted."
                )
            if m["missing_subjects"]:
                points.append(f"{step.name} lacks {counted(len(m['missing_subjects']), 'subject')}.")
    stages = [step.stage for step in steps]
    if "gguf" in stages and "eval quant" not in stages:
        points.append("Bits per byte were measured before quantisation, not of the GGUF files.")
    points.append(
        "An interval tells how far the figure depends on which documents or questions were taken, no more."
    )
    return Section("What this page cannot say", points=points)


def provenance(steps: list[Step]) -> Section:
    rows = []
    for step in steps:
        record = step.record
        inputs = [f"{name} {digits}" for name, digits in input_hashes(record["inputs"])]
        tokenizer = (record["tokenizer"] or "–")[:HASH_DIGITS]
        started = record["started"][:16].replace("T", " ")
        rows.append([step.name, started, record["version"], tokenizer, ", ".join(inputs) or "–"])
    licences = sorted({name for step in steps for name in step.record["licences"]})
    machines = sorted({", ".join(f"{k} {v}" for k, v in step.record["machine"].items()) for step in steps})
    points = [f"Licences named by the inputs: {', '.join(licences) or 'none, look them up at the sources'}."]
    points += [f"Machine: {machine}." for machine in machines]
    columns = ["step", "started (UTC)", "yayan", "tokenizer", "inputs (SHA-256)"]
    return Section("Where it comes from", table=Table(columns, rows), points=points)


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
