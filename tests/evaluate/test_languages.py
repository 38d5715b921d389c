"""Every sentence of the report has its Chinese, and the Chinese page says nothing of ours in English."""

import ast
import json
import re
import string
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

import yayan.evaluate
from yayan import lineage
from yayan.cli import VERBS
from yayan.evaluate import long_sections, readers
from yayan.evaluate.languages import CHINESE, LANGUAGES, catalogue, counted, listed, say, speaking
from yayan.evaluate.longbench_metrics import METRICS as LONGBENCH_METRICS
from yayan.evaluate.longbench_tasks import COLUMNS
from yayan.evaluate.page import Page, markdown
from yayan.evaluate.report import EvalReport, make_page
from yayan.evaluate.steps import Step, read_steps
from yayan.evaluate.subjects import CEVAL_SUBJECTS, CMMLU_SUBJECTS, MMLU_SUBJECTS
from yayan.evaluate.words import CLAUSES, UNITS, describe, duration

from .records import METRICS, read_from, write_step

NOT_TRANSLATED = {"python", "yayan"}  # keys of a record's machine that are names
SAME = {"", "yayan", *CLAUSES, "m-F16.gguf"}  # what is alike in all languages: names of verbs and of files


def sentences() -> Iterator[str]:
    """What the code says: literals that stand in a call of `say`, `titles` or `counted`."""
    for path in Path(yayan.evaluate.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                said = {"say": node.args[:1], "titles": node.args, "counted": node.args[1:]}
                head = "{number:,} " if node.func.id == "counted" else ""
                for argument in said.get(node.func.id, []):
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        yield head + argument.value


def names() -> set[str]:
    """What the code says that it has from elsewhere: names in tables and records."""
    subjects = [*CEVAL_SUBJECTS.values(), *CMMLU_SUBJECTS.values(), *MMLU_SUBJECTS.values()]
    return {
        *(VERBS[stage][1] for stage in CLAUSES),
        *(group for _, groups in subjects for group in groups),
        *COLUMNS,
        *(metric.replace("_", " ") for metric in LONGBENCH_METRICS),
        *long_sections.NAMES.values(),
        *("byte-level BPE", "byte-level Unigram", readers.LLAMA_CPP, EvalReport.title),
        *(set(lineage.machine()) - NOT_TRANSLATED),
        *UNITS,
    }


def placeholders(sentence: str) -> set[tuple[str, str]]:
    return {(name, form or "") for _, name, form, _ in string.Formatter().parse(sentence) if name}


def test_every_sentence_has_its_chinese_and_none_is_left_over() -> None:
    said = {*sentences(), *names()}
    assert len(said) > 200
    assert said - set(catalogue(CHINESE)) == set()
    assert set(catalogue(CHINESE)) - said == set()


def test_both_languages_name_the_same_figures() -> None:
    for english, chinese in catalogue(CHINESE).items():
        assert placeholders(english) == placeholders(chinese), english
        assert re.search(r"[\u3000-\u9fff\uff00-\uffef]", chinese) or english == chinese or len(english) < 20


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[Step]:
    """A step of every kind, of bits per byte two of a text and one of another limit."""
    root = tmp_path_factory.mktemp("all")
    model = {"path": "m-F16.gguf", "sha256": "12" * 32}
    folders = [
        write_step(root / f"{n:02}", stage, inputs={"model": model}) for n, stage in enumerate(METRICS)
    ]
    text = {"zh": {"path": "zh.txt", "sha256": "34" * 32}}
    bits = folders[list(METRICS).index("eval bits")]
    record = lineage.read(bits) or {}
    lineage.write(bits, record | {"inputs": {"model": read_from(folders[1]), "text": text}})
    for number, limit in ((90, 900), (91, 400)):
        metrics = METRICS["eval bits"] | {"limit_bytes": limit}
        inputs = {"model": read_from(folders[3]), "text": text}
        folders.append(write_step(root / f"{number}", "eval bits", inputs=inputs, metrics=metrics))
    lines = [{"step": n, "loss": 8 / n, "bits_per_byte": {"zh": 2.3}} for n in range(1, 9)]
    (folders[3] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_steps(folders)


def test_there_is_a_record_of_every_kind() -> None:
    assert set(METRICS) == set(CLAUSES)


def titles_of(page: Page) -> list[str]:
    """What is a sentence or a title of ours on a page: never the same in two languages."""
    found = [page.title, page.subtitle, *(card.meaning for card in page.cards)]
    for section in page.sections:
        tables = [section.table] if section.table else []
        found += [section.title, section.text, *section.points]
        found += chain(*(table.columns for table in tables))
        found += [picture.caption for picture in section.pictures]
        found += [talk.answer for talk in section.talks] + [talk.note for talk in section.talks]
    return found


def letters_of(page: Page) -> list[str]:
    """The letters in its pictures."""
    pictures = [picture.svg for section in page.sections for picture in section.pictures]
    return [text for svg in pictures for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def test_the_chinese_page_is_chinese(steps: list[Step]) -> None:
    """As many parts as the English one, each of ours another; nowhere two English words in a row."""
    english, chinese = (make_page("What the road has done", steps, language) for language in LANGUAGES)
    assert [len(section.points) for section in english.sections] == [
        len(section.points) for section in chinese.sections
    ]
    same = {one for one, other in zip(titles_of(english), titles_of(chinese), strict=True) if one == other}
    assert same - SAME == set()
    drawn = zip(letters_of(english), letters_of(chinese), strict=True)
    same = {one for one, other in drawn if one == other and re.search("[a-z]{4}", one)}
    assert same - SAME == set()
    words = re.findall(r"[A-Za-z]{2,} [a-z]{2,}", markdown(chinese) + "\n".join(letters_of(chinese)))
    assert set(words) == set()


def test_what_the_command_line_says_is_english(steps: list[Step]) -> None:
    with speaking(CHINESE):
        assert describe(steps[0].record) == "新增 2,040 个词元，共 4,096 个；每字符词元数 2.97 → 0.89"
        assert counted(24, "question") == "24 道题"
        assert listed(["a", "b"]) == "a，b"
        assert duration(7_500) == "2 小时 5 分"
        assert say("no sentence of ours {at all}") == "no sentence of ours {at all}"
    assert describe(steps[0].record) == "2,040 new tokens, 4,096 in all; 2.97 → 0.89 tokens a character"
    assert (counted(1, "question"), counted(24, "question")) == ("1 question", "24 questions")
    assert listed(["a", "b"]) == "a, b"
    assert duration(200) == "3 min 20 s"


def test_a_language_ends_with_its_block() -> None:
    with pytest.raises(ZeroDivisionError), speaking(CHINESE):
        raise ZeroDivisionError
    assert say("step") == "step"


@pytest.mark.parametrize("stage", METRICS)
def test_every_clause_is_said_in_both(stage: str) -> None:
    """No clause falls back to its plain numbers."""
    record = {"stage": stage, "metrics": METRICS[stage]}
    english = describe(record)
    with speaking(CHINESE):
        chinese = describe(record)
    assert english == CLAUSES[stage](METRICS[stage])
    assert english != chinese or stage == "gguf"
