"""Training end to end on a tiny model: it learns, resumes to the bit, and says what is wrong."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.conftest import quietly
from tests.tiny import make_base, make_model, make_tokenizer
from yayan import lineage
from yayan.corpus.pack import Pack
from yayan.errors import UserError, WorkError
from yayan.model.load import load_model
from yayan.stage import execute
from yayan.train.pretrain import Pretrain
from yayan.train.sft import Sft
from yayan.vocab.grow import Grow

NEW = ["你好", "世界", "界你"]


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, its grown form, a corpus and chats, packed."""
    root = tmp_path_factory.mktemp("road")
    make_base(root / "base")
    make_tokenizer(root / "tokenizer", new=NEW)
    documents = [("你好世界" * (1 + i % 5) + "abc" * (i % 7)) for i in range(60)]
    write_jsonl(root / "zh.jsonl", [{"text": text} for text in documents])
    turns = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "世界 abc"}]
    write_jsonl(root / "chats.jsonl", [{"messages": turns * n} for n in (1, 2, 1)])
    execute(Grow(out=root / "grown", model=root / "base", tokenizer=root / "tokenizer"), quietly)
    execute(Pack(out=root / "shards", tokenizer=root / "grown", corpus=[root / "zh.jsonl"]), quietly)
    return root


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def pretrain(road: Path, tmp_path: Path) -> Pretrain:
    return Pretrain(
        out=tmp_path / "adapter",
        model=road / "grown",
        shards=[road / "shards"],
        rows="new",
        rank=4,
        alpha=8,
        learning_rate=5e-3,
        rows_learning_rate=2e-2,
        steps=30,
        sequence_length=16,
        batch_size=2,
        accumulation=2,
        heldout={"zh": road / "zh.jsonl"},
        evaluate_every=10,
        threads=1,
    )


def test_training_learns_and_says_so(pretrain: Pretrain) -> None:
    new_rows = execute(pretrain, quietly)["metrics"]
    assert new_rows["rows_parameters"] == 2 * len(NEW) * 24
    pretrain = replace(pretrain, out=pretrain.out.with_name("all"), rows="all")
    metrics = execute(pretrain, quietly)["metrics"]
    assert new_rows["loss_last"] < 0.97 * new_rows["loss_first"]
    assert metrics["loss_last"] < 0.6 * metrics["loss_first"]
    assert metrics["bits_per_byte_after"]["zh"] < 0.6 * metrics["bits_per_byte_before"]["zh"]
    assert metrics["tokens"] == 30 * 2 * 2 * 16
    assert sorted(path.name for path in pretrain.out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "curves.svg",
        "metrics.jsonl",
        "yayan.json",
    ]
    lines = [json.loads(line) for line in (pretrain.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(31))
    assert [line["step"] for line in lines if "bits_per_byte" in line] == [0, 10, 20, 30]


def test_held_out_bits_are_those_of_a_plain_forward_pass(pretrain: Pretrain, road: Path) -> None:
    """The first measurement is of the grown model itself: compare with transformers' own loss."""
    from yayan.tokenizer import load_tokenizer

    found = execute(replace(pretrain, steps=1, rows="none"), quietly)["metrics"]["bits_per_byte_before"]["zh"]
    model, tokenizer = load_model(road / "grown"), load_tokenizer(road / "grown")
    nats, size = 0.0, 0
    for line in (road / "zh.jsonl").read_text().splitlines():
        text = json.loads(line)["text"]
        ids = torch.tensor([[tokenizer.bos_id or 0, *tokenizer.encode(text)]])[:, :17]
        if len(tokenizer.encode(text)) > 16:
            continue  # longer ones are read in windows, which test_score covers
        nats += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        size += len(text.encode())
    assert size > 0
    assert found == pytest.approx(nats / size / 0.6931471805599453, rel=0.1)


def test_full_training_writes_a_model_folder(pretrain: Pretrain, road: Path) -> None:
    metrics = execute(replace(pretrain, train="full"), quietly)["metrics"]
    assert metrics["loss_last"] < 0.6 * metrics["loss_first"]
    model = load_model(pretrain.out)
    assert not torch.equal(model.lm_head.weight, load_model(road / "grown").lm_head.weight)
    assert (pretrain.out / "tokenizer.json").read_bytes() == (road / "grown" / "tokenizer.json").read_bytes()


def test_an_accumulated_step_is_normalised_over_all_its_targets(pretrain: Pretrain) -> None:
    """4 x 1 and 1 x 4 sequences a step are the same step, though the batches hold unequal numbers of targets."""
    losses = []
    for name, batch_size, accumulation in (("a", 1, 4), ("b", 4, 1)):
        stage = replace(
            pretrain,
            out=pretrain.out.with_name(name),
            batch_size=batch_size,
            accumulation=accumulation,
            steps=12,
        )
        execute(stage, quietly)
        lines = (stage.out / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line).get("loss", 0.0) for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)


