"""How many four-choice questions a second are answered, and does every subject come out the same to the digit?

Question  Questions a second of `yayan eval ceval` and `eval cmmlu` (protocol harness, 5-shot, float32) on six subjects
          of each (--all: all subjects of C-Eval valid and of CMMLU), accuracy of each subject, anonymous memory.
Peer      lm-eval 0.4.13, backend `hf`, its own tasks ceval-valid and cmmlu on the same local files, the same model and
          threads, at the fastest of the batch sizes --batch-sizes (tried on the first subject).
Limit     The operations that the answers need at least, at this machine's rate in square products: the shared beginning
          once a subject, what is each question's own, attention to both, one row of the head a question.
Command   python benchmarks/evaluate.py --model MODEL --data DATA --out OUT [--all --peer-python PYTHON]

--data: the folder in which eval-ceval and eval-cmmlu lie as jsonl. --peer-python: the Python of an environment with
`lm-eval[hf]==0.4.13`, if it is not in this one. Both sides answer the same subjects in turns, each in a process of its
own; the time is that from the first token cut to the last answer scored: the model and (lm-eval's cache of) the data
are loaded before. A subject of which an example had to be dropped, or which lm-eval would cut on the left, is void and
told apart. Equal means: the same number right; where the two best letters are nearer than 1e-5, the question is listed.
Where we expect to lose: nothing is shared without examples; --shots 0 shows it.
"""

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from processes import Usage, measure, parser_of, refuse_busy_machine

TASKS = {"ceval": "val", "cmmlu": "test"}  # and the split that is asked
SUBJECTS = {
    "ceval": [
        "computer_network",
        "operating_system",
        "law",
        "physician",
        "teacher_qualification",
        "marxism",
    ],
    "cmmlu": ["agronomy", "anatomy", "arts", "chinese_history", "college_mathematics", "world_religions"],
}
NEAR_TIE = 1e-5


def main() -> None:
    options = read_arguments()
    if options.as_peer:
        run_peer(options)
        return
    refuse_busy_machine(options.most_load)
    options.out.mkdir(parents=True, exist_ok=True)
    for task in options.task:
        subjects = [] if options.all else options.subjects or SUBJECTS[task]
        compare(options, task, subjects)


def read_arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--subjects", nargs="+", help="others than the six; name one --task with them")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--as-peer", type=Path, help=argparse.SUPPRESS)  # the file of what is asked
    return parser.parse_args()


def compare(options: argparse.Namespace, task: str, subjects: list[str]) -> None:
    """Both sides in turns, and a table."""
    ours = [run_ours(options, task, subjects)]
    names = sorted(ours[0][0]["subjects"])
    batch_size = best_batch_size(options, task, names[0])
    peers = [ask_peer(options, task, names, batch_size)]
    for _ in range(1, options.runs):
        ours.append(run_ours(options, task, subjects))
        peers.append(ask_peer(options, task, names, batch_size))
    results, theirs = ours[0][0], peers[0][0]
    void = {name for name in names if results["subjects"][name]["examples_dropped"] or theirs["cut"][name]}
    void |= {name for name in names if results["subjects"][name]["too_long"]}
    count = results["questions"]
    speeds = [
        max(count / seconds for seconds in side)
        for side in ([run[1] for run in ours], [run[0]["seconds"] for run in peers])
    ]
    memory = [min(run[-1].peak_bytes for run in side) / 1e6 for side in (ours, peers)]
    print(
        f"{task}, {len(names)} subjects, {count:,} questions, {options.shots}-shot, {torch.get_num_threads()} threads"
    )
    print("| | questions/s | seconds | anonymous memory |\n| --- | ---: | ---: | ---: |")
    for name, speed, size in zip(("ours", f"lm-eval, batch {batch_size}"), speeds, memory, strict=True):
        print(f"| {name} | {speed:.2f} | {count / speed:.1f} | {size:,.0f} MB |")
    print(
        f"ratio {speeds[0] / speeds[1]:.2f}"
        + (f", VOID: examples dropped in {', '.join(sorted(void))}" if void else "")
    )
    tell_limit(options, task, names, count / speeds[0])
    tell_subjects(results, theirs, void)


