"""Questions in every form in which they are handed around, alike in folders and archives; every kind of bad data."""

import json
import lzma
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

import yayan
from yayan.errors import UserError
from yayan.evaluate.benchmarks import CEVAL, CMMLU, MMLU, Benchmark
from yayan.evaluate.questions import Subject, read_subjects

from ..conftest import SHARED, needs_shared

COLUMNS = "id,question,A,B,C,D,answer\n"
LAW = [" 下列何者是民法？ ,甲,乙,丙,丁,A", '"一, 二",1,2,3,4,D', "三,1,2,3,4,B"]
LAW_EXAMPLES = ["例一,甲,乙,丙,丁,C", "例二,1,2,3,4,B"]
LOGIC = ["四,1,2,3,4,C"]
LOGIC_EXAMPLES = ["例三,1,2,3,4,A", "例四,1,2,3,4,D"]


def write_csv(folder: Path, split: str, subject: str, rows: list[str], columns: str = COLUMNS) -> None:
    (folder / split).mkdir(exist_ok=True, parents=True)
    text = columns + "".join(f"{i},{row}\n" for i, row in enumerate(rows))
    (folder / split / f"{subject}_{split}.csv").write_text(text, encoding="utf-8")


def write_ceval(folder: Path) -> Path:
    write_csv(folder, "val", "law", LAW)
    write_csv(folder, "dev", "law", LAW_EXAMPLES)
    write_csv(folder, "val", "logic", LOGIC)
    write_csv(folder, "dev", "logic", LOGIC_EXAMPLES)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_ceval(tmp_path / "ceval")


def write_cmmlu(folder: Path) -> Path:
    for split, rows in (("test", LAW), ("dev", LAW_EXAMPLES)):
        (folder / split).mkdir(parents=True)
        text = ",Question,A,B,C,D,Answer\n" + "".join(f"{i},{row}\n" for i, row in enumerate(rows))
        (folder / split / "ancient_chinese.csv").write_text("\ufeff" + text, encoding="utf-8")
    return folder


def write_mmlu(folder: Path) -> Path:
    for split, rows in (("test", LAW), ("dev", LAW_EXAMPLES)):
        (folder / "data" / split).mkdir(parents=True)
        text = "".join(f"{row}\n" for row in rows)
        (folder / "data" / split / f"high_school_us_history_{split}.csv").write_text(text, encoding="utf-8")
    return folder


def pack(folder: Path) -> Path:
    """The folder as an archive, in a folder of its own name, with what macOS puts beside each file."""
    path = folder.with_suffix(".zip")
    with ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder.parent).as_posix()
            archive.write(file, name)
            if file.is_file():
                archive.writestr(
                    f"__MACOSX/{file.relative_to(folder.parent).parent.as_posix()}/._{file.name}", "\0"
                )
    return path


def as_jsonl(subjects: list[Subject], folder: Path, split: str) -> Path:
    folder.mkdir()
    for name in (split, "dev"):
        rows = []
        for subject in subjects:
            for item in subject.examples if name == "dev" else subject.questions:
                row = {"subject": item.subject, "question": item.question, "answer": item.answer}
                row |= dict(zip("ABCD", item.options, strict=True))
                rows.append(json.dumps(row, ensure_ascii=False) + "\n")
        (folder / f"{name}.jsonl.xz").write_bytes(lzma.compress("".join(rows).encode()))
    return folder


@pytest.mark.parametrize(
    ("benchmark", "write", "split", "key", "name", "groups"),
    [
        (CEVAL, write_ceval, "val", "law", "法学", ("Humanities",)),
        (CMMLU, write_cmmlu, "test", "ancient_chinese", "古汉语", ("Social Science", "China specific")),
        (MMLU, write_mmlu, "test", "high_school_us_history", "high school us history", ("Humanities",)),
    ],
)
def test_all_forms_hold_the_same_questions(
    benchmark: Benchmark,
    write: Callable[[Path], Path],
    split: str,
    key: str,
    name: str,
    groups: tuple[str, ...],
    tmp_path: Path,
) -> None:
    folder = write(tmp_path / "official")
    found = read_subjects(benchmark, folder, [], 2, split)
    first = found[0]
    assert (first.key, first.name, first.groups) == (key, name, groups)
    assert [item.answer for item in first.questions] == ["A", "D", "B"]
    assert first.questions[1].question == "一, 二"
    assert first.questions[0].options == ("甲", "乙", "丙", "丁")
    assert [item.question for item in first.examples] == ["例一", "例二"]
    assert read_subjects(benchmark, pack(folder), [], 2, split) == found
    lines = as_jsonl(found, tmp_path / "lines", split)
    assert read_subjects(benchmark, lines, [], 2, split) == found
    assert read_subjects(benchmark, pack(lines), [], 2, split) == found
    assert read_subjects(benchmark, folder, [key], 0, split)[0].examples == []