def command(stage: Pretrain) -> list[str]:
    options = (
        "rank alpha learning_rate rows_learning_rate steps sequence_length batch_size accumulation "
        "evaluate_every save_minutes dropout threads"
    )
    flags = [f"--{name.replace('_', '-')}={getattr(stage, name)}" for name in options.split()]
    paths = [f"--out={stage.out}", f"--model={stage.model}", f"--shards={stage.shards[0]}"]
    return [sys.executable, "-m", "yayan", "pretrain", *paths, *flags, f"--heldout.zh={stage.heldout['zh']}"]


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_bit(pretrain: Pretrain) -> None:
    """kill -9 twice on the way; adapter and losses equal those of a run that nobody disturbed."""
    stage = replace(pretrain, steps=120, save_minutes=0.0, dropout=0.1)
    whole = replace(stage, out=stage.out.with_name("whole"))
    subprocess.run(command(whole), check=True, capture_output=True)
    metrics = stage.out.with_name("adapter.partial") / "metrics.jsonl"
    for lines in (20, 60):
        child = subprocess.Popen(command(stage), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while not (metrics.exists() and metrics.read_text().count("\n") > lines):
            assert child.poll() is None, child.stderr and child.stderr.read()
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not stage.out.exists()
    subprocess.run(command(stage), check=True, capture_output=True)
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (stage.out, whole.out))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    assert losses_of(stage.out) == losses_of(whole.out)


def losses_of(folder: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss"), line.get("bits_per_byte")) for line in lines]


def test_a_step_that_explodes_stops_the_run(pretrain: Pretrain) -> None:
    with pytest.raises(
        WorkError, match=r"step \d+ has a loss of .* on .*zh.jsonl: document \d+ of those packed, "
    ):
        execute(replace(pretrain, learning_rate=1e25, rows_learning_rate=1e25, warmup=0.0), quietly)
    assert not pretrain.out.exists()
    named = json.loads((pretrain.out.with_name("adapter.partial") / "exploded.json").read_text())
    assert len(named) == len(set(named)) > 3


def test_the_best_parameters_are_handed_out_and_the_run_ends_early(pretrain: Pretrain) -> None:
    """Rates so high that the held-out text gets worse again."""
    stage = replace(
        pretrain,
        rows="all",
        steps=60,
        evaluate_every=2,
        rows_learning_rate=3.0,
        learning_rate=0.3,
        best=True,
        patience=4,
        bound={"zh": 0.01},
        warmup=0.2,
    )
    metrics = execute(stage, quietly)["metrics"]
    lines = [json.loads(line) for line in (stage.out / "metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: line["bits_per_byte"]["zh"] for line in lines if "bits_per_byte" in line}
    best = min(measured, key=lambda step: measured[step])
    assert metrics["best_step"] == best
    assert metrics["steps"] == max(measured) == best + 8 < 60
    assert metrics["bits_per_byte_after"]["zh"] == measured[best]
    assert metrics["alarms"][0].startswith("step ")
    again = replace(stage, out=stage.out.with_name("last"), best=False, bound={})
    assert execute(again, quietly)["metrics"]["bits_per_byte_after"]["zh"] == measured[max(measured)]
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (stage.out, again.out))
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "changes",
    [
        {"rslora": True, "targets": ["q_proj", "down_proj"]},
        {"dora": True},
        {"head_rows": "all"},
        {"rows": "low-rank"},
        {"rows": "new", "head_rows": "low-rank", "rslora": True},
        {"train": "ends", "rows": "low-rank"},
        {"rows": "none", "head_rows": "new"},
        {"train": "ends", "rows": "all"},
        {"schedule": "wsd", "checkpointing": True},
        {"attention": "mask", "dtype": "bfloat16"},
        {"train": "full", "optimizer": "muon", "learning_rate": 0.02},
    ],
)
def test_ways_to_train_learn(pretrain: Pretrain, changes: dict) -> None:
    metrics = execute(replace(pretrain, **changes), quietly)["metrics"]
    assert metrics["loss_last"] < 0.98 * metrics["loss_first"]
    assert metrics["bits_per_byte_after"]["zh"] < metrics["bits_per_byte_before"]["zh"]


@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_a_quantised_body_trains_an_adapter_of_the_whole_one(
    pretrain: Pretrain, road: Path, tmp_path: Path, form: Any
) -> None:
    """Its losses are near, not equal; what is trained is stored as ever."""
    size = make_tokenizer(tmp_path / "even", new=NEW)
    even: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    make_model(tmp_path / "even", rows=size, **even)  # bitsandbytes wants multiples of 64 on a CPU
    plain = replace(pretrain, out=tmp_path / "plain", model=tmp_path / "even", rows="all", learning_rate=1e-3)
    losses = []
    for stage in (plain, replace(plain, out=tmp_path / form, quantize_body=form)):
        execute(stage, quietly)
        lines = [json.loads(line) for line in (stage.out / "metrics.jsonl").read_text().splitlines()]
        losses.append(torch.tensor([line["loss"] for line in lines if "loss" in line]))
    assert not torch.equal(*losses)
    torch.testing.assert_close(*losses, rtol=0.02, atol=0.02)
    assert losses[1][-5:].mean() < losses[1][:5].mean() - 0.5
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in (form, "plain"))
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in theirs.items()
    }
    PeftModel.from_pretrained(load_model(tmp_path / "even"), tmp_path / form)


