"""Two processes of `torchrun` compute what one does, no one holds the whole, and others go on where they stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import quietly
from tests.tiny import make_base, make_model, make_tokenizer
from yayan import lineage
from yayan.corpus.pack import Pack
from yayan.errors import UserError
from yayan.stage import execute
from yayan.train.checks import refuse_on_several_ranks
from yayan.train.pretrain import Pretrain
from yayan.vocab.grow import Grow

NEW = ["你好", "世界", "界你"]  # three rows: one rank has two of them, the other one
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def roads(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A model whose ends are tied or not, and its shards."""
    found = {}
    for tied in (False, True):
        root = found[tied] = tmp_path_factory.mktemp("tied" if tied else "untied")
        make_base(root / "base", tied=tied)
        make_tokenizer(root / "tokenizer", new=NEW)
        lines = [json.dumps({"text": "你好世界" * (1 + i % 5) + "abc" * (i % 7)}) + "\n" for i in range(60)]
        (root / "zh.jsonl").write_text("".join(lines))
        execute(Grow(out=root / "grown", model=root / "base", tokenizer=root / "tokenizer"), quietly)
        execute(Pack(out=root / "shards", tokenizer=root / "grown", corpus=[root / "zh.jsonl"]), quietly)
    return found


def training(road: Path, out: Path, **options: object) -> Pretrain:
    """A run on one thread, as each rank has."""
    stage = Pretrain(
        out=out,
        model=road / "grown",
        shards=[road / "shards"],
        heldout={"zh": road / "zh.jsonl"},
        rank=4,
        learning_rate=1e-3,
        rows_learning_rate=5e-3,
        sequence_length=16,
        batch_size=4,
        evaluate_every=5,
        threads=1,
    )
    return replace(stage, **options)  # type: ignore[arg-type]


