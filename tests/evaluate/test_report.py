"""The report: real evaluations of a tiny model, records of other steps in their contract's form, one page of it all."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from yayan import lineage
from yayan.errors import UserError
from yayan.evaluate.bits import EvalBits
from yayan.evaluate.choices import EvalCeval
from yayan.evaluate.compare import EvalCompare
from yayan.evaluate.page import Table, markdown_table
from yayan.evaluate.report import EvalReport
from yayan.evaluate.steps import read_steps
from yayan.evaluate.words import describe
from yayan.stage import execute

from .conftest import save_model
from .records import METRICS, write_step
from .test_questions import LAW, write_csv


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> list[Path]:
    """Folders of a whole road: two evaluations of the same text under two models, and what stands around them."""
    root = tmp_path_factory.mktemp("road")
    text = root / "zh.txt"
    text.write_text("请选出其中的正确答案。\n\n法学的单项选择题\n\nthe mat\n", encoding="utf-8")
    other = save_model(root / "other", seed=4)
    for name, model in (("eval-bits-before", model_folder), ("eval-bits-after", other)):
        execute(EvalBits(out=root / name, model=model, text={"zh": text}))
    execute(EvalBits(out=root / "eval-bits-short", model=other, text={"zh": text}, limit=40))
    write_csv(root / "data", "val", "law", LAW)
    for name, model in (("eval-ceval", other), ("eval-ceval-before", model_folder)):
        execute(EvalCeval(out=root / name, model=model, data=root / "data", shots=0))
    folders = root / "eval-ceval-before", root / "eval-ceval"
    execute(EvalCompare(out=root / "eval-compare", before=folders[0], after=folders[1]))
    write_step(root / "vocab", "vocab")
    lines = [{"step": 0, "tokens": 0, "seconds": 0.0, "bits_per_byte": {"zh": 9.7}}]
    lines += [{"step": i, "tokens": i * 512, "loss": 8 / i, "seconds": i * 0.4} for i in range(1, 100)]
    lines[-1]["bits_per_byte"] = {"zh": 2.3}
    pretrain = write_step(root / "pretrain", "pretrain")
    (pretrain / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_step(root / "gguf", "gguf")
    inputs = {"model": {"path": "runs/gguf/m-F16.gguf", "sha256": "ab" * 32}}
    samples = write_step(root / "eval-samples", "eval samples", inputs=inputs)
    item = {"prompt": "你好？", "answer": "<script>雅言|*是*", "tokens": 9, "seconds": 0.2, "complete": False}
    (samples / "results.json").write_text(json.dumps({"items": [item]}), encoding="utf-8")
    names = [
        "vocab",
        "pretrain",
        "eval-bits-before",
        "eval-bits-after",
        "eval-bits-short",
        "eval-ceval",
        "eval-compare",
        "gguf",
    ]
    return [root / name for name in [*names, "eval-samples"]]


class Reader(HTMLParser):
    """Text of the cells of a page in one language, and all that it would load."""

    def __init__(self, language: str) -> None:
        super().__init__()
        self.wanted, self.language = language, ""
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "input"):
            self.open.append(tag)
        if tag == "article":
            self.language = dict(attributes)["lang"] or ""
        if tag == "tr" and self.language == self.wanted:
            self.rows.append([])
        if tag in ("td", "th") and self.language == self.wanted:
            self.rows[-1].append("")
        self.loaded += [
            value or "" for name, value in attributes if name in ("src", "href", "data", "action")
        ]
        if tag in ("iframe", "object", "link"):
            self.loaded.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th") and self.language == self.wanted:
            self.rows[-1][-1] += data


def read(path: Path, language: str = "en") -> Reader:
    reader = Reader(language)
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def test_the_page_stands_alone_and_tells_the_figures(road: list[Path], tmp_path: Path) -> None:
    record = execute(EvalReport(out=tmp_path / "report", folders=road, title="到中文的路 & back"))
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    reader = read(tmp_path / "report" / "report.html")
    assert all(target.startswith("#") for target in reader.loaded)
    assert set(re.findall(r"https?://[\w.]+", html)) == {"http://www.w3.org"}  # names of XML, not addresses
    assert "@media (prefers-color-scheme: dark)" in html
    assert "到中文的路 &amp; back" in html
    assert html.count("<svg") == 2 * 3
    assert "#a1000" not in html
    assert "currentColor" in html
    assert "&lt;script&gt;雅言|*是*" in html
    assert record["metrics"] == {"steps": 9, "bytes": (tmp_path / "report" / "report.html").stat().st_size}

    before, after = (json.loads((folder / "results.json").read_text()) for folder in road[2:4])
    rows = {tuple(row[:2]): row for row in reader.rows}
    last = rows["zh", "eval-bits-after"]
    assert last[2] == f"{after['texts']['zh']['bits_per_byte']:.3f}"
    share = after["texts"]["zh"]["bits_per_byte"] / before["texts"]["zh"]["bits_per_byte"] - 1
    assert last[4].split(" (")[0].replace("−", "-") == f"{share:+.1%}".replace("%", " %")
    assert rows["zh", "eval-bits-before"][4] == rows["zh (2)", "eval-bits-short"][4] == ""
    assert rows["Q4_K_M", "m-Q4_K_M.gguf"][2:] == ["2.5 MB", "31.2 %", "5.10", "0.0761"]
    assert "may as well be guessing" in html
    results = json.loads((road[5] / "results.json").read_text())
    assert rows["eval-ceval", "harness 1, base, 0-shot, val"][2:] == [
        "Humanities",
        f"{results['accuracy']:.1%}".replace("%", " %"),
        " to ".join(f"{end:.1%}".replace("%", " %") for end in results["interval"]),
        "25.0 %",
        *("3", "0", "0"),
    ]
    assert re.search(r"eval-compare: [\d.]+ % → [\d.]+ %, [+−][\d.]+ points \(", html)
    assert "eval-ceval lacks 51 subjects." in html
    assert "Of zh (2), only 1 document at its beginning" in html


@pytest.mark.parametrize(("language", "name"), [("en", "report.md"), ("zh", "report_zh.md")])
def test_markdown_says_the_same(road: list[Path], tmp_path: Path, language: str, name: str) -> None:
    execute(EvalReport(out=tmp_path / "report", folders=road))
    text = (tmp_path / "report" / name).read_text(encoding="utf-8")
    table_lines = [line for line in text.splitlines() if line.startswith("| ")]
    rules = sum(set(line) <= set("| -:") for line in table_lines)
    assert len(table_lines) - rules == len(read(tmp_path / "report" / "report.html", language).rows)
    assert "\\<script\\>雅言|\\*是\\*" in text
    assert re.search(r"^- pretrain(: loss|：损失) 7\.90 → 2\.31", text, re.M)  # a section of pictures alone
    assert "4,096" in text


def test_both_languages_lie_in_one_page(road: list[Path], tmp_path: Path) -> None:
    """A choice without a script; a picture's ids are its own, since a part that is hidden lends no clips."""
    execute(EvalReport(out=tmp_path / "report", folders=road))
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'<input [^>]*id="show-(\w+)"[^>]* checked>', html) == ["en"]
    for language, words in {"en": "What this page cannot say", "zh": "本报告不能说明什么"}.items():
        part = html[html.index(f'<article class="page" lang="{language}">') :]
        assert words in part[: part.index("</article>")]
        assert html.count(words) == 1
        assert f'#show-{language}:checked ~ .page:not([lang="{language}"]) {{ display: none; }}' in html
        assert f'<label for="show-{language}"' in html
    assert "<title>What the road has done / 全程的结果</title>" in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert {*re.findall(r"url\(#([^)]+)\)", html), *re.findall(r'href="#([^"]+)"', html)} <= set(ids)