def test_the_test_split_of_ceval_needs_no_answers(data: Path) -> None:
    write_csv(data, "test", "law", ["问,1,2,3,4", "答,4,3,2,1"], "id,question,A,B,C,D\n")
    (law,) = read_subjects(CEVAL, data, [], 2, "test")
    assert [item.answer for item in law.questions] == [None, None]
    write_csv(data, "test", "law", ["问,1,2,3,4,", "答,4,3,2,1,B"])
    (law,) = read_subjects(CEVAL, data, [], 2, "test")
    assert [item.answer for item in law.questions] == [None, "B"]
    row = {"subject": "logic", "question": "问", "answer": None, **dict.fromkeys("ABCD", "1")}
    (data / "test.jsonl").write_text(json.dumps(row) + "\n")
    assert read_subjects(CEVAL, data, ["logic"], 2, "test")[0].questions[0].answer is None
    write_csv(data, "test", "law", ["问,1,2,3,4,X"])
    with pytest.raises(UserError, match="'X' is none of"):
        read_subjects(CEVAL, data, [], 2, "test")


def test_subjects_of_ones_own_are_named_in_a_mapping(data: Path) -> None:
    write_csv(data, "val", "alchemy", LAW)
    (data / "subject_mapping.json").write_text(
        '{"alchemy": ["Alchemy", "炼金术", "Other"]}', encoding="utf-8"
    )
    assert read_subjects(CEVAL, data, ["alchemy"], 0, "val")[0].name == "炼金术"


def test_the_built_in_questions_are_whole() -> None:
    questions = Path(yayan.__file__).parent / "sample" / "questions"
    subjects = read_subjects(CEVAL, questions, [], 2, "val")
    assert sum(len(subject.questions) for subject in subjects) == 24
    assert all(any(letter >= "\u4e00" for letter in subject.name) for subject in subjects)


@needs_shared
@pytest.mark.parametrize(
    ("benchmark", "split", "subjects", "questions", "groups"),
    [
        (CEVAL, "val", 52, 1346, 4),
        (CEVAL, "test", 52, 12342, 4),
        (CMMLU, "test", 67, 11582, 5),
        (MMLU, "test", 57, 14042, 4),
    ],
)
def test_the_real_data_is_whole(
    benchmark: Benchmark, split: str, subjects: int, questions: int, groups: int
) -> None:
    found = read_subjects(benchmark, SHARED / f"data/eval-{benchmark.task}", [], 5, split)
    assert {subject.key for subject in found} == set(benchmark.names)
    assert (len(found), sum(len(subject.questions) for subject in found)) == (subjects, questions)
    assert len({group for subject in found for group in subject.groups}) == groups


def test_fifteen_subjects_of_cmmlu_count_twice() -> None:
    twice = [key for key, (_, groups) in CMMLU.names.items() if groups[1:] == ("China specific",)]
    assert len(twice) == 15


def break_column(folder: Path) -> None:
    write_csv(folder, "val", "law", ["问,1,2,3,D"], "id,question,A,B,C,answer\n")


def break_answer(folder: Path) -> None:
    write_csv(folder, "val", "law", [LAW[0], "问,1,2,3,4,E"])


def break_no_answer(folder: Path) -> None:
    write_csv(folder, "val", "law", [LAW[0], "问,1,2,3,4,"])


def break_encoding(folder: Path) -> None:
    (folder / "val" / "law_val.csv").write_bytes((COLUMNS + "0,问,1,2,3,4,A\n").encode("gb18030"))


