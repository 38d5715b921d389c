"""The sections of a report, each made of the records of the steps that concern it; no step, no section."""

import json
from pathlib import Path

from yayan.cli import VERBS
from yayan.evaluate import cuts
from yayan.evaluate.languages import counted, listed, paragraph, say, titles
from yayan.evaluate.page import Card, Picture, Section, Table, Talk
from yayan.evaluate.steps import Measured, Step, measured_texts
from yayan.evaluate.words import CHOICES, describe, duration, gguf_type, megabytes, percent, span, two
from yayan.pictures import draw_bars, draw_training


def changed(share: float) -> str:
    """`−76.0 %` for 0.24."""
    return f"{share - 1:+.1%}".replace("%", " %").replace("-", "−")


def cards(steps: list[Step]) -> list[Card]:
    """The few figures to see first."""
    found = []
    for measured in measured_texts(steps):
        first, last = (measured.row(measured.steps[i])["bits_per_byte"] for i in (0, -1))
        meaning = say("bits per byte of {text}", text=measured.label)
        if len(measured.steps) > 1:
            meaning = say(
                "bits per byte of {text}, {first:.2f} before ({change})",
                text=measured.label,
                first=first,
                change=changed(last / first),
            )
        found.append(Card(two(last), meaning))
    for step in steps:
        if step.stage in CHOICES and step.metrics["accuracy"] is not None:
            questions = counted(step.metrics["asked"], "question")
            meaning = say("of {questions} right ({step})", questions=questions, step=step.name)
            found.append(Card(percent(step.metrics["accuracy"]), meaning))
    seconds = sum(step.record["seconds"] for step in steps)
    return [*found, Card(duration(seconds), say("for {steps}", steps=counted(len(steps), "step")))]


def road(steps: list[Step]) -> Section:
    rows = [
        [step.name, say(VERBS[step.stage][1]), duration(step.record["seconds"]), describe(step.record)]
        for step in steps
    ]
    columns = titles("step", "what it does", "time", "what came of it")
    return Section(say("The road"), table=Table(columns, rows, [2]))


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
                    say("{change} ({interval})", change=changed(share), interval=span(interval, changed))
                    if last
                    else "",
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
    columns = titles("text", "measured by", "bits per byte", "95 % interval", "change (paired interval)")
    columns += titles("bits a character", "tokens a character", "perplexity a token", "documents / bytes")
    picture = Picture(
        draw_bars(bars, say("bits per byte of held-out text")), say("Held-out text, with 95 % intervals.")
    )
    table = Table(columns, rows, list(range(2, 9)))
    return Section(say("Both languages"), how_to_read(texts), table, [picture])


def how_to_read(texts: list[Measured]) -> str:
    sentences = [
        say(
            "Bits per byte can be compared across vocabularies, perplexity per token cannot. Less is better."
        ),
        say("A language that was there before and now costs more has been forgotten to that extent."),
    ]
    if any(measured.label != measured.text for measured in texts):
        sentences.append(
            say(
                "A number in brackets: another file, limit, context or overlap under the same name: not to be compared."
            )
        )
    return paragraph(sentences)


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
    columns = titles("step", "tokens", "new", "tokens a character before", "after", "longest new pieces")
    return Section(say("Vocabulary"), table=Table(columns, rows, [1, 2, 3, 4])) if rows else None


def tokens(steps: list[Step]) -> Section | None:
    """How each tokenizer cuts each text, and what is dead in it."""
    found = [step for step in steps if step.stage == "eval tokens"]
    if not found:
        return None
    parts = [cuts.text_table(step.metrics) for step in found]
    rows = [[step.name, *row] for step, part in zip(found, parts, strict=True) for row in part.rows]
    pictures = [
        Picture(
            cuts.picture(step.metrics), say("{step}: tokens a character, less is better.", step=step.name)
        )
        for step in found
    ]
    points = [
        say(
            "{step}, {name}: {kind}, {ids:,} ids, of which no text produces {dead:,}.",
            step=step.name,
            name=name,
            kind=say(row["kind"]),
            ids=row["ids"],
            dead=row["dead_ids"],
        )
        for step in found
        for name, row in step.metrics["tokenizers"].items()
    ]
    numeric = [number + 1 for number in parts[0].numeric]
    table = Table([say("step"), *parts[0].columns], rows, numeric)
    return Section(say("Tokenizers"), table=table, pictures=pictures, points=points)


def training(steps: list[Step]) -> Section | None:
    pictures = []
    for step in steps:
        path = step.folder / "metrics.jsonl"
        if path.is_file():
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            names = say("loss, nats a token"), say("held-out bits per byte"), say("optimiser step")
            pictures.append(Picture(draw_training(lines, *names), said_of(step)))
    return Section(say("Training"), pictures=pictures) if pictures else None


def said_of(step: Step) -> str:
    return say("{step}: {clause}.", step=step.name, clause=describe(step.record))


def choices(steps: list[Step]) -> Section | None:
    """Accuracy of each model over all questions and over the groups, beside what guessing gives; models in pairs."""
    rows, points = [], []
    for step in steps:
        if step.stage in CHOICES:
            m = step.metrics
            rules = f"{m['protocol']} {m['protocol_version']}, {m['prompt']}, {m['shots']}-shot, {m['split']}"
            for group, part in {say("all"): m, **m["groups"]}.items():
                share = "–" if part["accuracy"] is None else percent(part["accuracy"])
                counts = [f"{part[name]:,}" for name in ("asked", "too_long", "examples_dropped")]
                interval = span(part["interval"], percent)
                rows.append([step.name, rules, say(group), share, interval, percent(m["chance"]), *counts])
        elif step.stage == "eval compare":
            points.append(said_of(step))
    if not rows and not points:
        return None
    columns = titles("step", "protocol", "group", "accuracy", "95 % interval", "chance", "asked", "too long")
    table = Table([*columns, say("examples dropped")], rows, list(range(3, 9)))
    return Section(say("Multiple choice"), table=table if rows else None, points=points)


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
    columns = titles("type", "file", "size", "of the largest", "bits a weight", "largest difference of log p")
    return Section(say("GGUF files"), table=Table(columns, rows, [2, 3, 4, 5])) if rows else None


def samples(steps: list[Step]) -> Section | None:
    talks = []
    for step in steps:
        if step.stage == "eval samples":
            m = step.metrics
            model = Path(step.record["inputs"]["model"]["path"]).name
            if "endpoint" in m:
                model = say("{name} at {url}", name=m["endpoint_model"], url=m["endpoint"])
            for item in step.results["items"]:
                took = say(
                    "{tokens} tokens in {seconds:.2f} s", tokens=item["tokens"], seconds=item["seconds"]
                )
                cut = [] if item["complete"] else [say("cut at the limit")]
                answer = item["answer"] or say("(nothing to be seen)")
                talks.append(Talk(item["prompt"], answer, listed([model, took, *cut])))
    text = say("Every prompt that was asked, answered greedily: nothing is chosen.")
    return Section(say("Samples"), text, talks=talks) if talks else None
