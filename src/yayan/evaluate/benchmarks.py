"""The three benchmarks of four-choice questions: what each asks, in which words, and in which files it is handed round.

The words of the protocol `harness` are those of lm-eval 0.4.13 (tasks ceval-valid 2.0, cmmlu 1.0, mmlu 1.0).
"""

from dataclasses import dataclass

from yayan.evaluate.subjects import CEVAL_SUBJECTS, CMMLU_SUBJECTS, MMLU_SUBJECTS, Names


@dataclass(frozen=True)
class Benchmark:
    """A task of four-choice questions."""

    task: str
    names: Names
    header: str  # of a prompt; {} is the subject's name
    ending: str  # of a question, before its letter
    has_cla2: bool = True  # the reference project asks it
    has_csv_header: bool = True
    name_in_mapping: int = 1  # of [English name, Chinese name, group] in subject_mapping.json


CEVAL = Benchmark(
    "ceval", CEVAL_SUBJECTS, "以下是中国关于{}的单项选择题，请选出其中的正确答案。\n\n", "答案："
)
CMMLU = Benchmark(
    "cmmlu", CMMLU_SUBJECTS, "以下是关于{}的单项选择题，请直接给出正确答案的选项。\n\n", "答案："
)
MMLU = Benchmark(
    "mmlu",
    MMLU_SUBJECTS,
    "The following are multiple choice questions (with answers) about {}.\n\n",
    "Answer:",
    has_cla2=False,
    has_csv_header=False,
    name_in_mapping=0,
)
