"""Multiple choice: the prompt to the character, likelihoods against plain full logits, every kind of bad data."""

import json
import lzma
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from yayan.errors import UserError, WorkError
from yayan.evaluate.choices import EvalCeval
from yayan.evaluate.questions import read_subjects
from yayan.stage import execute

from .conftest import POSITIONS

COLUMNS = "id,question,A,B,C,D,answer\n"
LAW = [" 下列何者是民法？ ,甲,乙,丙,丁,A", '"一, 二",1,2,3,4,D', "三,1,2,3,4,B"]
LAW_EXAMPLES = ["例一,甲,乙,丙,丁,C", "例二,1,2,3,4,B"]
LOGIC = ["四,1,2,3,4,C"]
LOGIC_EXAMPLES = ["例三,1,2,3,4,A", "例四,1,2,3,4,D"]

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


def write_csv(folder: Path, split: str, subject: str, rows: list[str], columns: str = COLUMNS) -> None:
    (folder / split).mkdir(exist_ok=True, parents=True)
    text = columns + "".join(f"{i},{row}\n" for i, row in enumerate(rows))
    (folder / split / f"{subject}_{split}.csv").write_text(text, encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "ceval"
    write_csv(folder, "val", "law", LAW)
    write_csv(folder, "dev", "law", LAW_EXAMPLES)
    write_csv(folder, "val", "logic", LOGIC)
    write_csv(folder, "dev", "logic", LOGIC_EXAMPLES)
    return folder


def letter_logprobs(folder: Path, prompt: str) -> dict[str, float]:
    """log p of " A" .. " D" after BOS and a prompt, each letter's whole text by itself, in float64."""
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    network = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)
    before = [0, *fast.encode(prompt).ids]
    found = {}
    for letter in "ABCD":
        ids = [0, *fast.encode(f"{prompt} {letter}").ids]
        assert ids[: len(before)] == before
        with torch.no_grad():
            logprobs_TV = network(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        found[letter] = sum(logprobs_TV[t - 1, ids[t]].item() for t in range(len(before), len(ids)))
    return found


def test_scores_are_those_of_the_whole_prompt(model_folder: Path, data: Path, tmp_path: Path) -> None:
    """Two examples do not fit into 128 positions, so the far one goes."""
    record = execute(EvalCeval(out=tmp_path / "ceval-0", model=model_folder, data=data, shots=2))
    results = json.loads((tmp_path / "ceval-0" / "results.json").read_text())
    item = results["items"][0]
    expected = letter_logprobs(model_folder, PROMPT)
    assert (item["subject"], item["number"], item["answer"]) == ("law", 0, "A")
    assert (item["shots"], item["examples_dropped"]) == (1, 1)
    assert item["scores"] == pytest.approx(expected, rel=1e-5)
    assert item["prediction"] == max(expected, key=expected.__getitem__)
    assert (
        record["metrics"]["examples_dropped"]
        == sum(item["examples_dropped"] for item in results["items"])
        > 0
    )


def test_results_count_what_was_asked(model_folder: Path, data: Path, tmp_path: Path) -> None:
    record = execute(EvalCeval(out=tmp_path / "out", model=model_folder, data=data, shots=0))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    right = sum(item["prediction"] == item["answer"] for item in results["items"])
    metrics = record["metrics"]
    assert (results["task"], results["protocol"], results["protocol_version"]) == ("ceval", "harness", 1)
    assert (metrics["questions"], metrics["asked"], metrics["right"]) == (4, 4, right)
    assert metrics["accuracy"] == right / 4
    assert metrics["chance"] == 0.25
    assert metrics["groups"]["Humanities"]["questions"] == 4
    assert results["subjects"]["law"]["questions"] == 3
    assert [item["number"] for item in results["items"]] == [0, 1, 2, 0]


def test_what_is_longer_than_the_context_is_counted_and_not_guessed(
    model_folder: Path, data: Path, tmp_path: Path
) -> None:
    write_csv(data, "val", "logic", ["长" * POSITIONS + ",1,2,3,4,C"])
    record = execute(EvalCeval(out=tmp_path / "out", model=model_folder, data=data, shots=0))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["items"][-1]["prediction"], results["items"][-1]["scores"]) == (None, {})
    assert (record["metrics"]["asked"], record["metrics"]["too_long"]) == (3, 1)
    assert results["subjects"]["logic"]["accuracy"] is None
    only = EvalCeval(out=tmp_path / "none", model=model_folder, data=data, shots=0, subjects=["logic"])
    with pytest.raises(UserError, match="no question fits into 128 positions"):
        execute(only)


