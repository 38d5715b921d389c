"""The figures of a text under each tokenizer, counted again by hand; the files; what is refused."""

import gzip
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.conftest import SHARED, needs_shared, quietly
from tests.sentencepiece_model import sentencepiece_bytes
from tests.tiny import make_tokenizer
from yayan.cli import main
from yayan.corpus.bad import Bad
from yayan.errors import UserError
from yayan.evaluate.encoders import open_tokenizer
from yayan.evaluate.report import EvalReport
from yayan.evaluate.tokens import EvalTokens, Size, batches, measure_text
from yayan.evaluate.words import describe
from yayan.recipe import read_recipe, stages_of
from yayan.stage import execute

TEXTS = ["the cat sat", "雅言是标准的语言", "", "a 🐈 sat\n\n ▁", "语言|*b*"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, Path]:
    """A byte-level one, one with byte fallback, and a bare SentencePiece model."""
    root = tmp_path_factory.mktemp("tokenizers")
    make_tokenizer(root / "tiny")
    (root / "spelled.model").write_bytes(sentencepiece_bytes())
    return {
        "bytes": model_folder,
        "tiny": root / "tiny" / "tokenizer.json",
        "spelled": root / "spelled.model",
    }


def test_the_figures_are_those_of_a_count_by_hand(
    tokenizers: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    record = execute(EvalTokens(out=tmp_path / "out", tokenizer=tokenizers, text={"mixed": text}), quietly)
    size = record["metrics"]["texts"]["mixed"]
    texts = [item for item in TEXTS if item]
    characters, length = sum(map(len, texts)), sum(len(item.encode()) for item in texts)
    assert (size["documents"], size["characters"], size["bytes"]) == (4, characters, length)
    assert size["complete"]
    assert size["skipped"] == {"lines": 0, "reasons": {}, "places": []}
    for name, path in tokenizers.items():
        encoder, row = open_tokenizer(path), size["tokenizers"][name]
        ids = [number for item in texts for number in encoder.encode_batch([item])[0]]
        data = [token.data for number in ids if (token := encoder.tokens[number])]
        parts = [raw for raw in data if raw.decode("utf-8", "ignore").encode() != raw]
        assert row["tokens"] == len(ids)
        assert row["tokens_per_character"] == pytest.approx(len(ids) / characters)
        assert row["bytes_per_token"] == pytest.approx(length / len(ids))
        assert row["partial_tokens"] == len(parts) > 0
        assert row["byte_fallback_share"] == pytest.approx(len(parts) / len(ids))
    failures = {name: row["first_failures"] for name, row in size["tokenizers"].items()}
    assert failures == {
        "bytes": [],
        "tiny": [
            f"mixed.jsonl:{line}" for line in (1, 2, 4, 5)
        ],  # it puts a space before and does not take it away
        "spelled": ["mixed.jsonl:4"],  # ▁ becomes a space
    }
    assert [row["round_trip_failures"] for row in size["tokenizers"].values()] == [0, 4, 1]


def test_what_is_left_behind(tokenizers: dict[str, Path], text: Path, tmp_path: Path) -> None:
    stage = EvalTokens(out=tmp_path / "out", tokenizer=tokenizers, text={"mixed": text, "again": text})
    record = execute(stage, quietly)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["task"], results["protocol"], results["protocol_version"]) == ("tokens", "plain-text", 1)
    assert "model" not in results
    assert results["texts"] == record["metrics"]["texts"]
    for name, row in record["metrics"]["tokenizers"].items():
        full = results["tokenizers"][name]
        assert full["sha256"] == record["inputs"]["tokenizer"][name]["sha256"]
        assert len(full["dead"]) == row["dead_ids"]
        assert {key: full[key] for key in row} == row
    # of the tiny one, all bytes of ASCII letters without a piece are alive, and so are both of its merges
    assert record["metrics"]["tokenizers"]["tiny"] == {
        "kind": "BPE",
        "ids": 271,
        "special_ids": 3,
        "unreachable_bytes": 13 + len("abcde "),
        "dead_ids": 0,
    }
    table = (tmp_path / "out" / "tokens.md").read_text(encoding="utf-8")
    assert table.count("\n| ") == 2 * 3 + 3 + 2 + 1  # rows, their rules, the head of the second table
    svg = (tmp_path / "out" / "tokens.svg").read_text(encoding="utf-8")
    assert "var(" not in svg
    assert "currentColor" not in svg
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "tokens a character" in words
    assert {f"{name}  {kind}" for name in ("mixed", "again") for kind in tokenizers} <= set(words)


def test_dead_ids_are_listed(text: Path, tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "tiny", ["世界好", "你好"])  # no merge makes them
    execute(EvalTokens(out=tmp_path / "out", tokenizer={"t": tmp_path / "tiny"}, text={"x": text}), quietly)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["tokenizers"]["t"]["dead"] == [
        {"id": 271, "piece": "世界好"},
        {"id": 272, "piece": "你好"},
    ]


@pytest.mark.parametrize(
    ("limit", "count", "complete"),
    [(None, 4, True), (10**6, 4, True), (30, 1, False), (35, 2, False), (1, 1, False)],
)
def test_a_limit_takes_whole_documents(
    tokenizers: dict[str, Path], text: Path, limit: int | None, count: int, complete: bool
) -> None:
    encoders = {"tiny": open_tokenizer(tokenizers["tiny"])}
    row = measure_text(text, encoders, limit, Bad(skip=False), "x")
    assert (row["documents"], row["complete"]) == (count, complete)