def break_short_row(folder: Path) -> None:
    write_csv(folder, "val", "law", ["问,1,2"])


def break_long_row(folder: Path) -> None:
    write_csv(folder, "val", "law", ["一, 二,1,2,3,4,A"])


def break_empty(folder: Path) -> None:
    for path in (folder / "val").iterdir():
        path.unlink()


def break_empty_file(folder: Path) -> None:
    write_csv(folder, "val", "law", [])


def break_examples(folder: Path) -> None:
    write_csv(folder, "dev", "law", LAW_EXAMPLES[:1])


def break_no_examples(folder: Path) -> None:
    (folder / "dev" / "law_dev.csv").unlink()


def break_name(folder: Path) -> None:
    write_csv(folder, "val", "alchemy", LAW)


def break_mapping(folder: Path) -> None:
    (folder / "subject_mapping.json").write_text('{"law": "法学"}')


def break_jsonl(folder: Path) -> None:
    (folder / "val.jsonl").write_text("[1]\n")


def break_json(folder: Path) -> None:
    (folder / "val.jsonl").write_text("{1\n")


def break_no_subject(folder: Path) -> None:
    (folder / "val.jsonl").write_text('{"question": "问"}\n')


def break_xz(folder: Path) -> None:
    (folder / "val.jsonl.xz").write_bytes(lzma.compress(b"{}\n" * 999)[:20])


def break_twice(folder: Path) -> None:
    row = {"subject": "law", "question": "问", "answer": "A", **dict.fromkeys("ABCD", "1")}
    (folder / "val.jsonl").write_text(json.dumps(row) + "\n")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (break_column, r"question without D \(.*law_val\.csv:2\)"),
        (break_answer, r"'E' is none of A, B, C, D \(.*law_val\.csv:3\)"),
        (break_no_answer, r"'' is none of A, B, C, D \(.*law_val\.csv:3\)"),
        (break_encoding, r"no UTF-8 CSV.*law_val\.csv"),
        (break_short_row, "question without C"),
        (break_long_row, r"8 cells instead of 7 \(.*law_val\.csv:2\)"),
        (break_empty, "no question of the split val"),
        (break_empty_file, r"no question in this file \(.*law_val\.csv\)"),
        (break_examples, r"law has 1 worked examples \(dev\), 2 are asked for.*--shots 1"),
        (break_no_examples, r"law has 0 worked examples \(dev\), 2 are asked for.*--shots 0"),
        (break_name, "alchemy has no name for prompts"),
        (break_mapping, r"mapping of subjects cannot be read.*subject_mapping\.json"),
        (break_jsonl, r"no JSON object.*val\.jsonl:1"),
        (break_json, r"no JSON in UTF-8.*val\.jsonl:1"),
        (break_no_subject, r"names no subject.*val\.jsonl:1"),
        (break_xz, r"cannot be read.*val\.jsonl\.xz"),
        (break_twice, r"law stands in two files"),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_bad_data_is_named(data: Path, harm: Callable[[Path], None], sentence: str, packed: bool) -> None:
    harm(data)
    with pytest.raises(UserError, match=sentence):
        read_subjects(CEVAL, pack(data) if packed else data, [], 2, "val")


def test_what_is_no_benchmark_is_named(tmp_path: Path, data: Path) -> None:
    with pytest.raises(UserError, match="nothing is there"):
        read_subjects(CEVAL, tmp_path / "none", [], 0, "val")
    file = tmp_path / "notes.txt"
    file.write_text("no archive")
    with pytest.raises(UserError, match="neither a folder nor a zip archive"):
        read_subjects(CEVAL, file, [], 0, "val")
    torn = pack(data)
    torn.write_bytes(torn.read_bytes().replace("民法".encode(), "刑法".encode()))
    with pytest.raises(UserError, match=r"cannot be read, Bad CRC.*law_val\.csv"):
        read_subjects(CEVAL, torn, [], 0, "val")
    with pytest.raises(UserError, match="no subject lawn .*did you mean law"):
        read_subjects(CEVAL, data, ["lawn"], 0, "val")
    with pytest.raises(UserError, match=r"no subject xyz .*there are law, logic"):
        read_subjects(CEVAL, data, ["xyz"], 0, "val")