def test_attention_and_checkpointing_change_no_loss(pretrain: Pretrain) -> None:
    losses: list[list[float]] = []
    for changes in ({}, {"attention": "mask"}, {"checkpointing": True}):
        stage = replace(pretrain, out=pretrain.out.with_name(f"a{len(losses)}"), steps=8, **changes)
        execute(stage, quietly)
        losses.append([loss for _, loss, _ in losses_of(stage.out) if loss])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(pretrain: Pretrain, number: signal.Signals) -> None:
    """Behind a step, long before the next checkpoint was due; the same command goes on to the same bits."""
    stage = replace(pretrain, steps=200, save_minutes=60.0)
    metrics = stage.out.with_name("adapter.partial") / "metrics.jsonl"
    child = subprocess.Popen(command(stage), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (metrics.exists() and metrics.read_text().count("\n") > 20):
        assert child.poll() is None, child.stderr and child.stderr.read()
        time.sleep(0.005)
    child.send_signal(number)
    _, errors = child.communicate()
    assert child.returncode == 130
    assert "stopping behind this step" in errors
    done = losses_of(metrics.parent)[-1][0]
    assert [path.name for path in (metrics.parent / "checkpoints").iterdir()] == [f"step-{done:08d}"]


def test_sft_trains_on_answers_only_and_brings_the_template(
    pretrain: Pretrain, road: Path, tmp_path: Path
) -> None:
    execute(Pack(out=tmp_path / "chats", tokenizer=road / "grown", chats=[road / "chats.jsonl"]), quietly)
    stage = Sft(
        out=tmp_path / "sft",
        model=road / "grown",
        shards=[tmp_path / "chats"],
        sequence_length=64,
        batch_size=1,
        steps=40,
        rank=4,
        rows="all",
        learning_rate=5e-3,
        rows_learning_rate=2e-2,
        threads=1,
    )
    metrics = execute(stage, quietly)["metrics"]
    assert metrics["loss_last"] < 0.5 * metrics["loss_first"]
    assert (tmp_path / "sft" / "chat_template.jinja").exists()
    record = lineage.read(tmp_path / "sft")
    assert record is not None
    assert record["template"] == lineage.sha256_of(tmp_path / "chats" / "chat_template.jinja")
    with pytest.raises(UserError, match="hold documents"):
        execute(replace(stage, out=tmp_path / "no", shards=[road / "shards"]), quietly)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sequence_length": 65}, "longer than the model's 64 positions"),
        ({"steps": 0}, "steps is 0"),
        ({"rank": -1}, "rank is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"share": [0.5, 0.5]}, "2 shares for 1 shards"),
        ({"warmup": 1.5}, "warmup is 1.5"),
        ({"optimizer": "muon"}, "muon steps whole matrices"),
        ({"targets": []}, "no projection is named"),
        ({"train": "ends", "rows": "none"}, "nothing would be trained"),
        ({"train": "ends", "head_rows": "all"}, "the same rows of both ends"),
        ({"best": True, "heldout": {}}, "no held-out text to go by"),
        ({"patience": 3, "heldout": {}}, "no held-out text to go by"),
        ({"patience": 0}, "patience is 0"),
        ({"bound": {"en": 0.1}}, "no held-out text of this name"),
        ({"bound": {"zh": -0.1}}, "the bound is -0.1"),
    ],
)
def test_wrong_options_are_named_before_anything_is_written(
    pretrain: Pretrain, changes: dict, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        execute(replace(pretrain, **changes), quietly)
    assert not list(pretrain.out.parent.glob("adapter*"))


def test_what_does_not_fit_is_named(pretrain: Pretrain, road: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another tokenizer"):
        execute(replace(pretrain, model=road / "base"), quietly)
    size = make_tokenizer(tmp_path / "foreign", new=NEW)
    make_model(tmp_path / "foreign", rows=size)
    with pytest.raises(UserError, match="not known"):
        execute(replace(pretrain, model=tmp_path / "foreign"), quietly)
    with pytest.raises(UserError, match="not a model folder"):
        execute(replace(pretrain, model=road / "shards"), quietly)
    with pytest.raises(UserError, match="not a shards folder"):
        execute(replace(pretrain, shards=[road / "grown"]), quietly)
