"""Models of hubs, from a local server that speaks the hubs' protocols, by the hubs' own clients in a fresh process."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.sentencepiece_model import make_chat_model
from yayan.errors import UserError
from yayan.hubs import fetch
from yayan.lineage import read

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The parts of both hubs' APIs that fetching a model takes; `folder` is the one model there is."""

    folder: Path
    seen: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.seen.append(url.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        files = {file.name: file.read_bytes() for file in sorted(self.folder.iterdir())}
        match [part for part in url.path.split("/") if part]:
            case ["api", "models", "someone", "tiny"] | ["api", "models", "someone", "tiny", "revision", _]:
                siblings = [{"rfilename": name} for name in files]
                self.send_json({"id": "someone/tiny", "sha": COMMIT, "siblings": siblings})
            case ["api", "models", "someone", "tiny", "tree", *_]:
                self.send_json(
                    [
                        {"type": "file", "path": name, "size": len(data), "oid": "0"}
                        for name, data in files.items()
                    ]
                )
            case ["someone", "tiny", "resolve", _, name] if name in files:
                self.send_file(files[name], {"X-Repo-Commit": COMMIT})
            case ["api", "v1", "models", "someone", "tiny", "repo", "files"]:
                entries = [
                    {"Path": name, "Name": name, "Type": "blob", "Size": len(data), "Sha256": sha(data)}
                    for name, data in files.items()
                ]
                self.send_json({"Code": 200, "Success": True, "Data": {"Files": entries}})
            case ["api", "v1", "models", "someone", "tiny", "repo"] if query.get("FilePath") in files:
                self.send_file(files[query["FilePath"]], {})
            case ["api", "v1", "models", "someone", "tiny"]:
                self.send_json({"Code": 200, "Success": True, "Data": {"Name": "tiny", "Path": "someone"}})
            case _:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

    def send_json(self, value: object) -> None:
        self.send_file(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send_file(self, data: bytes, headers: dict[str, str]) -> None:
        start = 0
        if (asked := self.headers.get("Range")) and asked.startswith("bytes="):
            start = int(asked.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        for name, value in ({"ETag": f'"{sha(data)}"', "Accept-Ranges": "bytes"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[start:])

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment in which both clients ask the local server, and keep what they get in a cache of its own."""
    make_chat_model(tmp_path / "tiny")
    (tmp_path / "tiny" / "modeling.py").write_text("raise SystemExit('run')")
    handler = type("TinyHub", (Hub,), {"folder": tmp_path / "tiny", "seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    caches = {"HF_HOME": str(tmp_path / "hf"), "MODELSCOPE_CACHE": str(tmp_path / "ms")}
    yield {
        **os.environ,
        **caches,
        "HF_ENDPOINT": address,
        "MODELSCOPE_ENDPOINT": address,
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_OFFLINE": "0",
    }
    server.shutdown()
    server.server_close()


FETCH = "import sys; from pathlib import Path; from yayan.hubs import fetch; print(fetch(Path(sys.argv[1])))"


def python(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def offline(hub: dict[str, str]) -> dict[str, str]:
    nowhere = "http://127.0.0.1:9"
    return hub | {"HF_ENDPOINT": nowhere, "MODELSCOPE_ENDPOINT": nowhere}


@pytest.mark.parametrize("name", ["hf:someone/tiny", f"hf:someone/tiny@{COMMIT}", "ms:someone/tiny"])
def test_a_model_is_fetched_once_and_nothing_that_could_be_run(
    hub: dict[str, str], tmp_path: Path, name: str
) -> None:
    first = python(hub, "-c", FETCH, name)
    assert first.returncode == 0, first.stderr
    folder = Path(first.stdout.strip())
    fetched = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
    assert fetched == {file.name for file in (tmp_path / "tiny").iterdir()} - {"modeling.py"}
    for file in fetched:
        assert (folder / file).read_bytes() == (tmp_path / "tiny" / file).read_bytes()
    again = python(offline(hub), "-c", FETCH, name)
    assert again.stdout == first.stdout, again.stderr


def test_the_name_is_an_input_of_stages_and_of_check(hub: dict[str, str], tmp_path: Path) -> None:
    stage = ("-m", "yayan", "gguf", "--model", "hf:someone/tiny", "--out", tmp_path / "out")
    ended = python(hub, *stage)
    assert ended.returncode == 0, ended.stderr
    record = read(tmp_path / "out")
    assert record is not None
    assert record["inputs"]["model"]["path"] == "hf:someone/tiny"
    looked = python(hub, "-m", "yayan", "check", "hf:someone/tiny", "--json")
    assert json.loads(looked.stdout)["things"][0]["kind"] == "model", looked.stderr


@pytest.mark.parametrize("hub_name", ["hf", "ms"])
def test_what_a_hub_does_not_have_or_does_not_send_is_one_sentence(
    hub: dict[str, str], hub_name: str
) -> None:
    assert "the hub has no such model" in python(hub, "-c", FETCH, f"{hub_name}:someone/else").stderr
    alone = python(offline(hub), "-c", FETCH, f"{hub_name}:someone/tiny")
    assert "cannot be reached" in alone.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["hf:tiny", "ms:../../etc", "hf:a/b/c", "hf:a/b@"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="no model of a hub"):
        fetch(Path(name))
