"""Two models on the same questions: figures by hand and from the items, and what cannot be compared."""

import json
from itertools import product
from pathlib import Path

import pytest

from yayan.errors import UserError
from yayan.evaluate.choices import EvalCeval, EvalCmmlu
from yayan.evaluate.compare import EvalCompare, Pair, compare, mcnemar
from yayan.stage import execute

from ..conftest import quietly
from .conftest import POSITIONS, save_model
from .test_questions import write_ceval, write_cmmlu, write_csv


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, Path]:
    """Folders of evaluations, by what was asked of whom."""
    root = tmp_path_factory.mktemp("evaluated")
    data, other = write_ceval(root / "data"), save_model(root / "other", seed=4)
    write_csv(data, "test", "law", ["问,1,2,3,4"], "id,question,A,B,C,D\n")
    found = {"one": model_folder, "two": other}
    for name, model in found.items():
        execute(EvalCeval(out=root / name, model=model, data=data, shots=0), quietly)
    others: dict[str, dict] = {
        "cla2": {"protocol": "cla2"},
        "law": {"subjects": ["law"]},
        "one-shot": {"shots": 1},
        "untold": {"split": "test"},
    }
    for name, options in others.items():
        asked: dict = {"model": other, "data": data, "shots": 0} | options
        execute(EvalCeval(out=root / name, **asked), quietly)
    execute(EvalCmmlu(out=root / "cmmlu", model=other, data=write_cmmlu(root / "c"), shots=0), quietly)
    longer = write_ceval(root / "longer")
    write_csv(longer, "val", "logic", ["长" * POSITIONS + ",1,2,3,4,C"])
    execute(EvalCeval(out=root / "longer-0", model=other, data=longer, shots=0), quietly)
    names = ["one", "two", "cla2", "law", "one-shot", "untold", "cmmlu", "longer-0", "data"]
    return {name: root / name for name in names}


def test_pairs_are_counted_from_the_items(evaluated: dict[str, Path], tmp_path: Path) -> None:
    stage = EvalCompare(out=tmp_path / "out", before=evaluated["one"], after=evaluated["two"])
    metrics = execute(stage, quietly)["metrics"]
    one, two = (json.loads((evaluated[name] / "results.json").read_text()) for name in ("one", "two"))
    right = [[item["prediction"] == item["answer"] for item in results["items"]] for results in (one, two)]
    assert metrics["asked"] == 4
    assert metrics["gained"] == sum(b and not a for a, b in zip(*right, strict=True))
    assert metrics["lost"] == sum(a and not b for a, b in zip(*right, strict=True))
    assert metrics["accuracy_after"] == two["accuracy"]
    assert metrics["difference"] == pytest.approx(two["accuracy"] - one["accuracy"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["models"] == {"before": one["model"], "after": two["model"]}
    assert results["subjects"]["law"]["questions"] == 3
    differ = [a["prediction"] != b["prediction"] for a, b in zip(one["items"], two["items"], strict=True)]
    assert len(results["items_that_differ"]) == sum(differ) > 0


def test_a_model_against_itself_differs_by_nothing(evaluated: dict[str, Path], tmp_path: Path) -> None:
    record = execute(
        EvalCompare(out=tmp_path / "out", before=evaluated["one"], after=evaluated["one"]), quietly
    )
    metrics = record["metrics"]
    assert (metrics["difference"], metrics["interval"], metrics["p_value"]) == (0.0, [0.0, 0.0], 1.0)


def pairs(gained: int, lost: int, both: int, neither: int, unasked: int = 0) -> list[Pair]:
    kinds = {
        ("B", "A"): gained,
        ("A", "B"): lost,
        ("A", "A"): both,
        ("B", "C"): neither,
        (None, "A"): unasked,
    }
    return [Pair("law", 0, "A", *answers) for answers, count in kinds.items() for _ in range(count)]


def test_figures_by_hand() -> None:
    found = compare(pairs(gained=30, lost=10, both=40, neither=20, unasked=5))
    assert (found["questions"], found["asked"], found["not_asked_of_both"]) == (105, 100, 5)
    assert (found["accuracy_before"], found["accuracy_after"], found["difference"]) == (0.5, 0.7, 0.2)
    half = 1.96 * ((0.4 - 0.2**2) / 100) ** 0.5  # the normal approximation of a mean of -1, 0, 1
    assert found["interval"] == pytest.approx([0.2 - half, 0.2 + half], abs=0.02)
    assert compare(pairs(0, 0, 0, 0, 3))["difference"] is None


def test_mcnemar_counts_all_ways_to_win() -> None:
    for gained, lost in product(range(6), range(6)):
        ways = [sum(coins) for coins in product((0, 1), repeat=gained + lost)]
        middle, away = (gained + lost) / 2, abs(gained - lost) / 2
        expected = sum(abs(heads - middle) >= away for heads in ways) / len(ways)
        assert mcnemar(gained, lost) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        ("cla2", "protocol is harness in one, cla2 in cla2"),
        ("law", "one and law were asked other questions"),
        ("one-shot", "shots is 0 in one, 1 in one-shot"),
        ("cmmlu", "task is ceval in one, cmmlu in cmmlu"),
        ("untold", "right answers are not told"),
        ("longer-0", "one and longer-0 were asked other questions"),
        ("data", "not the results of four-choice questions"),
    ],
)
def test_what_was_asked_otherwise_is_not_compared(
    evaluated: dict[str, Path], tmp_path: Path, after: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        execute(EvalCompare(out=tmp_path / "out", before=evaluated["one"], after=evaluated[after]), quietly)
