"""The likelihoods of the letters behind multiple-choice questions, by any reader: torch or llama.cpp."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from yayan.errors import UserError
from yayan.evaluate.benchmarks import CEVAL
from yayan.evaluate.intervals import wilson
from yayan.evaluate.prompts import Asker, Prompt
from yayan.evaluate.questions import LETTERS, read_subjects
from yayan.evaluate.readers import Reader
from yayan.model.score import Window
from yayan.tokenizer import load_tokenizer


def letter_prompts(model: Path, data: Path, wanted: list[str], shots: int, context: int) -> list[Prompt]:
    """The prompts of `eval ceval` (protocol harness) that fit into the context. Raises UserError if there is none."""
    asker = Asker(CEVAL, "harness", "base", load_tokenizer(model), context)
    subjects = read_subjects(CEVAL, data, wanted, shots, "val")
    fitting = [prompt for subject in subjects for prompt in asker.ready(subject) if prompt.fits]
    if not fitting:
        raise UserError(f"no question fits into {context} positions", where=model, cure="pass fewer --shots")
    return fitting


def letter_scores(
    reader: Reader, prompts: Sequence[Prompt], on_read: Callable[[int], None]
) -> list[list[float]]:
    """Log-likelihood (nats) of each letter behind each prompt. `on_read` is told the number of rows read.

    Letters of one token share a row; a letter of several needs one for each different beginning.
    """
    scores = [[0.0] * len(LETTERS) for _ in prompts]
    windows = []
    for number, prompt in enumerate(prompts):
        for opening in sorted({tuple(ids[:-1]) for ids in prompt.letter_ids}):
            ids = [*prompt.context_ids, *opening]
            windows.append(Window(number, ids, len(prompt.context_ids) - 1))
    for window, _, logits_NV in reader.logits(windows):
        logprobs_NV = logits_NV.double().log_softmax(-1)
        opening_ids = window.ids[window.first + 1 :]
        for letter, ids in enumerate(prompts[window.sequence].letter_ids):
            if ids[:-1] == opening_ids:
                scores[window.sequence][letter] = (
                    logprobs_NV.gather(1, torch.tensor(ids)[:, None]).sum().item()
                )
        on_read(1)
    return scores


def accuracy(prompts: Sequence[Prompt], scores: Sequence[Sequence[float]]) -> dict[str, object]:
    """Right answers of those asked, with Wilson's interval; equal scores go to the first letter."""
    chosen = [LETTERS[max(range(len(LETTERS)), key=row.__getitem__)] for row in scores]
    right = sum(letter == prompt.question.answer for letter, prompt in zip(chosen, prompts, strict=True))
    return {
        "asked": len(prompts),
        "right": right,
        "accuracy": right / len(prompts),
        "interval": wilson(right, len(prompts)),
        "predictions": "".join(chosen),
    }
