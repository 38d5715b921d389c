"""What a step's record (`yayan.json`) says, in one clause: for the end of a run and for the report."""

from collections.abc import Callable

from yayan.evaluate.languages import counted, listed, say
from yayan.progress import format_seconds

Metrics = dict
CHOICES = ("eval ceval", "eval cmmlu", "eval mmlu")
UNITS = ("h", "min", "s")  # of `format_seconds`


def megabytes(size: float) -> str:
    """`8.1 MB` (10^6 bytes), from 1,000 MB on `1.2 GB`."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def millions(count: float) -> str:
    return f"{count / 1e6:,.1f} M"


def percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def span(interval: list[float] | None, form: Callable[[float], str]) -> str:
    """`2.10 to 2.31`, or a dash where there is no interval."""
    return say("{low} to {high}", low=form(interval[0]), high=form(interval[1])) if interval else "–"


def two(value: float) -> str:
    return f"{value:.2f}"


def duration(seconds: float) -> str:
    """`3 min 20 s`; `3 分 20 秒`."""
    return " ".join(say(word) if word in UNITS else word for word in format_seconds(seconds).split())


def describe(record: dict) -> str:
    """What came of a step. A record that lacks a figure, or whose verb is not known here, lists its plain numbers."""
    metrics = record["metrics"]
    try:
        return CLAUSES[record["stage"]](metrics)
    except KeyError:
        plain = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        return listed([f"{name.replace('_', ' ')} {value:,}" for name, value in plain.items()]) or say("done")


def vocab(m: Metrics) -> str:
    if "advice" in m:
        size, base = m["recommended_size"], m["points"][0]["size"]
        return say("{size:,} ids are advised, the base has {base:,}", size=size, base=base)
    after = m["tokens_per_character_after"]
    if not m["base_size"]:
        return say("{size:,} tokens, {after:.2f} a character", size=m["size"], after=after)
    return say(
        "{new:,} new tokens, {size:,} in all; {before:.2f} → {after:.2f} tokens a character",
        new=m["new_pieces"],
        size=m["size"],
        before=m["tokens_per_character_before"],
        after=after,
    )


def grow(m: Metrics) -> str:
    parameters = millions(m["parameters"])
    if not m["old_rows"]:
        return say("a new model of {parameters} parameters, random", parameters=parameters)
    return say(
        "{rows:,} new rows at each end, {parameters} parameters", rows=m["rows_added"], parameters=parameters
    )


def pack(m: Metrics) -> str:
    chats = m["kind"] == "chats"
    read = counted(m["documents"], "chat") if chats else counted(m["documents"], "document")
    parts = [read, say("{tokens:,} tokens", tokens=m["tokens"])]
    if chats:
        parts.append(say("{targets:,} of them learned", targets=m["targets"]))
    if dropped := sum(m["dropped"].values()):
        parts.append(say("{dropped:,} dropped", dropped=dropped))
    return listed(parts)


def train(m: Metrics) -> str:
    loss = say(
        "loss {first:.2f} → {last:.2f} over {tokens:,} tokens",
        first=m["loss_first"],
        last=m["loss_last"],
        tokens=m["tokens"],
    )
    before, after = m.get("bits_per_byte_before", {}), m.get("bits_per_byte_after", {})
    if not before:
        return loss
    held = listed([f"{name} {before[name]:.2f} → {after[name]:.2f}" for name in before])
    return say("{loss}; held-out bits per byte {held}", loss=loss, held=held)


def merge(m: Metrics) -> str:
    return say(
        "{matrices:,} matrices and {rows:,} token rows merged, {size}",
        matrices=m["tensors_merged"],
        rows=m["token_rows"],
        size=megabytes(m["bytes"]),
    )


def stretch(m: Metrics) -> str:
    rope = m["rope"]
    parts = [
        say("{before:,} → {after:,} positions", before=m["positions_before"], after=m["positions"]),
        say("RoPE of type {type}", type=rope["rope_type"]),
        say("base {base:,.0f}", base=rope["rope_theta"]),
    ]
    return listed(parts + ([say("factor {factor:g}", factor=rope["factor"])] if "factor" in rope else []))


def gguf(m: Metrics) -> str:
    return listed([f"{gguf_type(name)} {megabytes(file['bytes'])}" for name, file in m["files"].items()])


def gguf_type(name: str) -> str:
    """`Q4_K_M` of `my-model-Q4_K_M.gguf`."""
    return name.removesuffix(".gguf").rpartition("-")[2]


def tokens(m: Metrics) -> str:
    """The mean over texts, in which each counts alike however long it is."""
    texts = [text["tokenizers"] for text in m["texts"].values()]
    means = {name: sum(row[name]["tokens_per_character"] for row in texts) / len(texts) for name in texts[0]}
    return say(
        "tokens a character over {texts}: {cut}; dead ids: {dead}",
        texts=counted(len(texts), "text"),
        cut=listed([f"{name} {two(mean)}" for name, mean in means.items()]),
        dead=listed([f"{name} {row['dead_ids']:,}" for name, row in m["tokenizers"].items()]),
    )


def bits(m: Metrics) -> str:
    texts = [
        say(
            "{name} {bits:.2f} ({interval})",
            name=name,
            bits=text["bits_per_byte"],
            interval=span(text["interval"], two),
        )
        for name, text in m["texts"].items()
    ]
    return say("bits per byte: {items}", items=listed(texts))


def choices(m: Metrics) -> str:
    """Accuracy on four-choice questions; of a test split whose answers are not told, only that it was answered."""
    rules = say(
        "{protocol}, {prompt} prompts, {shots}-shot", **{k: m[k] for k in ("protocol", "prompt", "shots")}
    )
    if m["accuracy"] is None:
        asked = counted(m["asked"], "question")
        clause = say("{asked} answered, the right answers are not told ({rules})", asked=asked, rules=rules)
    else:
        clause = say(
            "{right} of {asked} right, {share} ({interval}), chance is {chance} ({rules})",
            right=m["right"],
            asked=m["asked"],
            share=percent(m["accuracy"]),
            interval=span(m["interval"], percent),
            chance=percent(m["chance"]),
            rules=rules,
        )
    parts = [clause]
    if m["missing_subjects"]:
        parts.append(say("{subjects} missing", subjects=counted(len(m["missing_subjects"]), "subject")))
    if m["not_extracted"]:
        parts.append(say("{answers} without a letter", answers=m["not_extracted"]))
    if "endpoint" in m:
        parts.append(say("answered by {name} at {url}", name=m["endpoint_model"], url=m["endpoint"]))
    return listed(parts)


def compare(m: Metrics) -> str:
    rules = listed([m["compared"]["task"], m["compared"]["protocol"], counted(m["asked"], "question")])
    if not m["asked"]:
        return say("no question was asked of both ({rules})", rules=rules)
    return say(
        "{before} → {after}, {change} ({interval}), p {p:.3f} ({rules})",
        before=percent(m["accuracy_before"]),
        after=percent(m["accuracy_after"]),
        change=points(m["difference"]),
        interval=span(m["interval"], points),
        p=m["p_value"],
        rules=rules,
    )


def points(share: float) -> str:
    """`+1.5 points` for 0.015."""
    return say("{points:+.1f} points", points=share * 100).replace("-", "−")


def quant(m: Metrics) -> str:
    """Bits per byte of each type, a mean over the texts."""
    means = []
    for kind, row in m["types"].items():
        bits = [figures["bits_per_byte"] for figures in row["texts"].values()]
        mean, size = sum(bits) / len(bits), megabytes(row["bytes"])
        means.append(say("{kind} {bits:.3f} in {size}", kind=kind, bits=mean, size=size))
    return say("bits per byte: {items}", items=listed(means))


def speed(m: Metrics) -> str:
    rows = []
    for row in m["rows"]:
        told = {"engine": row["engine"], "ms": row["answer_ms_per_token"]}
        if row["threads"] is None:
            rows.append(say("{engine} {ms:.1f} ms/token", **told))
        else:
            threads = counted(row["threads"], "thread")
            rows.append(say("{engine} {ms:.1f} ms/token with {threads}", **told, threads=threads))
    rows += [
        say("{times:.2f} times as fast with the draft", times=row["speed_up"]) for row in m.get("draft", [])
    ]
    return listed(rows)


def longbench(m: Metrics) -> str:
    """The averages of the languages whose six columns are whole; else the tasks."""
    rows = m["tasks"]
    means = {name: part["average"] for name, part in m["languages"].items() if part["average"] is not None}
    means = means or {name: row["score"] for name, row in rows.items()}
    return say(
        "{means}; {items}, {cut:,} cut in the middle",
        means=listed([f"{name} {mean:.1f}" for name, mean in means.items()]),
        items=counted(sum(row["items"] for row in rows.values()), "item"),
        cut=sum(row["truncated"] for row in rows.values()),
    )


def needle(m: Metrics) -> str:
    return say(
        "{found} of {asked} found, {share} ({interval}); without the fact {control_found} of {control_asked}",
        share=percent(m["share"]),
        interval=span(m["interval"], percent),
        **{name: m[name] for name in ("found", "asked", "control_found", "control_asked")},
    )


def samples(m: Metrics) -> str:
    answers = counted(m["answers"], "answer")
    return say("{answers}, {rate:.0f} tokens/s", answers=answers, rate=m["tokens_per_second"])


def report(m: Metrics) -> str:
    return say("a page on {steps}", steps=counted(m["steps"], "step"))


CLAUSES: dict[str, Callable[[Metrics], str]] = {
    "vocab": vocab,
    "grow": grow,
    "pack": pack,
    "pretrain": train,
    "sft": train,
    "merge": merge,
    "stretch": stretch,
    "gguf": gguf,
    "eval tokens": tokens,
    "eval bits": bits,
    "eval longbench": longbench,
    "eval needle": needle,
    **dict.fromkeys(CHOICES, choices),
    "eval compare": compare,
    "eval samples": samples,
    "eval quant": quant,
    "eval speed": speed,
    "eval report": report,
}
