"""What a step's record (`yayan.json`) says, in one clause: for the end of a run and for the report."""

from collections.abc import Callable

Metrics = dict
CHOICES = ("eval ceval", "eval cmmlu", "eval mmlu")


def megabytes(size: float) -> str:
    """`8.1 MB` (10^6 bytes), from 1,000 MB on `1.2 GB`."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def millions(count: float) -> str:
    return f"{count / 1e6:,.1f} M"


def counted(number: int, noun: str) -> str:
    """`1 question`, `24 questions`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def span(interval: list[float] | None, form: Callable[[float], str]) -> str:
    """`2.10 to 2.31`, or a dash where there is no interval."""
    return f"{form(interval[0])} to {form(interval[1])}" if interval else "–"


def two(value: float) -> str:
    return f"{value:.2f}"


def describe(record: dict) -> str:
    """What came of a step. A record that lacks a figure, or whose verb is not known here, lists its plain numbers."""
    metrics = record["metrics"]
    try:
        return CLAUSES[record["stage"]](metrics)
    except KeyError:
        plain = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        return ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in plain.items()) or "done"


def vocab(m: Metrics) -> str:
    if "advice" in m:
        return str(m["advice"])
    if not m["base_size"]:
        return f"{m['size']:,} tokens, {m['tokens_per_character_after']:.2f} a character"
    before, after = m["tokens_per_character_before"], m["tokens_per_character_after"]
    return (
        f"{m['new_pieces']:,} new tokens, {m['size']:,} in all; {before:.2f} → {after:.2f} tokens a character"
    )


def grow(m: Metrics) -> str:
    if not m["old_rows"]:
        return f"a new model of {millions(m['parameters'])} parameters, random"
    return f"{m['rows_added']:,} new rows at each end, {millions(m['parameters'])} parameters"


def pack(m: Metrics) -> str:
    dropped = sum(m["dropped"].values())
    lost = f", {dropped:,} dropped" if dropped else ""
    learned = f", {m['targets']:,} of them learned" if m["kind"] == "chats" else ""
    return f"{m['documents']:,} {m['kind']}, {m['tokens']:,} tokens{learned}{lost}"


def train(m: Metrics) -> str:
    text = f"loss {m['loss_first']:.2f} → {m['loss_last']:.2f} over {m['tokens']:,} tokens"
    before, after = m.get("bits_per_byte_before", {}), m.get("bits_per_byte_after", {})
    held = [f"{name} {before[name]:.2f} → {after[name]:.2f}" for name in before]
    return text + (f"; held-out bits per byte {', '.join(held)}" if held else "")


def merge(m: Metrics) -> str:
    return (
        f"{m['tensors_merged']:,} matrices and {m['token_rows']:,} token rows merged, {megabytes(m['bytes'])}"
    )


def stretch(m: Metrics) -> str:
    rope = m["rope"]
    way = "RoPE of type {rope_type}, base {rope_theta:,.0f}".format(**rope)
    factor = f", factor {rope['factor']:g}" if "factor" in rope else ""
    return f"{m['positions_before']:,} → {m['positions']:,} positions, {way}{factor}"


def gguf(m: Metrics) -> str:
    return ", ".join(f"{gguf_type(name)} {megabytes(file['bytes'])}" for name, file in m["files"].items())


def gguf_type(name: str) -> str:
    """`Q4_K_M` of `my-model-Q4_K_M.gguf`."""
    return name.removesuffix(".gguf").rpartition("-")[2]


def tokens(m: Metrics) -> str:
    """The mean over texts, in which each counts alike however long it is."""
    texts = [text["tokenizers"] for text in m["texts"].values()]
    means = {name: sum(row[name]["tokens_per_character"] for row in texts) / len(texts) for name in texts[0]}
    cut = ", ".join(f"{name} {two(mean)}" for name, mean in means.items())
    dead = ", ".join(f"{name} {row['dead_ids']:,}" for name, row in m["tokenizers"].items())
    return f"tokens a character over {counted(len(texts), 'text')}: {cut}; dead ids: {dead}"


def bits(m: Metrics) -> str:
    return "bits per byte: " + ", ".join(
        f"{name} {text['bits_per_byte']:.2f} ({span(text['interval'], two)})"
        for name, text in m["texts"].items()
    )


def choices(m: Metrics) -> str:
    """Accuracy on four-choice questions; of a test split whose answers are not told, only that it was answered."""
    rules = f"{m['protocol']}, {m['prompt']} prompts, {m['shots']}-shot"
    missing = f", {counted(len(m['missing_subjects']), 'subject')} missing" if m["missing_subjects"] else ""
    missing += f", {m['not_extracted']} without a letter" if m["not_extracted"] else ""
    if m["accuracy"] is None:
        return (
            f"{counted(m['asked'], 'question')} answered, the right answers are not told ({rules}){missing}"
        )
    share = f"{m['right']} of {m['asked']} right, {percent(m['accuracy'])} ({span(m['interval'], percent)})"
    return f"{share}, chance is {percent(m['chance'])} ({rules}){missing}"


def compare(m: Metrics) -> str:
    rules = f"{m['compared']['task']}, {m['compared']['protocol']}, {counted(m['asked'], 'question')}"
    if not m["asked"]:
        return f"no question was asked of both ({rules})"
    before, after = percent(m["accuracy_before"]), percent(m["accuracy_after"])
    change = f"{points(m['difference'])} ({span(m['interval'], points)})"
    return f"{before} → {after}, {change}, p {m['p_value']:.3f} ({rules})"


def points(share: float) -> str:
    """`+1.5 points` for 0.015."""
    return f"{share * 100:+.1f} points".replace("-", "−")


def quant(m: Metrics) -> str:
    """Bits per byte of each type, a mean over the texts."""
    means = []
    for kind, row in m["types"].items():
        bits = [figures["bits_per_byte"] for figures in row["texts"].values()]
        means.append(f"{kind} {sum(bits) / len(bits):.3f} in {megabytes(row['bytes'])}")
    return "bits per byte: " + ", ".join(means)


def speed(m: Metrics) -> str:
    rows = [
        f"{row['engine']} {row['answer_ms_per_token']:.1f} ms/token with {counted(row['threads'], 'thread')}"
        for row in m["rows"]
    ]
    rows += [f"{row['speed_up']:.2f} times as fast with the draft" for row in m.get("draft", [])]
    return ", ".join(rows)


def longbench(m: Metrics) -> str:
    """The averages of the languages whose six columns are whole; else the tasks."""
    rows = m["tasks"]
    means = {name: part["average"] for name, part in m["languages"].items() if part["average"] is not None}
    means = means or {name: row["score"] for name, row in rows.items()}
    cut = sum(row["truncated"] for row in rows.values())
    asked = counted(sum(row["items"] for row in rows.values()), "item")
    return f"{', '.join(f'{name} {mean:.1f}' for name, mean in means.items())}; {asked}, {cut:,} cut in the middle"


def needle(m: Metrics) -> str:
    share = f"{m['found']} of {m['asked']} found, {percent(m['share'])} ({span(m['interval'], percent)})"
    return f"{share}; without the fact {m['control_found']} of {m['control_asked']}"


def samples(m: Metrics) -> str:
    return f"{counted(m['answers'], 'answer')}, {m['tokens_per_second']:.0f} tokens/s"


def report(m: Metrics) -> str:
    return f"a page on {counted(m['steps'], 'step')}"


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
