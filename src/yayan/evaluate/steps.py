"""Finished steps as a report reads them: their records, and what several of them measured alike."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from yayan import lineage
from yayan.errors import UserError
from yayan.evaluate.intervals import bootstrap_ratio
from yayan.evaluate.results import RESULTS_NAME
from yayan.evaluate.words import CHOICES


@dataclass(frozen=True)
class Step:
    """A finished folder: its name, its `yayan.json`, and, for an evaluation, its `results.json`."""

    folder: Path
    record: dict

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def stage(self) -> str:
        return self.record["stage"]

    @property
    def metrics(self) -> dict:
        return self.record["metrics"]

    @cached_property
    def sha256(self) -> str:
        """The hash by which later steps' records name what this one made."""
        return lineage.sha256_of(self.folder)

    @cached_property
    def results(self) -> dict:
        return json.loads((self.folder / RESULTS_NAME).read_text(encoding="utf-8"))


def read_steps(folders: list[Path]) -> list[Step]:
    """The records of finished steps in the order in which they began, whatever their names.

    Raises UserError for a folder that has none.
    """
    steps = []
    for folder in folders:
        record = lineage.read(folder)
        if record is None:
            cure = "name folders that yayan has finished"
            raise UserError(f"this folder has no {lineage.RECORD_NAME}", where=folder, cure=cure)
        evaluated = record["stage"] in ("eval bits", *CHOICES, "eval samples", "eval quant", "eval speed")
        if evaluated and not (folder / RESULTS_NAME).is_file():
            raise UserError(f"this folder has no {RESULTS_NAME}", where=folder, cure="make it again")
        steps.append(Step(folder, record))
    return sorted(steps, key=lambda step: step.record["started"])


@dataclass(frozen=True)
class Measured:
    """One held-out text under several models, in the order of the steps; only equal questions are put together.

    `label` is the text's name, numbered where it stands for several questions.
    """

    text: str
    label: str
    steps: list[Step]

    def row(self, step: Step) -> dict:
        return step.metrics["texts"][self.text]

    def change(self) -> tuple[float, list[float] | None]:
        """Nats of the last model as a share of the first one's, with a paired 95 % interval over documents."""
        before, after = (self.steps[i].results["texts"][self.text]["items"] for i in (0, -1))
        costs = [[item["nats"] for item in items] for items in (after, before)]
        return sum(costs[0]) / sum(costs[1]), bootstrap_ratio(*costs)


def measured_texts(steps: list[Step]) -> list[Measured]:
    """Held-out texts and the steps that measured them: the same content, limit, context and overlap."""
    found: dict[tuple, Measured] = {}
    for step in steps:
        if step.stage == "eval bits":
            for text, entry in step.record["inputs"]["text"].items():
                settings = [step.metrics.get(name) for name in ("limit_bytes", "context", "overlap")]
                key = (text, entry["sha256"], *settings)
                number = 1 + sum(other.text == text for other in found.values())
                label = text if number == 1 else f"{text} ({number})"
                found.setdefault(key, Measured(text, label, [])).steps.append(step)
    return list(found.values())
