"""`eval speed --endpoint`: what a server streams is timed as its client sees it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import quietly
from tests.sentencepiece_model import TEXTS, make_chat_model
from tests.serve.running import Running, serving
from yayan.errors import UserError, WorkError
from yayan.evaluate import endpoint_timing
from yayan.evaluate.endpoint_timing import different_prompts, measure_endpoint
from yayan.evaluate.report import EvalReport
from yayan.evaluate.speed import EvalSpeed
from yayan.evaluate.words import describe
from yayan.stage import execute
from yayan.tokenizer import load_tokenizer
from yayan.weights.gguf_file import write_gguf

from .test_endpoint import faulty

SHORT: dict[str, Any] = {"prompt_tokens": 24, "answer_tokens": 12, "repeats": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("timed")
    for name, settings in (("chat", {}), ("base", {"template": None})):
        write_gguf(make_chat_model(root / name, **settings), root / f"{name}.gguf", "F16")  # type: ignore[arg-type]
    (root / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("", *TEXTS)))
    return root


@pytest.fixture(scope="module", params=["chat", "base"])
def served(root: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    with serving(root / f"{request.param}.gguf", "--parallel", "1") as running:
        yield running


def test_a_server_is_timed(
    root: Path, served: Running, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    url = f"{served.url}/v1"
    for number, model in enumerate((root / served.model, root / f"{served.model}.gguf")):
        before = int(float(told(served, "tokens_predicted_total")))
        out = tmp_path / str(number)
        stage = EvalSpeed(out=out, model=model, text=root / "text.jsonl", endpoint=url, **SHORT)
        record = execute(stage, quietly)
        (row,) = record["metrics"]["rows"]
        assert (row["engine"], row["threads"], row["anonymous_bytes"]) == ("endpoint", None, None)
        assert url.startswith(f"http://{row['device']}/")
        assert 0 < row["prompt_ms_per_token"] < 1000
        assert 0 < row["answer_ms_per_token"] < 1000
        assert record["metrics"]["endpoint_model"] == served.model
        results = json.loads((out / "results.json").read_text())
        assert [len(item["prompt_ms"]) for item in results["repeats"]] == [2]
        assert int(float(told(served, "tokens_predicted_total"))) - before == 3 * SHORT["answer_tokens"]
        stage.tell(record)
        assert "endpoint" in capsys.readouterr().out
        assert describe(record).endswith("ms/token")
    execute(EvalReport(out=tmp_path / "report", folders=[tmp_path / "0"]), quietly)
    assert "<h2>Speed</h2>" in (tmp_path / "report" / "report.html").read_text()


def told(served: Running, name: str) -> str:
    """A count of llama.cpp's."""
    lines = httpx2.get(f"{served.url}/metrics").text.splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"llamacpp:{name} "))


def test_the_times_are_those_of_the_pieces(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts of four tokens, answers of three in three pieces; the first does not count."""
    seconds = iter([0, 50, 60, 70, 0, 2, 5, 8])
    monkeypatch.setattr(endpoint_timing, "perf_counter", lambda: next(seconds))
    with faulty((200, streamed("a", "", "b", "c", counts=(4, 3)))) as url:
        timing = measure_endpoint(url, "one", ["x", "y"], chat=True, answer_tokens=3)
    assert (timing.prompt_ms, timing.answer_ms) == ([500], [3000])


def streamed(*texts: str, counts: tuple[int, int] | None) -> str:
    """The events of a chat's answer, and the tokens of prompt and answer if they are counted."""
    events: list[dict[str, Any]] = [{"choices": [{"delta": {"content": text}}]} for text in texts]
    if counts:
        usage = {"prompt_tokens": counts[0], "completion_tokens": counts[1], "total_tokens": sum(counts)}
        events.append({"choices": [], "usage": usage})
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        ((200, streamed("a", "b", counts=None)), "does not count tokens"),
        ((200, streamed("a", counts=(4, 1))), "ended an answer behind 1 tokens"),
        ((200, "<html>"), "does not count tokens"),
        ((400, {"detail": "too long"}), "status 400, too long"),
        (None, "does not answer"),
    ],
)
def test_what_cannot_be_timed(reply: Any, sentence: str) -> None:
    with faulty(reply) as url, pytest.raises((UserError, WorkError), match=sentence):
        measure_endpoint(url, "one", ["x", "y"], chat=True, answer_tokens=3)


def test_prompts_begin_differently(root: Path) -> None:
    tokenizer = load_tokenizer(root / "base")
    for model in (root / "base", root / "base.gguf"):
        found = different_prompts(model, TEXTS, 24, 6)
        assert len({text[:3] for text in found}) == 6
        assert all(20 <= len(tokenizer.encode(text)) <= 28 for text in found)
    short = different_prompts(root / "base", [TEXTS[0][:9]], 24, 6)
    assert len(short) == 6
    assert all(short)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"threads": [2]}, "chooses its threads, its draft and its device itself .threads"),
        ({"draft": Path("base")}, "chooses its threads, its draft and its device itself .draft"),
        ({"device": "cpu"}, "its draft and its device itself .device"),
        ({"endpoint": None, "endpoint_model": "one"}, "a name is given, and no endpoint"),
        ({"endpoint": "localhost:8000"}, "this is no URL"),
    ],
)
def test_a_wrong_question_writes_nothing(
    root: Path, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    if "draft" in options:
        options = options | {"draft": root / "base.gguf"}
    with faulty() as url:
        given: dict[str, Any] = {"model": root / "base", "text": root / "text.jsonl", "endpoint": url}
        given |= SHORT | options
        with pytest.raises(UserError, match=sentence):
            execute(EvalSpeed(out=tmp_path / "out", **given), quietly)
    assert not (tmp_path / "out").exists()
