"""Answers of an endpoint: `yayan serve` on the model itself says what llama.cpp says here; faults are one sentence."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import quietly
from tests.sentencepiece_model import TEXTS, make_chat_model
from tests.serve.running import Running, serving
from yayan.errors import UserError, WorkError
from yayan.evaluate.answerers import Prompt, open_answerer, open_cutter
from yayan.evaluate.answers import Kept
from yayan.evaluate.choices import EvalCeval
from yayan.evaluate.endpoint import KEY_VARIABLE, find_name, open_endpoint
from yayan.evaluate.greedy import JOURNAL_NAME, Journal, Question, answer_all
from yayan.evaluate.long_prompts import PromptMaker
from yayan.evaluate.longbench import EvalLongbench
from yayan.evaluate.needle import EvalNeedle
from yayan.evaluate.report import EvalReport
from yayan.evaluate.samples import EvalSamples
from yayan.evaluate.words import describe
from yayan.progress import Progress
from yayan.stage import Stage, execute
from yayan.weights.gguf_file import write_gguf

from .test_longbench import official, write_task
from .test_questions import write_csv

KEY = "a-secret-key"
HELLO = Prompt([{"role": "user", "content": "hello"}], [1])
ANSWER = {"choices": [{"message": {"role": "assistant", "content": "the river"}, "finish_reason": "stop"}]}
MODELS = {"object": "list", "data": [{"id": "one", "object": "model"}]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models as folders and as files, and what is asked of them."""
    root = tmp_path_factory.mktemp("endpoint")
    for name, settings in (("chat", {}), ("base", {"template": None})):
        write_gguf(make_chat_model(root / name, **settings), root / f"{name}.gguf", "F16")  # type: ignore[arg-type]
    for task in ("hotpotqa", "samsum"):  # a chat, and a text that is continued whatever the model
        rows = [official(task, text) for text in (TEXTS[0], TEXTS[1], "".join(TEXTS * 3))]
        write_task(root / "data", task, rows)
    (root / "hay.txt").write_text("\n".join(TEXTS * 8), encoding="utf-8")
    return root


