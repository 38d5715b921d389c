"""Answers as letters: which of the four does the model find likeliest behind the prompt?"""

import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from yayan.evaluate.answers import Item
from yayan.evaluate.prompts import Prompt
from yayan.evaluate.questions import LETTERS
from yayan.evaluate.scorer import Scorer, open_scorer, refuse_nonsense
from yayan.machine import DTYPES, device
from yayan.model.prefix import score_choices
from yayan.progress import Progress


class LetterScorer:
    """A model that is opened when the first question is asked: a run that goes on may have none left."""

    def __init__(self, model: Path, dtype: str) -> None:
        self.model, self.dtype = model, dtype
        self.opening_seconds = 0.0
        self._scorer: Scorer | None = None

    def close(self) -> None:
        """Let go of the model."""
        self._scorer = None

    def scorer(self) -> Scorer:
        if self._scorer is None:
            begun = time.monotonic()
            self._scorer = open_scorer(self.model, dtype=DTYPES[self.dtype], device=device())
            self.opening_seconds = time.monotonic() - begun
        return self._scorer

    def answer(self, prompts: list[Prompt], bar: Progress) -> list[Item]:
        """Ask what fits; equal scores go to the first letter. Prompts of as many examples share their beginning."""
        found: dict[int, dict[str, float]] = {}
        for asked in alike(prompts):
            scorer = self.scorer()
            rows = sum(len({tuple(ids[:-1]) for ids in prompt.letter_ids}) for prompt in asked)
            share = len(asked) / rows
            scores = score_choices(
                scorer.network,
                [prompt.context_ids for prompt in asked],
                [prompt.letter_ids for prompt in asked],
                on_scored=lambda count, share=share: bar.advance(count * share),  # type: ignore[misc]
            )
            refuse_nonsense((score for row in scores for score in row), self.model)
            for prompt, row in zip(asked, scores, strict=True):
                found[prompt.question.number] = prompt.letter_scores(row)
        return [prompt.item(*best_of(found.get(prompt.question.number, {}))) for prompt in prompts]


def best_of(scores: dict[str, float]) -> tuple[str | None, dict[str, float]]:
    return (max(LETTERS, key=scores.__getitem__) if scores else None), scores


def alike(prompts: list[Prompt]) -> Iterator[list[Prompt]]:
    """Those that fit, with the same examples together."""
    fitting = sorted((prompt for prompt in prompts if prompt.fits), key=lambda prompt: prompt.shots)
    for _, group in groupby(fitting, key=lambda prompt: prompt.shots):
        yield list(group)