def run_ours(options: argparse.Namespace, task: str, subjects: list[str]) -> tuple[dict, float, Usage]:
    """(results, seconds of answering, what the process took)."""
    out = options.out / f"{task}-ours"
    words = [
        "eval",
        task,
        "--model",
        options.model,
        "--data",
        options.data / f"eval-{task}",
        "--out",
        out,
        "--again",
    ]
    words += ["--shots", options.shots]
    if subjects:
        words += ["--subjects", *subjects]
    usage = measure([sys.executable, "-m", "yayan", *words])
    record = json.loads((out / "yayan.json").read_text())
    return json.loads((out / "results.json").read_text()), record["metrics"]["answer_seconds"], usage


def best_batch_size(options: argparse.Namespace, task: str, subject: str) -> int:
    sizes = {size: ask_peer(options, task, [subject], size)[0]["seconds"] for size in options.batch_sizes}
    told = ", ".join(f"{size}: {seconds:.1f} s" for size, seconds in sizes.items())
    print(f"lm-eval on {subject} by batch size: {told}", flush=True)
    return min(sizes, key=sizes.__getitem__)


def ask_peer(
    options: argparse.Namespace, task: str, subjects: Sequence[str], batch_size: int
) -> tuple[dict, Usage]:
    asked = options.out / f"{task}-peer.json"
    asked.write_text(json.dumps({"task": task, "subjects": list(subjects), "batch_size": batch_size}))
    words = ["--as-peer", asked, "--model", options.model, "--data", options.data, "--out", options.out]
    usage = measure([options.peer_python, __file__, *words, "--shots", options.shots])
    return json.loads(asked.with_suffix(".answer.json").read_text()), usage


