"""Two models on the same four-choice questions: what the second one gains, and whether that may be chance."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from yayan.errors import UserError
from yayan.evaluate.intervals import bootstrap_ratio
from yayan.evaluate.results import RESULTS_NAME, Protocol, write_results
from yayan.evaluate.words import describe
from yayan.stage import InputPath, Stage

PROTOCOL = Protocol("compare", "paired", 1)
MUST_AGREE = ("task", "protocol", "protocol_version", "shots", "split")


@dataclass(frozen=True, kw_only=True)
class EvalCompare(Stage):
    """Compare two models on the four-choice questions that both were asked, pair by pair.

    The difference of their accuracies has a 95 % interval (bootstrap over questions) and the probability of such a
    difference, or a larger one, if neither were better (McNemar's exact test).
    """

    before: InputPath
    """Folder of an evaluation (eval ceval, cmmlu or mmlu)."""
    after: InputPath
    """Folder of the same evaluation of another model."""

    def check(self) -> None:
        refuse_unequal(self.before, self.after)

    def run(self, work: Path) -> dict[str, object]:
        before, after = read_choices(self.before), read_choices(self.after)
        pairs = pairs_of(before, after)
        rules = {name: before[name] for name in MUST_AGREE}
        models = {"before": before["model"], "after": after["model"]}
        prompts = {"prompt_before": before["prompt"], "prompt_after": after["prompt"]}
        totals = {"compared": rules} | prompts | compare(pairs)
        subjects = {
            key: compare([pair for pair in pairs if pair.subject == key]) for key in before["subjects"]
        }
        items = [pair for pair in pairs if pair.before != pair.after]
        body: dict[str, object] = (
            {"models": models} | totals | {"subjects": subjects, "items_that_differ": items}
        )
        write_results(work, PROTOCOL, None, body)
        return totals

    def tell(self, record: dict) -> None:
        print(describe(record))


@dataclass(frozen=True)
class Pair:
    """A question and what each model answered; None where it did not fit."""

    subject: str
    number: int
    answer: str
    before: str | None
    after: str | None

    @property
    def asked(self) -> bool:
        return self.before is not None and self.after is not None


def read_choices(folder: Path) -> dict:
    """The results of an evaluation on four-choice questions whose answers are told; UserError for any other folder."""
    try:
        results = json.loads((folder / RESULTS_NAME).read_text(encoding="utf-8"))
        told = all(item["answer"] is not None and "prediction" in item for item in results["items"])
        known = all(
            name in results for name in (*MUST_AGREE, "questions_sha256", "model", "prompt", "subjects")
        )
    except (OSError, ValueError, KeyError, TypeError):
        told, known = True, False
    if not known:
        what = "these are not the results of four-choice questions"
        raise UserError(what, where=folder, cure="name what eval ceval, eval cmmlu or eval mmlu has made")
    if not told:
        raise UserError("the right answers are not told there", where=folder, cure="compare on the split val")
    return results


def refuse_unequal(first: Path, second: Path) -> None:
    """UserError unless both were asked the same questions by the same rules."""
    before, after = read_choices(first), read_choices(second)
    for name in MUST_AGREE:
        if before[name] != after[name]:
            what = (
                f"{name.replace('_', ' ')} is {before[name]} in {first.name}, {after[name]} in {second.name}"
            )
            raise UserError(what, where=second, cure="evaluate both in the same way")
    if before["questions_sha256"] != after["questions_sha256"]:
        what = f"{first.name} and {second.name} were asked other questions"
        raise UserError(what, where=second, cure="evaluate both on the same data and subjects")


def pairs_of(before: dict, after: dict) -> list[Pair]:
    return [
        Pair(one["subject"], one["number"], one["answer"], one["prediction"], other["prediction"])
        for one, other in zip(before["items"], after["items"], strict=True)
    ]


def compare(pairs: list[Pair]) -> dict[str, object]:
    """Figures over the questions that both models were asked."""
    asked = [pair for pair in pairs if pair.asked]
    gained = sum(pair.after == pair.answer != pair.before for pair in asked)
    lost = sum(pair.before == pair.answer != pair.after for pair in asked)
    right = sum(pair.before == pair.answer for pair in asked)
    signs = [float((pair.after == pair.answer) - (pair.before == pair.answer)) for pair in asked]
    total = len(asked)
    return {
        "questions": len(pairs),
        "asked": total,
        "not_asked_of_both": len(pairs) - total,
        "gained": gained,
        "lost": lost,
        "accuracy_before": right / total if total else None,
        "accuracy_after": (right + gained - lost) / total if total else None,
        "difference": (gained - lost) / total if total else None,
        "interval": bootstrap_ratio(signs, [1.0] * total),
        "p_value": mcnemar(gained, lost),
    }


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided test (McNemar 1947): of the questions on which the two differ, half are won by chance."""
    differing, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(differing, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**differing)
