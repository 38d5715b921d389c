"""Evaluations of a tiny model: likelihoods against plain full logits, what is counted, and going on after a kill."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from yayan.errors import UserError, WorkError
from yayan.evaluate.answers import KEPT_NAME, Item, Kept
from yayan.evaluate.benchmarks import CEVAL
from yayan.evaluate.choices import EvalCeval, EvalCmmlu, EvalMmlu
from yayan.evaluate.letters import LetterScorer
from yayan.evaluate.prompts import Prompt, harness_text
from yayan.evaluate.questions import read_subjects
from yayan.model.longer import apply_rope, choose_stretch
from yayan.progress import Progress
from yayan.stage import execute
from yayan.template import LLAMA2_TEMPLATE

from ..conftest import quietly
from .conftest import POSITIONS
from .test_questions import LAW, write_ceval, write_cmmlu, write_csv, write_mmlu

PROMPT = """\
以下是中国关于法学的单项选择题，请选出其中的正确答案。

例二
A. 1
B. 2
C. 3
D. 4
答案： B

下列何者是民法？
A. 甲
B. 乙
C. 丙
D. 丁
答案："""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_ceval(tmp_path / "ceval")


def letter_logprobs(
    folder: Path, prompt: str, letters: tuple[str, ...], *, stretching: bool = False
) -> list[float]:
    """log p of each letter's form after BOS and a prompt, its whole text by itself, in float64."""
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    network = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)
    before = [0, *fast.encode(prompt).ids]
    if stretching:
        apply_rope(network, choose_stretch(network.config.to_dict(), len(before)).rope)
    found = []
    for letter in letters:
        ids = [0, *fast.encode(f"{prompt}{letter}").ids]
        assert ids[: len(before)] == before
        with torch.no_grad():
            logprobs_TV = network(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        found.append(sum(logprobs_TV[t - 1, ids[t]].item() for t in range(len(before), len(ids))))
    return found


def read(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_scores_are_those_of_the_whole_prompt(model_folder: Path, data: Path, tmp_path: Path) -> None:
    """Two examples do not fit into 128 positions, so the far one goes."""
    record = execute(EvalCeval(out=tmp_path / "ceval-0", model=model_folder, data=data, shots=2), quietly)
    results = read(tmp_path / "ceval-0")
    item = results["items"][0]
    expected = letter_logprobs(model_folder, PROMPT, (" A", " B", " C", " D"))
    assert (item["subject"], item["number"], item["answer"]) == ("law", 0, "A")
    assert (item["shots"], item["examples_dropped"]) == (1, 1)
    assert list(item["scores"].values()) == pytest.approx(expected, rel=1e-5)
    assert item["prediction"] == "ABCD"[expected.index(max(expected))]
    subjects = {subject.key: subject for subject in read_subjects(CEVAL, data, [], 2, "val")}
    for item in results["items"]:  # some with more examples than others: they share what they can
        subject = subjects[item["subject"]]
        kept = subject.examples[item["examples_dropped"] :]
        prompt = harness_text(CEVAL, subject, kept, subject.questions[item["number"]])
        expected = letter_logprobs(model_folder, prompt, (" A", " B", " C", " D"))
        assert list(item["scores"].values()) == pytest.approx(expected, rel=1e-5)
    assert len({item["shots"] for item in results["items"]}) > 1
    dropped = sum(item["examples_dropped"] for item in results["items"])
    assert record["metrics"]["examples_dropped"] == dropped > 0


def test_each_question_is_stretched_by_what_it_needs(model_folder: Path, data: Path, tmp_path: Path) -> None:
    """Two examples fit into twice the 128 positions; of questions alone some need no stretch."""
    subjects = {subject.key: subject for subject in read_subjects(CEVAL, data, [], 2, "val")}
    for shots in (0, 2):
        out = tmp_path / str(shots)
        asked: dict = {"model": model_folder, "data": data, "shots": shots, "context": "auto"}
        record = execute(EvalCeval(out=out, **asked), quietly)
        assert (record["metrics"]["stretching"], record["metrics"]["examples_dropped"]) == (True, 0)
        lengths = set()
        for item in read(out)["items"]:
            subject = subjects[item["subject"]]
            prompt = harness_text(CEVAL, subject, subject.examples[:shots], subject.questions[item["number"]])
            lengths.add(len(prompt.encode()) > 128)
            expected = letter_logprobs(model_folder, prompt, (" A", " B", " C", " D"), stretching=True)
            assert list(item["scores"].values()) == pytest.approx(expected, rel=1e-5)
        assert lengths == ({False, True} if shots == 0 else {True})


def test_cla2_adds_the_two_forms_of_a_letter(model_folder: Path, data: Path, tmp_path: Path) -> None:
    """Byte-level: "A" alone and behind a colon are the same token, so its log-probability counts twice."""
    execute(EvalCeval(out=tmp_path / "out", model=model_folder, data=data, shots=0, protocol="cla2"), quietly)
    results = read(tmp_path / "out")
    once = letter_logprobs(
        model_folder, " 下列何者是民法？ \nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案：", ("A", "B", "C", "D")
    )
    scores = list(results["items"][0]["scores"].values())
    assert scores == pytest.approx([2 * score for score in once], rel=1e-5)
    assert (results["protocol"], results["protocol_version"], results["prompt"]) == ("cla2", 1, "base")


def test_a_chat_model_gets_chat_prompts(model_folder: Path, data: Path, tmp_path: Path) -> None:
    tuned = shutil.copytree(model_folder, tmp_path / "tuned")
    (tuned / "chat_template.jinja").write_text(LLAMA2_TEMPLATE, encoding="utf-8")
    asked = {"model": tuned, "data": data, "shots": 0, "protocol": "cla2"}
    for wanted, style in (("auto", "chat"), ("base", "base"), ("chat", "chat")):
        execute(EvalCeval(out=tmp_path / wanted, prompt=wanted, **asked), quietly)  # type: ignore[arg-type]
        assert read(tmp_path / wanted)["prompt"] == style
    assert (
        read(tmp_path / "auto")["items"]
        == read(tmp_path / "chat")["items"]
        != read(tmp_path / "base")["items"]
    )


def test_results_count_what_was_asked(model_folder: Path, data: Path, tmp_path: Path) -> None:
    record = execute(EvalCeval(out=tmp_path / "out", model=model_folder, data=data, shots=0), quietly)
    results = read(tmp_path / "out")
    right = sum(item["prediction"] == item["answer"] for item in results["items"])
    metrics = record["metrics"]
    assert (results["task"], results["protocol"], results["protocol_version"]) == ("ceval", "harness", 1)
    assert (metrics["questions"], metrics["asked"], metrics["right"]) == (4, 4, right)
    assert metrics["accuracy"] == right / 4
    assert metrics["chance"] == 0.25
    assert metrics["groups"]["Humanities"]["questions"] == 4
    assert len(metrics["missing_subjects"]) == 50
    assert results["subjects"]["law"]["questions"] == 3
    assert [item["number"] for item in results["items"]] == [0, 1, 2, 0]
    assert not (tmp_path / "out" / KEPT_NAME).exists()
    assert not (tmp_path / "out" / "submission.json").exists()


def test_the_other_benchmarks(model_folder: Path, tmp_path: Path) -> None:
    """A China-specific subject counts in its discipline as well."""
    cmmlu = EvalCmmlu(out=tmp_path / "c", model=model_folder, data=write_cmmlu(tmp_path / "cmmlu"), shots=0)
    metrics = execute(cmmlu, quietly)["metrics"]
    assert {group: part["questions"] for group, part in metrics["groups"].items()} == {
        "China specific": 3,
        "Social Science": 3,
    }
    assert metrics["questions"] == 3
    assert (read(tmp_path / "c")["task"], len(metrics["missing_subjects"])) == ("cmmlu", 66)
    mmlu = EvalMmlu(out=tmp_path / "m", model=model_folder, data=write_mmlu(tmp_path / "mmlu"), shots=0)
    assert execute(mmlu, quietly)["metrics"]["groups"]["Humanities"]["questions"] == 3


def test_the_test_split_gives_what_its_site_wants(
    model_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["问,1,2,3,4", "长" * POSITIONS + ",1,2,3,4", "答,4,3,2,1"]
    write_csv(data, "test", "law", rows, "id,question,A,B,C,D\n")
    stage = EvalCeval(out=tmp_path / "out", model=model_folder, data=data, shots=0, split="test")
    record = execute(stage, quietly)
    stage.tell(record)
    predictions = [item["prediction"] for item in read(tmp_path / "out")["items"]]
    submission = json.loads((tmp_path / "out" / "submission.json").read_text())
    assert submission == {"law": {"0": predictions[0], "2": predictions[2]}}
    assert (record["metrics"]["asked"], record["metrics"]["accuracy"]) == (2, None)
    said = capsys.readouterr()
    assert "1 questions longer than the context, not asked: law 1" in said.err
    assert "2 questions answered, the right answers are not told (harness, base prompts, 0-shot)" in said.out


def test_what_is_longer_than_the_context_is_counted_and_not_guessed(
    model_folder: Path, data: Path, tmp_path: Path
) -> None:
    write_csv(data, "val", "logic", ["长" * POSITIONS + ",1,2,3,4,C"])
    record = execute(EvalCeval(out=tmp_path / "out", model=model_folder, data=data, shots=0), quietly)
    results = read(tmp_path / "out")
    assert (results["items"][-1]["prediction"], results["items"][-1]["scores"]) == (None, {})
    assert (record["metrics"]["asked"], record["metrics"]["too_long"]) == (3, 1)
    assert record["metrics"]["too_long_questions"] == ["logic 0"]
    assert results["subjects"]["logic"]["accuracy"] is None
    only = EvalCeval(out=tmp_path / "none", model=model_folder, data=data, shots=0, subjects=["logic"])
    with pytest.raises(UserError, match="no question fits into 128 positions"):
        execute(only, quietly)


def test_a_model_without_numbers_does_not_guess(broken_folder: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="no numbers"):
        execute(EvalCeval(out=tmp_path / "out", model=broken_folder, data=data, shots=0), quietly)


def test_bfloat16_is_named_and_near(model_folder: Path, data: Path, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        stage = EvalCeval(out=tmp_path / dtype, model=model_folder, data=data, shots=0, dtype=dtype)
        assert execute(stage, quietly)["metrics"]["dtype"] == dtype
    exact, rough = (
        [score for item in read(tmp_path / dtype)["items"] for score in item["scores"].values()]
        for dtype in ("float32", "bfloat16")
    )
    assert exact != rough
    assert rough == pytest.approx(exact, rel=0.05, abs=0.3)


KILL_AT_THE_SECOND = """
import os, signal, sys
from yayan.cli import main
from yayan.evaluate.letters import LetterScorer
answer = LetterScorer.answer
def killed(self, prompts, bar):
    if prompts[0].question.subject == "logic":
        os.kill(os.getpid(), signal.SIGKILL)
    return answer(self, prompts, bar)
LetterScorer.answer = killed
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(
    model_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before its second subject: the first is not asked again, and the results are the same bytes."""
    out = tmp_path / "killed"
    words = ["eval", "ceval", "--model", model_folder, "--data", data, "--shots", "0", "--out", out]
    ended = subprocess.run([sys.executable, "-c", KILL_AT_THE_SECOND, *map(str, words)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not out.exists()
    kept = tmp_path / "killed.partial" / KEPT_NAME
    with kept.open("a") as file:
        file.write('["logic", {"subject"')  # a line that was not finished
    asked: list[str] = []
    answer = LetterScorer.answer

    def watched(self: LetterScorer, prompts: list[Prompt], bar: Progress) -> list[Item]:
        asked.append(prompts[0].question.subject)
        return answer(self, prompts, bar)

    monkeypatch.setattr(LetterScorer, "answer", watched)
    execute(EvalCeval(out=out, model=model_folder, data=data, shots=0), quietly)
    assert asked == ["logic"]
    execute(EvalCeval(out=tmp_path / "whole", model=model_folder, data=data, shots=0), quietly)
    assert asked == ["logic", "law", "logic"]
    assert (out / "results.json").read_bytes() == (tmp_path / "whole" / "results.json").read_bytes()


def test_what_was_kept_of_another_question_is_not_taken(
    model_folder: Path, data: Path, tmp_path: Path
) -> None:
    work = tmp_path / "out.partial"
    work.mkdir()
    (work / ".question").write_text("another")
    Kept(work).put("law", [Item("law", 0, "A", "A", {}, 0, 0)])
    metrics = execute(EvalCeval(out=tmp_path / "out", model=model_folder, data=data, shots=0), quietly)[
        "metrics"
    ]
    assert metrics["questions"] == 4


def break_nothing(folder: Path) -> None:
    pass


def break_columns(folder: Path) -> None:
    write_csv(folder, "val", "law", LAW, "id,question,A,B,C,E,answer\n")


@pytest.mark.parametrize(
    ("harm", "options", "sentence"),
    [
        (break_columns, {}, r"question without D \(.*law_val\.csv:2\)"),
        (break_nothing, {"subjects": ["lawn"]}, "did you mean law"),
        (break_nothing, {"shots": 6}, "6 shots"),
        (break_nothing, {"shots": -1}, "-1 shots"),
        (break_nothing, {"split": "test"}, "no question of the split test"),
        (
            break_nothing,
            {"protocol": "cla2", "prompt": "chat"},
            "no chat template, chat prompts are asked for",
        ),
        (break_nothing, {"prompt": "chat"}, "harness gives every model plain text"),
        (break_nothing, {"cot": True, "protocol": "cla2"}, "reasoning is for chat models with chat prompts"),
        (break_nothing, {"cot": True}, "reasoning is for chat models with chat prompts"),
        (break_nothing, {"max_tokens": 0}, "reasonings of 0 tokens"),
        (break_nothing, {"data": Path("no-such-folder")}, "no-such-folder"),
        (break_nothing, {"model": Path("no-such-model")}, "no-such-model"),
    ],
)
def test_bad_questions_are_refused(
    model_folder: Path,
    data: Path,
    tmp_path: Path,
    harm: Callable[[Path], None],
    options: dict,
    sentence: str,
) -> None:
    harm(data)
    asked = {"model": model_folder, "data": data, "shots": 2} | options
    with pytest.raises(UserError, match=sentence):
        execute(EvalCeval(out=tmp_path / "out", **asked), quietly)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_the_reference_asks_no_mmlu(model_folder: Path, tmp_path: Path) -> None:
    data = write_mmlu(tmp_path / "mmlu")
    stage = EvalMmlu(out=tmp_path / "out", model=model_folder, data=data, shots=2, protocol="cla2")
    with pytest.raises(UserError, match="cla2 has no prompts for mmlu"):
        execute(stage, quietly)
