"""`results.json`: what every evaluation leaves behind, down to the single item."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from yayan import lineage

RESULTS_NAME = "results.json"


@dataclass(frozen=True)
class Protocol:
    """The rules by which a task was measured; figures of different versions are not compared."""

    task: str
    name: str
    version: int


def write_results(work: Path, protocol: Protocol, model: Path | None, body: dict[str, object]) -> None:
    """Write the head that all tasks share (task, protocol, model by content) and the task's own part.

    `model` is None where no single one was measured. Dataclasses inside `body` are written as objects.
    """
    head: dict[str, object] = {
        "task": protocol.task,
        "protocol": protocol.name,
        "protocol_version": protocol.version,
    }
    if model is not None:
        head["model"] = lineage.by_content(model)
    text = json.dumps(head | body, ensure_ascii=False, indent=1, default=asdict)
    (work / RESULTS_NAME).write_text(text + "\n", encoding="utf-8")
