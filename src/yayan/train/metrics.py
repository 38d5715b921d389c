"""The figures of a training: a line of JSON a step, their picture, and what the record tells of them."""

import json
from collections.abc import Sequence
from pathlib import Path

from yayan.ranks import leads
from yayan.train.boards import Board

METRICS_NAME, PICTURE_NAME = "metrics.jsonl", "curves.svg"


class Metrics:
    """`metrics.jsonl` of a folder, written by the first rank. A resumed run takes back the lines beyond its `step`."""

    def __init__(self, folder: Path, step: int, boards: Sequence[Board] = ()) -> None:
        """`boards` take each line as well."""
        self.path, self.boards = folder / METRICS_NAME, boards
        if not leads():
            return
        kept = [line for line in self.lines() if step and line["step"] <= step]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def lines(self) -> list[dict]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def write(self, line: dict) -> None:
        if not leads():
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for board in self.boards:
            board(line)

    def draw(self) -> None:
        """Loss and held-out texts as `curves.svg`."""
        if not leads():
            return
        # Here, since matplotlib takes 22 MB, which a training has other uses for until its end
        from yayan.pictures import draw_training, standalone

        picture = standalone(draw_training(self.lines()))
        self.path.with_name(PICTURE_NAME).write_text(picture, encoding="utf-8")


def summary(lines: Sequence[dict], seconds: float, best_step: int | None = None) -> dict[str, object]:
    """What the record tells: how much was trained, how fast, from which loss to which, held-out before and after.

    `best_step`: the step whose parameters are handed out, if not the last one's.
    """
    steps = [line for line in lines if "loss" in line]
    losses = [line["loss"] for line in steps]
    tenth = max(len(losses) // 10, 1)
    held_out = {line["step"]: line["bits_per_byte"] for line in lines if "bits_per_byte" in line}
    tokens = steps[-1]["tokens"]
    found: dict[str, object] = {
        "steps": steps[-1]["step"],
        "tokens": tokens,
        "targets": sum(line["targets"] for line in steps),
        "train_seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / max(seconds, 1e-9)),
        "loss_first": round(sum(losses[:tenth]) / tenth, 4),
        "loss_last": round(sum(losses[-tenth:]) / tenth, 4),
    }
    if held_out:
        given = max(held_out) if best_step is None else best_step
        found |= {"bits_per_byte_before": held_out[0], "bits_per_byte_after": held_out[given]}
    if best_step is not None:
        found["best_step"] = best_step
    return found
