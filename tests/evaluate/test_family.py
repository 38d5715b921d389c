"""Which model came from which: found by content, drawn without boxes or arrows on top of each other."""

import re
import xml.etree.ElementTree as ET
from itertools import combinations
from pathlib import Path

import pytest

from yayan.evaluate.family import family, members_of
from yayan.evaluate.family_picture import columns_of, draw_family, generations_of
from yayan.evaluate.steps import Step, read_steps

from .records import read_from, write_step

SVG = "{http://www.w3.org/2000/svg}"
BASE = {"path": "hf:meta-llama/Llama-2-7b-hf", "sha256": "00" * 32}


@pytest.fixture
def twelve(tmp_path: Path) -> list[Step]:
    """A base from elsewhere and its line, with branches and a model of two adapters of different generations."""
    folders: list[Path] = []

    def add(name: str, stage: str, template: str | None = None, **inputs: object) -> dict[str, str]:
        folders.append(write_step(tmp_path / name, stage, inputs=inputs, template=template))
        return read_from(folders[-1])

    grown = add("grow", "grow", model=BASE, tokenizer=BASE)
    adapter = add("pretrain", "pretrain", model=grown, shards=[BASE])
    base = add("merge", "merge", base=grown, adapter=[adapter])
    tuned = add("sft", "pretrain", model=base)
    chat = add("merge-chat", "merge", "ab" * 32, base=base, adapter=[tuned])
    longer = add("stretch <16k> & more", "stretch", model=chat)
    for name, model in {"gguf-base": base, "gguf-chat": chat, "gguf-16k": longer}.items():
        add(name, "gguf", model=model, calibration=None)
    add("both", "merge", base=grown, adapter=[adapter, tuned])
    add("a-name-that-is-much-too-long-for-a-box", "sft", model=base)
    add("eval", "eval samples", model=chat)
    return read_steps(folders)


def test_parents_are_found_by_content(twelve: list[Step]) -> None:
    members = members_of(twelve)
    assert len(members) == 12
    found = {member.name: [members[number].name for number in member.parents] for member in members}
    assert found["grow"] == ["Llama-2-7b-hf"]
    assert found["merge-chat"] == ["merge", "sft"]
    assert found["both"] == ["grow", "pretrain", "sft"]
    assert found["Llama-2-7b-hf"] == []
    kinds = {member.name: member.kind for member in members}
    assert [kinds[name] for name in ("grow", "sft", "gguf-16k", "Llama-2-7b-hf")] == [
        "model",
        "adapter",
        "gguf",
        "elsewhere",
    ]
    facts = {member.name: member.facts for member in members}
    assert facts["grow"] == ["5.5 M parameters", "4,096 rows", "22.0 MB"]
    assert facts["pretrain"] == ["adapter, rank 32", "6.8 MB"]
    assert facts["gguf-chat"] == ["F16 8.0 MB", "Q4_K_M 2.5 MB"]
    assert facts["merge-chat"][-1] == "chat model"
    assert facts["stretch <16k> & more"][1] == "2,048 positions"


def test_the_family_in_words(twelve: list[Step]) -> None:
    section = family(twelve)
    assert section
    words = "both: made from grow and pretrain and sft by merge, 5.5 M parameters, 22.0 MB."
    assert words in section.points
    assert "Llama-2-7b-hf: from elsewhere." in section.points
    assert family(twelve[-1:]) is None


def test_a_step_that_changes_nothing_is_not_its_own_parent(tmp_path: Path) -> None:
    """Merging no adapter copies: three folders have one content."""
    folders = [write_step(tmp_path / "base", "grow")]
    same = read_from(folders[0])
    for name, parent in {"copy": "base", "copy-2": "copy"}.items():
        entry = same | {"path": f"runs/{parent}"}
        folders.append(write_step(tmp_path / name, "merge", inputs={"base": entry, "adapter": []}))
        (folders[-1] / "weights").write_text("base", encoding="utf-8")
    assert [member.parents for member in members_of(read_steps(folders))] == [[], [0], [1]]
    (alone, stranger) = members_of(read_steps(folders[1:2]))
    assert (alone.parents, stranger.name, stranger.kind) == ([1], "base", "elsewhere")


def test_children_stand_to_the_right(twelve: list[Step]) -> None:
    members = members_of(twelve)
    generations = generations_of(members)
    for number, member in enumerate(members):
        assert all(generations[parent] < generations[number] for parent in member.parents)
    assert max(generations) == 7
    both = next(number for number, member in enumerate(members) if member.name == "both")
    passing = [place for places in columns_of(members) for place in places if place.member is None]
    assert len(passing) >= generations[both] - generations[members[both].parents[0]] - 1


def test_nothing_lies_on_anything(twelve: list[Step]) -> None:
    """Boxes apart from each other and inside the picture, letters inside their boxes, names escaped."""
    svg = draw_family(members_of(twelve))
    root = ET.fromstring(svg)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    boxes = []
    for group in root.iter(f"{SVG}g"):
        shape = next(group.iter(f"{SVG}rect"))
        x, y, w, h = (float(shape.attrib[name]) for name in ("x", "y", "width", "height"))
        assert x >= 0 <= y
        assert x + w <= width
        assert y + h <= height
        boxes.append((x, y, x + w, y + h))
        for text in group.iter(f"{SVG}text"):
            assert x < float(text.attrib["x"]) < x + w
            assert y < float(text.attrib["y"]) < y + h
    assert len(boxes) == 12
    for one, other in combinations(boxes, 2):
        assert one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]
    for path in root.iter(f"{SVG}path"):  # arrows run level through a column, above or below its boxes
        for y, x in re.findall(r"([\d.]+) L([\d.]+) ", path.attrib["d"]):
            assert not any(
                left <= float(x) < right and top < float(y) < bottom for left, top, right, bottom in boxes
            )
    assert "stretch &lt;16k&gt; &amp; more" in svg
    assert ">a-name-that-i…ng-for-a-box<" in svg
    assert set(re.findall(r"var\(--([\w-]+)\)", svg)) == {
        *("card", "soft", "paper", "series-2", "series-3", "series-4")
    }


def test_a_model_alone(tmp_path: Path) -> None:
    section = family(read_steps([write_step(tmp_path / "grow", "grow", metrics={"parameters": 117_056})]))
    assert section
    assert section.points == ["grow: made by grow, 0.1 M parameters."]
    assert section.pictures[0].svg.count("<rect") == 2


def test_records_that_name_each_other_are_drawn_all_the_same(tmp_path: Path) -> None:
    """Nobody makes such folders; whoever edits a record shall not hang the page."""
    folders = [write_step(tmp_path / name, "sft") for name in ("one", "two")]
    hashes = [read_from(folder) for folder in folders]
    steps = read_steps(folders)
    for step, entry in zip(steps, reversed(hashes), strict=True):
        step.record["inputs"] = {"model": entry}
    assert draw_family(members_of(steps)).count("<rect") == 4
