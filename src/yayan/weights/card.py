"""The README.md of a model folder: what it is, where it comes from, and what nobody has measured.

Front matter as the Hugging Face Hub reads it (https://huggingface.co/docs/hub/model-cards). Only what records tell is
said.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from yayan import lineage
from yayan.model.folder import TEMPLATE_FILE

CARD_NAME = "README.md"
CARD = """\
---
library_name: transformers
base_model: {{ base | tojson }}
tags: [yayan]
---
# {{ name }}

Made by yayan {{ version }} from `{{ base }}`
{%- if rows > old_rows %}, whose {{ "{:,}".format(old_rows) }} tokens became {{ "{:,}".format(rows) }}{% endif %}.

| | |
| --- | --- |
| parameters | {{ "{:,}".format(parameters) }}, {{ dtype }}, {{ "%.2f" | format(bytes / 1e9) }} GB |
| tokens | {{ "{:,}".format(rows) }} rows |
| positions | {{ "{:,}".format(positions) }} |
| chat template | {{ "chat_template.jinja" if template else "none: this is a base model, which continues texts" }} |
| licences in its lineage | {{ licences | join(", ") or "none is recorded" }} |

## Where it comes from

```mermaid
graph LR
{%- for edge in edges %}
  {{ edge }}
{%- endfor %}
```
{% for line in measured %}
{{ line }}
{%- endfor %}

## Files

| file | bytes | SHA-256 |
| --- | ---: | --- |
{%- for file in files %}
| {{ file.name }} | {{ "{:,}".format(file.bytes) }} | `{{ file.sha256 }}` |
{%- endfor %}

## Limits

It was taught by text, and says what such text says, true or not. Nothing was done to make it safe. What it was not
evaluated on (see above) nobody knows.
"""


def write_card(
    out: Path,
    name: str,
    base: Path,
    inputs: Mapping[str, Path],
    facts: Mapping[str, Any],
    weights: Sequence[Path],
) -> None:
    """Write the card of `out`.

    `inputs`: folders that it was made of, by their part; `facts`: parameters, bytes, dtype, and `old_rows` if it grew;
    `weights`: the files that hold them.
    """
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    rows = config["vocab_size"]
    text = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(CARD)
    card = text.render(
        **{key: facts[key] for key in ("parameters", "bytes", "dtype")},
        name=name,
        version=lineage.machine()["yayan"],
        base=origin_of(base).name,
        rows=rows,
        old_rows=facts.get("old_rows") or rows,
        positions=config["max_position_embeddings"],
        template=(out / TEMPLATE_FILE).is_file(),
        licences=sorted({item for path in inputs.values() for item in lineage.licences_of(path)}),
        edges=list(dict.fromkeys(edges_of(name, inputs))),
        measured=list(measurements_of(inputs)),
        files=[
            {"name": path.name, "bytes": path.stat().st_size, "sha256": lineage.sha256_of(path)}
            for path in weights
        ],
    )
    (out / CARD_NAME).write_text(card, encoding="utf-8")


def origin_of(model: Path) -> Path:
    """The model from elsewhere that a model was made of, as far as records lie where they did."""
    record = lineage.read(model) if model.is_dir() else None
    inputs = record["inputs"] if record else {}
    before = inputs.get("base") or inputs.get("model")
    return origin_of(Path(before["path"])) if before else model


def edges_of(name: str, inputs: Mapping[str, Path]) -> Iterator[str]:
    """Arrows from what was read to what it made, as mermaid draws them."""
    for part, path in inputs.items():
        yield f'{node(path.name)} -->|"{part}"| {node(name)}'
        record = lineage.read(path) if path.is_dir() else None
        for step, item in inputs_of(record):
            yield from edges_of(path.name, {step: item})


def inputs_of(record: dict | None) -> Iterator[tuple[str, Path]]:
    """The inputs of a record by the name of its stage, held-out texts apart."""
    for option, entry in (record["inputs"] if record else {}).items():
        entries = [entry] if isinstance(entry, dict) and "path" in entry else entry
        for item in entries if isinstance(entries, list) and option != "heldout" else []:
            yield str(record["stage"] if record else ""), Path(item["path"])


def node(name: str) -> str:
    """A name as mermaid wants it: an id of letters and digits, and what is read."""
    return f'n{name.encode().hex()}["{name.replace(chr(34), "")}"]'


def measurements_of(inputs: Mapping[str, Path]) -> Iterator[str]:
    """What trainings among the inputs measured on held-out texts."""
    for path in inputs.values():
        record = lineage.read(path) if path.is_dir() else None
        metrics = record["metrics"] if record else {}
        if record and "tokens_per_second" in metrics:
            yield f"- `{record['stage']}`: {metrics['steps']:,} steps, {metrics['tokens']:,} tokens."
            before, after = (metrics.get(f"bits_per_byte_{when}") or {} for when in ("before", "after"))
            for text in after:
                yield f"- Held-out {text}: {before[text]:.3f} bits per byte before, {after[text]:.3f} after."