def test_cells_cannot_break_a_markdown_table() -> None:
    table = Table(["a", "b"], [["x|y\nz", "1"]], numeric=[1])
    assert markdown_table(table).splitlines() == ["| a | b |", "| --- | ---: |", "| x\\|y z | 1 |"]


def test_the_same_steps_give_the_same_bytes(road: list[Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        execute(EvalReport(out=tmp_path / name, folders=road))
    assert (tmp_path / "one" / "report.html").read_bytes() == (tmp_path / "two" / "report.html").read_bytes()


def test_a_single_step_makes_a_page(road: list[Path], tmp_path: Path) -> None:
    execute(EvalReport(out=tmp_path / "report", folders=road[:1]))
    assert "Multiple choice" not in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def test_steps_are_told_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    """A pattern of names would put what was after before what was before."""
    folders = [write_step(tmp_path / name, "merge") for name in ("after", "before")]
    for folder, hour in zip(folders, (9, 8), strict=True):
        record = json.loads((folder / "yayan.json").read_text())
        record["started"] = f"2026-11-23T{hour:02}:00:00+00:00"
        (folder / "yayan.json").write_text(json.dumps(record))
    assert [step.folder.name for step in read_steps(folders)] == ["before", "after"]


def test_folders_that_tell_nothing_are_refused(road: list[Path], tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"no yayan\.json .*nothing"):
        execute(EvalReport(out=tmp_path / "out", folders=[*road, tmp_path / "nothing"]))
    lineage.write(tmp_path / "nothing", lineage.read(road[2]) or {})
    with pytest.raises(UserError, match=r"no results\.json .*nothing"):
        execute(EvalReport(out=tmp_path / "out", folders=[tmp_path / "nothing"]))
    with pytest.raises(UserError, match="no folder is given"):
        execute(EvalReport(out=tmp_path / "out", folders=[]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("vocab", "2,040 new tokens, 4,096 in all; 2.97 → 0.89 tokens a character"),
        ("pretrain", "loss 7.90 → 2.31 over 30,720 tokens; held-out bits per byte zh 9.70 → 2.30"),
        ("gguf", "F16 8.0 MB, Q4_K_M 2.5 MB"),
        ("eval samples", "1 answer, 51 tokens/s"),
    ],
)
def test_what_came_of_a_step(stage: str, words: str) -> None:
    assert describe({"stage": stage, "metrics": METRICS[stage]}) == words


def test_a_record_with_other_figures_is_told_plainly() -> None:
    assert describe({"stage": "grow", "metrics": {"rows": 5000, "init": "mean"}}) == "rows 5,000"
    assert describe({"stage": "stretch", "metrics": {}}) == "done"