def test_many_batches_are_one_text(
    tokenizers: dict[str, Path], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders = {name: open_tokenizer(path) for name, path in tokenizers.items()}
    at_once = measure_text(text, encoders, None, Bad(skip=False), "x")
    monkeypatch.setattr("yayan.evaluate.tokens.BATCH_CHARACTERS", 9)
    assert [len(batch) for batch in batches(text, None, Bad(skip=False), Size())] == [1, 2, 1]
    assert measure_text(text, encoders, None, Bad(skip=False), "x") == at_once


def test_broken_lines_stop_it_or_are_counted(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(gzip.compress('{"text": "一"}\n{\n\x00\n{"text": "二"}\n'.encode() + b"\xff\n"))
    asked: dict = {"tokenizer": {"t": tokenizers["tiny"]}, "text": {"zh": path}}
    with pytest.raises(UserError, match=r"bad\.jsonl\.gz:2.*or pass --skip-bad"):
        execute(EvalTokens(out=tmp_path / "out", **asked), quietly)
    assert not (tmp_path / "out").exists()
    record = execute(EvalTokens(out=tmp_path / "out", skip_bad=True, **asked), quietly)
    size = record["metrics"]["texts"]["zh"]
    assert (size["documents"], size["skipped"]["lines"]) == (2, 3)
    assert size["skipped"]["reasons"] == {"not JSON": 1, "NUL": 1, "not UTF-8": 1}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"limit": 0}, "a limit of 0 bytes"),
        ({"text": {}}, "no text is given"),
        ({"tokenizer": {}}, "no tokenizer is given"),
        ({"tokenizer": {"a": Path("missing")}}, "missing"),
        ({"text": {"a": Path("missing.txt")}}, "missing"),
    ],
)
def test_a_wrong_question_writes_nothing(
    tokenizers: dict[str, Path], text: Path, tmp_path: Path, options: dict, sentence: str
) -> None:
    asked: dict = {"tokenizer": tokenizers, "text": {"zh": text}} | options
    with pytest.raises(UserError, match=sentence):
        execute(EvalTokens(out=tmp_path / "out", **asked), quietly)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rows", ['{"text": ""}\n', "{\n"])
def test_a_text_without_text_is_refused(tokenizers: dict[str, Path], tmp_path: Path, rows: str) -> None:
    (tmp_path / "empty.jsonl").write_text(rows)
    asked: dict = {"tokenizer": tokenizers, "text": {"zh": tmp_path / "empty.jsonl"}, "skip_bad": True}
    with pytest.raises(UserError, match=r"no document in it holds text .*empty\.jsonl"):
        execute(EvalTokens(out=tmp_path / "out", **asked), quietly)


def test_the_terminal_shows_tables_or_json(
    tokenizers: dict[str, Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = ["eval", "tokens", "--out", str(tmp_path / "out"), "--text.mixed", str(text)]
    question += [word for name, path in tokenizers.items() for word in (f"--tokenizer.{name}", str(path))]
    for _ in range(2):  # the second time it is finished and is told all the same
        with pytest.raises(SystemExit) as ended:
            main(question)
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert "tokens a character" in shown
        assert shown.count("spelled") == 2
    with pytest.raises(SystemExit):
        main([*question, "--json"])
    assert json.loads(capsys.readouterr().out)["stage"] == "eval tokens"


def test_a_recipe_may_ask(tokenizers: dict[str, Path], text: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "road.yaml"
    recipe.write_text(
        f"out: {tmp_path}/runs\ngiven: {{base: {tokenizers['spelled']}, heldout: {{zh: {text}}}}}\n"
        "road:\n  eval-tokens: {tokenizer: {base: $base}, text: $heldout, limit: 100}\n"
    )
    (stage,) = stages_of(read_recipe(recipe, [])).values()
    assert isinstance(stage, EvalTokens)
    assert stage.tokenizer == {"base": tokenizers["spelled"]}


def test_the_report_and_the_clause(tokenizers: dict[str, Path], text: Path, tmp_path: Path) -> None:
    record = execute(
        EvalTokens(out=tmp_path / "cuts", tokenizer=tokenizers, text={"a": text, "b": text}), quietly
    )
    mean = record["metrics"]["texts"]["a"]["tokenizers"]["tiny"]["tokens_per_character"]
    clause = describe(record)
    assert clause.startswith("tokens a character over 2 texts: bytes ")
    assert f", tiny {mean:.2f}, " in clause
    assert clause.endswith("; dead ids: bytes 0, tiny 0, spelled 0")
    execute(EvalReport(out=tmp_path / "report", folders=[tmp_path / "cuts"]), quietly)
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert html.count("<svg") == 2
    assert f"{mean:.3f}" in html
    assert "tiny: BPE, 271 ids, of which no text produces 0" in html


@needs_shared
def test_the_reference_tokenizer_on_real_text(tmp_path: Path) -> None:
    files = {
        name: SHARED / "data/tokenizers" / file
        for name, file in {
            "llama2": "llama2-32000.tokenizer.model",
            "reference": "chinese-llama-2-55296.tokenizer.model",
        }.items()
    }
    texts = {
        "zh": SHARED / "data/zh-lctt-tech/heldout.jsonl.xz",
        "en": SHARED / "data/en-public-domain/heldout.jsonl.xz",
    }
    metrics = execute(EvalTokens(out=tmp_path / "out", tokenizer=files, text=texts, limit=10**6), quietly)[
        "metrics"
    ]
    zh, en = (metrics["texts"][name]["tokenizers"] for name in ("zh", "en"))
    assert zh["reference"]["tokens"] < 0.6 * zh["llama2"]["tokens"]
    assert zh["llama2"]["byte_fallback_share"] > 0.2 > 0.01 > zh["reference"]["byte_fallback_share"]
    assert en["reference"]["tokens"] == pytest.approx(en["llama2"]["tokens"], rel=1e-3)
    assert all(row["round_trip_failures"] == 0 for row in [*zh.values(), *en.values()])
