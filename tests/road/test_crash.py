"""kill -9, Ctrl-C and a full disk in the middle of real steps: nothing half-done has a final name, and the same
command goes on to the same bytes as an undisturbed run."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sentencepiece_model import TEXTS, make_chat_model
from yayan.corpus.pack import Pack
from yayan.lineage import sha256_of
from yayan.stage import execute
from yayan.train.pretrain import Pretrain

STEPS = ("vocab", "pack", "merge")
FILE_LIMITS = {"vocab": 8_500, "pack": 300_000, "merge": 200_000}  # bytes, less than each writes


def quietly(line: str) -> None:
    """Nobody reads what a fixture says."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an adapter on it, and a corpus that takes a second to read."""
    root = tmp_path_factory.mktemp("inputs")
    make_chat_model(root / "base")
    lines = [json.dumps({"text": TEXTS[i % len(TEXTS)] * 3}) for i in range(10_000)]
    (root / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "few.jsonl").write_text("\n".join(lines[:20]) + "\n", encoding="utf-8")
    execute(Pack(out=root / "shards", tokenizer=root / "base", corpus=[root / "few.jsonl"]), quietly)
    execute(
        Pretrain(
            out=root / "adapter",
            model=root / "base",
            shards=[root / "shards"],
            rows="all",
            rank=2,
            steps=2,
            sequence_length=32,
            batch_size=1,
            threads=1,
        ),
        quietly,
    )
    return root


def arguments(step: str, inputs: Path, out: Path) -> list[str]:
    base, texts = inputs / "base", inputs / "texts.jsonl"
    options = {
        "vocab": [f"--base={base}", f"--corpus={texts}", "--size=600"],
        "pack": [f"--tokenizer={base}", f"--corpus={texts}"],
        "merge": [f"--base={base}", f"--adapter={inputs / 'adapter'}"],
    }
    return [sys.executable, "-m", "yayan", step, *options[step], f"--out={out}"]


@pytest.fixture(scope="module")
def undisturbed(inputs: Path) -> dict[str, str]:
    """Hashes of what each step makes when nothing happens to it."""
    hashes = {}
    for step in STEPS:
        out = inputs / f"whole-{step}"
        subprocess.run(arguments(step, inputs, out), check=True, capture_output=True)
        hashes[step] = sha256_of(out)
    return hashes


def stop_in_the_middle(command: list[str], out: Path, number: signal.Signals) -> subprocess.CompletedProcess:
    """Start a command and send it a signal as soon as its partial folder is there."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    question = out.with_name(out.name + ".partial") / ".question"
    deadline = time.monotonic() + 60
    while not question.exists():
        assert child.poll() is None, child.stderr and child.stderr.read()
        assert time.monotonic() < deadline, "the step did not begin"
        time.sleep(0.001)
    child.send_signal(number)
    _, stderr = child.communicate(timeout=60)
    return subprocess.CompletedProcess(command, child.returncode, None, stderr)


def finish(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_step_goes_on_to_the_same_bytes(
    inputs: Path, undisturbed: dict[str, str], tmp_path: Path, step: str, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    command = arguments(step, inputs, out)
    ended = stop_in_the_middle(command, out, number)
    assert not out.exists()
    if number == signal.SIGKILL:
        assert ended.returncode == -signal.SIGKILL
    else:
        assert ended.returncode == 130
        assert "the same command goes on" in ended.stderr.splitlines()[-1]
        assert "Traceback" not in ended.stderr
    finish(command)
    assert sha256_of(out) == undisturbed[step]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def refuse_full_disk(ended: subprocess.CompletedProcess, out: Path) -> None:
    """Exit code 1, one sentence that says so, and no output."""
    assert ended.returncode == 1, ended.stderr
    assert "the disk is full" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_step_beyond_the_allowed_size_of_a_file_goes_on_later(
    inputs: Path, undisturbed: dict[str, str], tmp_path: Path, step: str
) -> None:
    out = tmp_path / "out"
    command, most = arguments(step, inputs, out), FILE_LIMITS[step]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
    )
    refuse_full_disk(ended, out)
    finish(command)
    assert sha256_of(out) == undisturbed[step]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if sys.platform != "linux" or os.geteuid() != 0 or mount is None:
        pytest.skip("only root on Linux mounts a disk")
    command = [mount, "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_is_one_sentence_and_the_step_goes_on_later(
    inputs: Path, undisturbed: dict[str, str], small_disk: Path, step: str
) -> None:
    out, ballast = small_disk / "out", small_disk / "ballast"
    command = arguments(step, inputs, out)
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - 32_768))
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    refuse_full_disk(ended, out)
    ballast.unlink()
    finish(command)
    assert sha256_of(out) == undisturbed[step]


@pytest.mark.slow
def test_finished_steps_of_a_road_are_not_repeated(inputs: Path, tmp_path: Path) -> None:
    road = tmp_path / "road"
    recipe = tmp_path / "road.yaml"
    recipe.write_text(
        f"out: {road}\n"
        "road:\n"
        f"  vocab: {{base: {inputs / 'base'}, corpus: [{inputs / 'few.jsonl'}], size: 600}}\n"
        f"  grow: {{model: {inputs / 'base'}, tokenizer: $vocab}}\n"
        f"  pack: {{tokenizer: $grow, corpus: [{inputs / 'texts.jsonl'}]}}\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "yayan", "run", str(recipe)]
    stop_in_the_middle(command, road / "pack", signal.SIGKILL)
    records = [road / step / "yayan.json" for step in ("vocab", "grow")]
    before = [(path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in records]
    assert not (road / "pack").exists()
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stderr.count("is finished, nothing to do") == 2
    assert [(path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in records] == before
    assert (road / "pack" / "yayan.json").exists()