def run_peer(options: argparse.Namespace) -> None:
    """lm-eval on the local files; writes seconds, and for each subject the likelihoods of its questions."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(options.out / "hf")}
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    asked = json.loads(options.as_peer.read_text())
    tasks = write_tasks(options, asked["task"], asked["subjects"])
    model = HFLM(
        pretrained=str(options.model),
        dtype="float32",
        device="cpu",
        batch_size=asked["batch_size"],
        add_bos_token=True,
    )
    cut: dict[str, int] = defaultdict(int)
    settings: dict[str, Any] = {
        "tasks": tasks,
        "num_fewshot": options.shots,
        "task_manager": TaskManager(include_path=str(options.out / "tasks")),
        "bootstrap_iters": 0,
    }
    simple_evaluate(model, **settings, limit=1)  # its cache of the data is made
    begun = time.monotonic()
    found = simple_evaluate(model, **settings, log_samples=True)
    seconds = time.monotonic() - begun
    subjects = {}
    for task, subject in zip(tasks, asked["subjects"], strict=True):
        samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
        subjects[subject] = [
            {"scores": [float(answer[0][0]) for answer in item["resps"]], "target": int(item["target"])}
            for item in samples
        ]
        for item in samples:
            prompt = item["arguments"][0][0]
            cut[subject] += len(model.tok_encode(prompt)) > model.max_length
    answer = {"seconds": seconds, "subjects": subjects, "cut": {name: cut[name] for name in subjects}}
    options.as_peer.with_suffix(".answer.json").write_text(json.dumps(answer))


def write_tasks(options: argparse.Namespace, task: str, subjects: Sequence[str]) -> list[str]:
    """lm-eval's own task files, told to read local ones: its columns, its names of splits -> the tasks' names."""
    import lm_eval.tasks
    import yaml

    source, folder = Path(lm_eval.tasks.__file__).parent / task, options.out / "tasks"
    folder.mkdir(exist_ok=True)
    files = {}
    for path in source.glob("*.yaml"):
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "dataset_name" in found:
            files[found["dataset_name"]] = found
    names = []
    for subject in subjects:
        settings = yaml.safe_load((source / files[subject]["include"]).read_text(encoding="utf-8"))
        settings |= {
            key: value for key, value in files[subject].items() if key not in ("include", "dataset_name")
        }
        data = {split: str(write_split(options, task, split, subject)) for split in ("dev", TASKS[task])}
        settings |= {
            "task": f"local_{task}_{subject}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": data},
        }
        (folder / f"{settings['task']}.yaml").write_text(
            yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8"
        )
        names.append(settings["task"])
    return names


def write_split(options: argparse.Namespace, task: str, split: str, subject: str) -> Path:
    """The questions of a subject as one jsonl file with the columns that lm-eval's task wants."""
    import lzma

    path = options.out / "tasks" / f"{task}-{subject}-{split}.jsonl"
    with lzma.open(options.data / f"eval-{task}" / f"{split}.jsonl.xz", "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["subject"] == subject]
    if task == "cmmlu":
        rows = [
            {"Question": row["question"], "Answer": row["answer"], **{x: row[x] for x in "ABCD"}}
            for row in rows
        ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def tell_subjects(results: dict, theirs: dict, void: set[str]) -> None:
    """Accuracy of each subject on both sides; near ties; the largest difference of a score."""
    equal, largest, ties, wrong = 0, 0.0, [], []
    items = defaultdict(list)
    for item in results["items"]:
        items[item["subject"]].append(item)
    print("| subject | right, ours | lm-eval | questions |\n| --- | ---: | ---: | ---: |")
    for subject, answers in theirs["subjects"].items():
        right = sum(answer["scores"].index(max(answer["scores"])) == answer["target"] for answer in answers)
        own = results["subjects"][subject]["right"]
        note = " (void)" if subject in void else ""
        print(f"| {subject}{note} | {own} | {right} | {len(answers)} |")
        if subject in void:
            continue
        equal += own == right
        for item, answer in zip(items[subject], answers, strict=True):
            scores = list(item["scores"].values())
            largest = max(largest, *(abs(a - b) for a, b in zip(scores, answer["scores"], strict=True)))
            second, first = sorted(scores)[-2:]
            if first - second < NEAR_TIE:
                ties.append(f"{subject} {item['number']}")
            elif scores.index(first) != answer["scores"].index(max(answer["scores"])):
                wrong.append(f"{subject} {item['number']}")
    compared = len(theirs["subjects"]) - len(void & set(theirs["subjects"]))
    print(
        f"equal accuracy: {equal} of {compared} subjects; largest difference of a log-likelihood {largest:.1e}"
    )
    print(
        f"near ties (under {NEAR_TIE}): {', '.join(ties) or 'none'}; other predictions that differ: {wrong or 'none'}"
    )


def tell_limit(options: argparse.Namespace, task: str, names: Sequence[str], seconds: float) -> None:
    """The operations needed at least, and the share of the machine's rate that was reached."""
    from yayan.evaluate.choices import EvalCeval, EvalCmmlu
    from yayan.machine import matmul_rate
    from yayan.model.folder import read_config
    from yayan.model.size import size_of

    stage: Any = {"ceval": EvalCeval, "cmmlu": EvalCmmlu}[task](
        out=options.out / "none",
        model=options.model,
        data=options.data / f"eval-{task}",
        shots=options.shots,
        subjects=list(names),
    )
    size, asker = size_of(read_config(options.model)), stage.make_asker()
    position = 2 * size.body_parameters
    attention = 4 * size.layers * size.query_width  # for each pair of positions
    operations = 0.0
    for subject in stage.read():
        prompts = [prompt.context_ids for prompt in asker.ready(subject)]
        shared = next(i for i, column in enumerate(zip(*prompts, strict=False)) if len(set(column)) > 1)
        own = [len(ids) - shared for ids in prompts]
        operations += (shared + sum(own)) * position + len(prompts) * 2 * size.rows * size.width
        operations += attention * (shared**2 / 2 + sum(length * (shared + length / 2) for length in own))
    rate = matmul_rate(torch.float32, seconds=3)
    least = operations / rate
    print(f"limit: {operations / 1e12:.2f} TFLOP at {rate / 1e9:,.0f} GFLOP/s take {least:.1f} s", end="")
    print(f", {least / seconds:.0%} of ours")


if __name__ == "__main__":
    main()