def test_a_model_without_numbers_does_not_guess(broken_folder: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="no numbers"):
        execute(EvalCeval(out=tmp_path / "out", model=broken_folder, data=data, shots=0))


def test_the_jsonl_form_holds_the_same_questions(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "jsonl"
    folder.mkdir()
    for split in ("val", "dev"):
        rows = []
        for path in sorted((data / split).glob("*.csv")):
            for question in (s for s in read_subjects(data, [path.stem.rpartition("_")[0]], 2)):
                for item in question.questions if split == "val" else question.examples:
                    options = dict(zip("ABCD", item.options, strict=True))
                    row = {
                        "subject": item.subject,
                        "question": item.question,
                        "answer": item.answer,
                    } | options
                    rows.append(json.dumps(row, ensure_ascii=False) + "\n")
        (folder / f"{split}.jsonl.xz").write_bytes(lzma.compress("".join(rows).encode()))
    assert read_subjects(folder, [], 2) == read_subjects(data, [], 2)


def test_the_built_in_questions_are_whole() -> None:
    import yayan

    subjects = read_subjects(Path(yayan.__file__).parent / "sample" / "questions", [], 2)
    assert sum(len(subject.questions) for subject in subjects) == 24
    assert all(any(letter >= "\u4e00" for letter in subject.name) for subject in subjects)


def break_column(folder: Path) -> None:
    write_csv(folder, "val", "law", ["问,1,2,3,D"], "id,question,A,B,C,answer\n")


def break_answer(folder: Path) -> None:
    write_csv(folder, "val", "law", [LAW[0], "问,1,2,3,4,E"])


def break_encoding(folder: Path) -> None:
    (folder / "val" / "law_val.csv").write_bytes((COLUMNS + "0,问,1,2,3,4,A\n").encode("gb18030"))


def break_short_row(folder: Path) -> None:
    write_csv(folder, "val", "law", ["问,1,2"])


def break_empty(folder: Path) -> None:
    for path in (folder / "val").iterdir():
        path.unlink()


def break_examples(folder: Path) -> None:
    write_csv(folder, "dev", "law", LAW_EXAMPLES[:1])


def break_name(folder: Path) -> None:
    write_csv(folder, "val", "alchemy", LAW)


def break_mapping(folder: Path) -> None:
    (folder / "subject_mapping.json").write_text('{"law": "法学"}')


def break_jsonl(folder: Path) -> None:
    (folder / "val.jsonl").write_text("[1]\n")


def break_nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("harm", "options", "sentence"),
    [
        (break_column, {}, r"question without D \(.*law_val\.csv:2\)"),
        (break_answer, {}, r"'E' is none of A, B, C, D \(.*law_val\.csv:3\)"),
        (break_encoding, {}, r"no UTF-8 CSV.*law_val\.csv"),
        (break_short_row, {}, "question without C"),
        (break_empty, {}, "no question of the split val"),
        (break_examples, {}, r"law has 1 worked examples \(dev\), 2 are asked for.*--shots 1"),
        (break_name, {}, "alchemy has no Chinese name"),
        (break_mapping, {}, r"mapping of subjects cannot be read.*subject_mapping\.json"),
        (break_jsonl, {}, r"no JSON object.*val\.jsonl:1"),
        (break_nothing, {"subjects": ["lawn"]}, "did you mean law"),
        (break_nothing, {"shots": 6}, "6 shots"),
        (break_nothing, {"shots": -1}, "-1 shots"),
        (break_nothing, {"data": Path("no-such-folder")}, "no-such-folder"),
        (break_nothing, {"model": Path("no-such-model")}, "no-such-model"),
    ],
)
def test_bad_data_is_named(
    model_folder: Path, data: Path, tmp_path: Path, harm: object, options: dict, sentence: str
) -> None:
    harm(data)  # type: ignore[operator]
    asked = {"model": model_folder, "data": data, "shots": 2} | options
    with pytest.raises(UserError, match=sentence):
        execute(EvalCeval(out=tmp_path / "out", **asked))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()
