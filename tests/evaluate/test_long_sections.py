"""What LongBench and planted facts look like in the report, and in a clause."""

import json
from pathlib import Path

import pytest

from tests.conftest import quietly
from tests.sentencepiece_model import TEXTS, make_chat_model
from yayan.evaluate.long_sections import longbench_tables, needle_picture, needle_table
from yayan.evaluate.longbench import EvalLongbench
from yayan.evaluate.longbench_tasks import COLUMNS, TASKS
from yayan.evaluate.needle import EvalNeedle
from yayan.evaluate.report import EvalReport
from yayan.evaluate.words import describe
from yayan.stage import execute

from .test_longbench import official, write_task

SCORES = {"score": 12.34, "interval": [10.0, 15.0], "items": 200, "truncated": 17, "metric": "f1_zh"}


def longbench_metrics(average: float | None) -> dict:
    columns = dict.fromkeys(COLUMNS, average)
    tasks = {name: SCORES | {"column": TASKS[name].column} for name in ("multifieldqa_zh", "lcc")}
    empty = {"columns": dict.fromkeys(COLUMNS), "average": None}
    zh = {"columns": columns | {"code": 40.0}, "average": average}
    return {"tasks": tasks, "languages": {"zh": zh, "en": empty}}


NEEDLE = {
    "lengths": [400, 1600],
    "depths": [0, 50],
    "cells": [
        [{"found": 3, "asked": 3}, {"found": 1, "asked": 3}],
        [{"found": 3, "asked": 3}, {"found": 0, "asked": 3}],
    ],
    "control": [{"found": 0, "asked": 3}, {"found": 0, "asked": 3}],
    **{"found": 7, "asked": 12, "share": 7 / 12, "interval": [0.32, 0.81]},
    **{"control_found": 0, "control_asked": 6},
}


def test_tables_of_longbench() -> None:
    tasks, columns = longbench_tables(longbench_metrics(30.0))
    row = ["multifieldqa_zh", "single-document QA", "f1 zh", "12.3", "10.0 to 15.0", "200", "17"]
    assert tasks.rows[0] == row
    assert columns.rows == [["Chinese and code", *["30.0"] * 5, "40.0", "30.0"]]
    assert longbench_tables(longbench_metrics(None))[1].rows == [["Chinese and code", *"–––––", "40.0", "–"]]
    metrics = longbench_metrics(None)
    metrics["languages"]["zh"]["columns"]["code"] = None
    assert len(longbench_tables(metrics)) == 1


def test_clauses() -> None:
    record = {"stage": "eval longbench", "metrics": longbench_metrics(30.04)}
    assert describe(record) == "zh 30.0; 400 items, 34 cut in the middle"
    record["metrics"] = longbench_metrics(None)
    assert describe(record) == "multifieldqa_zh 12.3, lcc 12.3; 400 items, 34 cut in the middle"
    needle = {"stage": "eval needle", "metrics": NEEDLE}
    assert describe(needle) == "7 of 12 found, 58.3 % (32.0 % to 81.0 %); without the fact 0 of 6"


def test_a_picture_of_shares() -> None:
    assert needle_table(NEEDLE).rows == [
        ["0 %", "3 of 3", "1 of 3"],
        ["50 %", "3 of 3", "0 of 3"],
        ["not planted", "0 of 3", "0 of 3"],
    ]
    svg = needle_picture(NEEDLE)
    assert svg.count("var(--series-3)") == 4
    for shown in (
        "100 %",
        "33 %",
        "0 %",
        "50 %",
        "400",
        "1,600",
        "depth of the fact",
        "tokens of the prompt",
    ):
        assert f">{shown}</text>" in svg


@pytest.mark.parametrize("limit", [None, 1])
def test_a_report_of_both(tmp_path: Path, limit: int | None) -> None:
    model = make_chat_model(tmp_path / "model")
    write_task(tmp_path / "data", "hotpotqa", [official("hotpotqa"), official("hotpotqa")])
    (tmp_path / "hay.txt").write_text("\n".join(TEXTS * 9), encoding="utf-8")
    execute(
        EvalLongbench(out=tmp_path / "long", model=model, data=tmp_path / "data", limit=limit, threads=1),
        quietly,
    )
    needle = EvalNeedle(
        out=tmp_path / "needle", model=model, text=tmp_path / "hay.txt", lengths=[300], depths=[50], threads=1
    )
    execute(needle, quietly)
    execute(EvalReport(out=tmp_path / "report", folders=[tmp_path / "long", tmp_path / "needle"]), quietly)
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    for heading in ("## LongBench: long", "## Planted facts: needle"):
        assert heading in text
    assert ("Asked of each task: 1 item at its beginning." in text) is (limit == 1)
    assert "0 of 3 facts found" in text
    assert html.count("<svg") == 2
    assert "LongBench columns" not in text  # no column is whole
    record = json.loads((tmp_path / "needle" / "yayan.json").read_text())
    assert record["metrics"]["control_asked"] == 3