def command(stage: Pretrain, ranks: int) -> list[str]:
    """The command line of a stage, with as many processes."""
    default = Pretrain(out=stage.out, model=stage.model, shards=[])
    words: list[object] = ["pretrain", "--out", stage.out, "--model", stage.model]
    words += ["--heldout.zh", stage.heldout["zh"]]
    for name, value in vars(stage).items():
        if name not in ("out", "model", "heldout") and value != getattr(default, name):
            flag = "--" + name.replace("_", "-")
            words += [flag] if value is True else [flag, *(value if isinstance(value, list) else [value])]
    return [*TORCHRUN, str(ranks), "-m", "yayan", *map(str, words)]


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("tied", "options"),
    [
        (False, {"rows": "new"}),
        (False, {"rows": "all", "checkpointing": True, "accumulation": 2}),
        (False, {"rows": "low-rank"}),
        pytest.param(False, {"train": "full", "best": True}, marks=pytest.mark.slow),
        pytest.param(True, {"train": "full", "dtype": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param(True, {"train": "ends", "rows": "new"}, marks=pytest.mark.slow),
        pytest.param(True, {"rows": "none"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_two_ranks_train_as_one(
    roads: dict[bool, Path], tmp_path: Path, tied: bool, options: dict[str, object]
) -> None:
    one = training(roads[tied], tmp_path / "one", steps=12, **options)
    two = replace(one, out=tmp_path / "two")
    execute(one, quietly)
    done = subprocess.run(command(two, 2), env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    narrow = options.get("dtype") == "bfloat16"
    for ours, theirs in zip(lines_of(two.out), lines_of(one.out), strict=True):
        for name in ("step", "tokens", "targets", "loss", "gradient_norm"):
            exact = pytest.approx(theirs.get(name, 0), rel=1e-2 if narrow else 2e-5)
            assert ours.get(name, 0) == exact, name
        assert ours.get("bits_per_byte", {}).keys() == theirs.get("bits_per_byte", {}).keys()
        for name, value in ours.get("bits_per_byte", {}).items():
            assert value == pytest.approx(theirs["bits_per_byte"][name], rel=1e-2 if narrow else 2e-4)
    file = "model.safetensors" if one.train == "full" else "adapter_model.safetensors"
    found = load_file(two.out / file)
    for name, value in load_file(one.out / file).items():
        assert (found.pop(name) - value).abs().max() < (2e-2 if narrow else 2e-4), name
    assert not found
    own, other = lineage.read(two.out), lineage.read(one.out)
    assert own is not None
    assert other is not None
    assert own["metrics"].keys() == other["metrics"].keys()
    assert {path.name for path in two.out.iterdir()} == {path.name for path in one.out.iterdir()}


SHARE = """
import sys, threading, time
from pathlib import Path
from yayan import ranks
from yayan.model.sharding import whole
from yayan.train.pretrain import Pretrain
from yayan.train.training import build

def anonymous():
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024

options = Pretrain(out=Path("out"), model=Path(sys.argv[1]), shards=[], train="full")
ranks.wait()
before, peak, over = anonymous(), 0, False
def watch():
    global peak
    while not over:
        peak = max(peak, anonymous())
        time.sleep(0.001)
watcher = threading.Thread(target=watch)
watcher.start()
ends, groups, _ = build(options)
over = True
watcher.join()
local = sum(value.to_local().nbytes for group in groups.values() for value in group.parameters.values())
assert all(whole(value).shape == value.shape for value in groups["rows"].parameters.values())
for turn in range(ranks.ranks()):
    ranks.wait()
    if ranks.rank() == turn:
        print("bytes", local, peak - before, flush=True)
ranks.leave()
"""


@pytest.mark.slow
def test_no_rank_ever_holds_the_whole_model(tmp_path: Path) -> None:
    """What a rank allocates while a model of 105 MB is read: its half, and one layer's slices a second time."""
    make_model(tmp_path / "large", rows=20_000, hidden_size=512, intermediate_size=1024, num_hidden_layers=2)
    size = (tmp_path / "large" / "model.safetensors").stat().st_size
    (tmp_path / "share.py").write_text(SHARE)
    words = [*TORCHRUN, "2", str(tmp_path / "share.py"), str(tmp_path / "large")]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    parts = [
        list(map(int, line.split()[1:])) for line in done.stdout.splitlines() if line.startswith("bytes")
    ]
    assert len(parts) == 2
    assert sum(local for local, _ in parts) == pytest.approx(size, rel=1e-3)
    for local, peak in parts:
        assert local < 0.51 * size
        assert peak < 0.75 * size


def test_what_cannot_be_shared_out_is_said(roads: dict[bool, Path], tmp_path: Path) -> None:
    words = command(training(roads[False], tmp_path / "out", batch_size=3), 2)
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert "3 sequences cannot be shared out to 2 processes" in done.stderr
    assert done.returncode
    for options in ({"dora": True}, {"train": "full", "optimizer": "muon"}):
        with pytest.raises(UserError, match="whole matrices"):
            refuse_on_several_ranks(training(roads[False], tmp_path / "out", **options), 2)


@pytest.mark.parametrize("before", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_stopped_at_some_ranks_and_gone_on_at_others(
    roads: dict[bool, Path], tmp_path: Path, before: int
) -> None:
    whole = training(roads[False], tmp_path / "whole", steps=300, train="full", evaluate_every=1000)
    parts = replace(whole, out=tmp_path / "parts")
    execute(whole, quietly)
    metrics = tmp_path / "parts.partial" / "metrics.jsonl"
    with subprocess.Popen(command(parts, before), env=ENVIRONMENT, stderr=subprocess.PIPE) as process:
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 10:
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    (checkpoint,) = (metrics.parent / "checkpoints").glob("step-*")
    assert len(list(checkpoint.glob("rank-*"))) == before
    done = subprocess.run(
        command(parts, 3 - before), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"was made with ranks {before}" in done.stderr
    for ours, theirs in zip(lines_of(parts.out), lines_of(whole.out), strict=True):
        assert ours.get("loss", 0) == pytest.approx(theirs.get("loss", 0), rel=1e-3)