@pytest.fixture(scope="module", params=["chat", "base"])
def served(root: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    with serving(root / f"{request.param}.gguf", "--parallel", "2") as running:
        yield running


def stage_of(task: str, root: Path, model: Path, out: Path, **options: Any) -> Stage:
    given = {"out": out, "model": model} | options
    if task == "longbench":
        return EvalLongbench(**given, data=root / "data")
    if task == "needle":
        return EvalNeedle(**given, text=root / "hay.txt", lengths=[200, 400], depths=[50], facts=2)
    return EvalSamples(**given, prompt=["the old man", "河边"], max_tokens=12)


def results_of(stage: Stage) -> dict[str, Any]:
    execute(stage, quietly)
    return json.loads((stage.out / "results.json").read_text(encoding="utf-8"))


def comparable(item: dict[str, Any]) -> dict[str, Any]:
    """An item without its time; chats end half a character with another number of replacement signs."""
    return item | {"seconds": None, "answer": item["answer"].replace("\N{REPLACEMENT CHARACTER}", "")}


@pytest.mark.parametrize("task", ["longbench", "needle", "samples"])
def test_an_endpoint_says_what_llamacpp_says(task: str, root: Path, served: Running, tmp_path: Path) -> None:
    file = root / f"{served.model}.gguf"
    if task == "samples" and served.model == "base":
        pytest.skip("a base model has no samples")
    here = results_of(stage_of(task, root, file, tmp_path / "here", threads=1))
    url = f"{served.url}/v1"
    for number, model in enumerate((file, root / served.model)):
        there = results_of(stage_of(task, root, model, tmp_path / str(number), endpoint=url))
        told = {"engine": "endpoint", "endpoint": url, "endpoint_model": served.model}
        assert {name: there[name] for name in told} == told
        assert list(map(comparable, there["items"])) == list(map(comparable, here["items"]))
    assert here["engine"] == "llama.cpp"
    assert any(item["answer"] for item in here["items"])
    if task == "longbench":
        assert any(item["truncated"] for item in here["items"])


def test_the_tokenizer_alone_cuts_as_the_open_model(root: Path) -> None:
    text = "".join(TEXTS * 3) + "<s>"
    with open_answerer(root / "chat.gguf", threads=1) as engine:
        expected = [PromptMaker(engine).fit(text, chat=c, room=90, length=None) for c in (True, False)]
    for model in (root / "chat", root / "chat.gguf"):
        with open_cutter(model) as cutter:
            maker = PromptMaker(cutter)  # type: ignore[arg-type]
            assert [maker.fit(text, chat=c, room=90, length=None) for c in (True, False)] == expected


def test_several_at_once_and_what_was_answered_is_not_asked_again(
    root: Path, served: Running, tmp_path: Path
) -> None:
    asked = [f"{text} {number}" for number, text in enumerate(TEXTS[:6])]
    with open_endpoint(root / served.model, f"{served.url}/v1", None) as engine:
        questions = [Question(text, Prompt(text, engine.text_ids(text)), 5) for text in asked]
        with Journal(tmp_path) as journal, Progress("test") as bar:
            answer_all(engine, journal, questions, 3, bar)
            assert set(journal.answers) == set(asked)
        lines = (tmp_path / JOURNAL_NAME).read_text(encoding="utf-8")
        (tmp_path / JOURNAL_NAME).write_text(
            lines.replace(f'"{served.model}"', '"another"', 1), encoding="utf-8"
        )
        with (
            Journal(tmp_path) as journal,
            Progress("test") as bar,
            pytest.raises(WorkError, match="another gave the answers so far"),
        ):
            answer_all(engine, journal, questions, 3, bar)


def test_the_key_is_sent_and_never_told(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    with serving(root / "chat.gguf", "--api-key", KEY) as running:
        options = {"out": tmp_path / "out", "model": root / "chat", "endpoint": f"{running.url}/v1/"}
        stage = EvalSamples(**options, prompt=["hello"], max_tokens=3)  # type: ignore[arg-type]
        for wrong in ("wrong-key", None):
            monkeypatch.delenv(KEY_VARIABLE, raising=False)
            if wrong:
                monkeypatch.setenv(KEY_VARIABLE, wrong)
            with pytest.raises(UserError, match=f"status 401.*{running.url}.*into {KEY_VARIABLE}") as refused:
                execute(stage, quietly)
            assert "wrong-key" not in str(refused.value)
        monkeypatch.setenv(KEY_VARIABLE, KEY)
        execute(stage, quietly)
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert all(KEY not in path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir())
    assert KEY not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"endpoint_model": "other"}, "there is no model other .*pass --endpoint-model with one of one"),
        ({"endpoint": None, "endpoint_model": "one"}, "a name is given, and no endpoint"),
        ({"endpoint": "localhost:8000/v1"}, "this is no URL"),
        ({"endpoint": "http://127.0.0.1:x/v1"}, "this is no URL"),
        ({"endpoint": f"http://me:{KEY}@127.0.0.1/v1"}, "a URL with a password or a query"),
        ({"endpoint": f"http://127.0.0.1/v1?key={KEY}"}, "a URL with a password or a query"),
        ({"threads": 2}, "an endpoint chooses its threads itself"),
        ({"context": "auto"}, "an endpoint is not stretched from here"),
        ({"slots": 0}, "slots is 0"),
    ],
)
def test_a_wrong_question_writes_nothing(
    root: Path, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    with faulty() as url:
        given = {"endpoint": url} | options
        with pytest.raises(UserError, match=sentence) as refused:
            execute(stage_of("needle", root, root / "chat", tmp_path / "out", **given), quietly)
    assert KEY not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_nothing_listens(root: Path, tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/v1"
    with pytest.raises(WorkError, match=rf"the endpoint does not answer \({url}\): start it"):
        execute(stage_of("needle", root, root / "chat", tmp_path / "out", endpoint=url), quietly)
    assert not list(tmp_path.iterdir())


def test_a_model_reasons_at_an_endpoint(root: Path, served: Running, tmp_path: Path) -> None:
    """Its replies are those of the same model here; without reasoning an endpoint is of no use."""
    if served.model == "base":
        pytest.skip("a base model does not chat")
    write_csv(tmp_path / "data", "val", "law", ["河边,old,man,1,2,B", "the river,a,b,c,d,A"])
    given: dict[str, Any] = {
        "model": root / "chat",
        "data": tmp_path / "data",
        "shots": 0,
        "protocol": "cla2",
    }
    at: dict[str, Any] = {"endpoint": f"{served.url}/v1"}
    with pytest.raises(UserError, match=r"how likely each letter is.*--cot"):
        execute(EvalCeval(out=tmp_path / "none", **given, **at), quietly)
    given |= {"cot": True, "max_tokens": 6}
    with pytest.raises(UserError, match="not stretched from here"):
        execute(EvalCeval(out=tmp_path / "none", **given, **at, context="auto"), quietly)
    told = execute(EvalCeval(out=tmp_path / "there", **given, **at), quietly)["metrics"]
    execute(EvalCeval(out=tmp_path / "here", **given), quietly)
    there, here = (
        json.loads((tmp_path / out / "results.json").read_text("utf-8")) for out in ("there", "here")
    )
    replies = [[item["reply"].strip() for item in results["items"]] for results in (there, here)]
    assert replies[0] == replies[1]
    assert any(replies[0])
    assert (told["endpoint_model"], told["engine"]) == (served.model, "endpoint")
    assert "dtype" not in told
    assert f"answered by {served.model} at" in describe({"stage": "eval ceval", "metrics": told})
    Kept(tmp_path, "another").put("law", [])
    with pytest.raises(WorkError, match=f"another gave the answers so far, and {served.model} would"):
        Kept(tmp_path, served.model)


@contextmanager
def faulty(
    *replies: tuple[int, object] | None, models: tuple[int, object] = (200, MODELS), seconds: float = 0
) -> Iterator[str]:
    """A server that gives these replies one after another, the last one again; None: it hangs up in the middle."""
    todo = list(replies)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(*models)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            reply = todo.pop(0) if len(todo) > 1 else todo[0]
            time.sleep(seconds)
            if reply is None:
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
            else:
                self.reply(*reply)

        def reply(self, status: int, body: object) -> None:
            content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)


@pytest.mark.parametrize("fault", [(503, {}), (429, {}), (500, "no JSON"), None])
def test_a_passing_fault_is_waited_for(root: Path, fault: Any, impatient: None) -> None:
    with faulty(fault, fault, (200, ANSWER)) as url, open_endpoint(root / "chat", url, None) as engine:
        said = engine.answer(HELLO, 8)
        assert (said.text, said.complete) == ("the river", True)
        assert said.tokens == len(engine.text_ids("the river")) - 1  # without BOS; the server counts none


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (None, "the endpoint does not answer"),
        (
            (503, {"error": {"message": "Loading\nmodel."}}),
            "refuses with status 503, Loading model .*the same com",
        ),
        ((429, {}), "refuses with status 429, without a reason .*fewer --slots"),
        ((401, {"error": {"message": f"{KEY} is wrong"}}), f"status 401, … is wrong .*into {KEY_VARIABLE}"),
        ((404, "<html>"), "status 404, <html> .*correct --endpoint"),
        ((400, {"detail": "too long"}), "status 400, too long .*shorter prompts"),
        ((200, "<html>"), "no answer in OpenAI's form"),
        ((200, {"choices": []}), "no answer in OpenAI's form"),
        ((200, {}), "no answer in OpenAI's form"),
    ],
)
def test_a_lasting_fault_is_one_sentence_and_loses_no_answer(
    root: Path,
    tmp_path: Path,
    fault: Any,
    sentence: str,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    stage: dict[str, Any] = {"out": tmp_path / "out", "root": root, "model": root / "chat"}
    with faulty((200, ANSWER), fault) as url, pytest.raises(WorkError, match=sentence) as failed:
        execute(stage_of("longbench", **stage, endpoint=url), quietly)
    assert url in str(failed.value)
    assert KEY not in str(failed.value)
    journal = (tmp_path / "out.partial" / JOURNAL_NAME).read_text(encoding="utf-8")
    assert [json.loads(line)["text"] for line in journal.splitlines()] == ["the river"]


@pytest.mark.parametrize(
    ("models", "wanted", "found"),
    [
        ((200, MODELS), None, "one"),
        ((404, {}), "any", "any"),
        ((404, {}), None, "status 404"),
        ((200, {"data": [{"id": "a"}, {"id": "b"}]}), "b", "b"),
        ((200, {"data": [{"id": "a"}, {"id": "b"}]}), None, "2 models to choose from .*one of a, b"),
        ((200, {"data": []}), None, "0 models to choose from"),
        ((500, {}), "any", "status 500"),
        ((200, {}), None, "no answer in OpenAI's form"),
    ],
)
def test_the_name_that_is_asked_for(models: tuple[int, object], wanted: str | None, found: str) -> None:
    with faulty(models=models) as url:
        if found.isalpha():
            assert find_name(url, wanted) == found
        else:
            with pytest.raises((UserError, WorkError), match=found):
                find_name(url, wanted)


def test_an_error_ends_the_requests_under_way(root: Path, tmp_path: Path) -> None:
    def questions() -> Iterator[Question]:
        yield Question("slow", HELLO, 3)
        raise UserError("stop")

    begun = time.monotonic()
    with faulty((200, ANSWER), seconds=20) as url, open_endpoint(root / "chat", url, None) as engine:
        with Journal(tmp_path) as journal, Progress("test") as bar, pytest.raises(UserError, match="stop"):
            answer_all(engine, journal, questions(), 2, bar)
        assert time.monotonic() - begun < 10


def test_an_interrupted_evaluation_goes_on(root: Path, tmp_path: Path) -> None:
    later = {"choices": [{"text": "later", "message": {"content": "later"}, "finish_reason": "length"}]}
    with faulty((200, ANSWER), (200, later), seconds=0.5) as url:
        stage = stage_of("longbench", root, root / "chat", tmp_path / "out", endpoint=url)
        words = [f"--model={root / 'chat'}", f"--data={root / 'data'}", f"--out={tmp_path / 'out'}"]
        command = [sys.executable, "-m", "yayan", "eval", "longbench", *words, f"--endpoint={url}"]
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        journal = tmp_path / "out.partial" / JOURNAL_NAME
        while not journal.exists() or not journal.read_bytes():
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=20) == 130
        items = results_of(stage)["items"]
    assert [item["answer"] for item in items] == ["the river", *["later"] * 5]
    assert [item["complete"] for item in items] == [True, *[False] * 5]


def test_the_report_tells_who_answered(root: Path, tmp_path: Path) -> None:
    folders = [tmp_path / task for task in ("longbench", "needle", "samples")]
    with faulty((200, ANSWER)) as url:
        for folder in folders:
            execute(stage_of(folder.name, root, root / "chat", folder, endpoint=url), quietly)
    execute(EvalReport(out=tmp_path / "report", folders=folders), quietly)
    english, chinese = (
        (tmp_path / "report" / name).read_text(encoding="utf-8") for name in ("report.md", "report_zh.md")
    )
    assert english.count(f"Answered by one at {url}, prompts cut as the local model cuts them.") == 2
    assert english.count(f"one at {url}, ") == 2 + 2  # of two samples
    assert chinese.count(f"由 {url} 上的 one 作答，提示按本地模型的方式截取。") == 2
