"""Answers as letters: which of the four does the model find likeliest behind the prompt?"""

import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from transformers import PreTrainedModel

from yayan.evaluate.answers import Item
from yayan.evaluate.prompts import Prompt
from yayan.evaluate.questions import LETTERS
from yayan.evaluate.scorer import open_network, refuse_nonsense
from yayan.machine import DTYPES, device
from yayan.model.longer import by_turning
from yayan.model.prefix import score_choices
from yayan.progress import Progress


class LetterScorer:
    """A model that is opened when the first question is asked: a run that goes on may have none left.

    `stretching`: each question is turned by what its length needs (`model/longer`).
    """

    def __init__(self, model: Path, dtype: str, *, stretching: bool = False) -> None:
        self.model, self.dtype, self.stretching = model, dtype, stretching
        self.opening_seconds = 0.0
        self._network: PreTrainedModel | None = None

    def close(self) -> None:
        """Let go of the model."""
        self._network = None

    def network(self) -> PreTrainedModel:
        if self._network is None:
            begun = time.monotonic()
            _, self._network = open_network(self.model, DTYPES[self.dtype], device=device())
            self.opening_seconds = time.monotonic() - begun
        return self._network

    def answer(self, prompts: list[Prompt], bar: Progress) -> list[Item]:
        """Ask what fits; equal scores go to the first letter. Prompts of as many examples share their beginning."""
        found: dict[int, dict[str, float]] = {}
        for asked in self.groups(prompts):
            rows = sum(len({tuple(ids[:-1]) for ids in prompt.letter_ids}) for prompt in asked)
            share = len(asked) / rows
            scores = score_choices(
                self.network(),
                [prompt.context_ids for prompt in asked],
                [prompt.letter_ids for prompt in asked],
                on_scored=lambda count, share=share: bar.advance(count * share),  # type: ignore[misc]
            )
            refuse_nonsense((score for row in scores for score in row), self.model)
            for prompt, row in zip(asked, scores, strict=True):
                found[prompt.question.number] = prompt.letter_scores(row)
        return [prompt.item(*best_of(found.get(prompt.question.number, {}))) for prompt in prompts]

    def groups(self, prompts: list[Prompt]) -> Iterator[list[Prompt]]:
        """Those that fit, with the same examples and the same turning together, the model turned so meanwhile."""
        for asked in alike(prompts):
            if self.stretching:
                yield from by_turning(self.network(), asked, lambda prompt: prompt.tokens)
            else:
                yield asked


def best_of(scores: dict[str, float]) -> tuple[str | None, dict[str, float]]:
    return (max(LETTERS, key=scores.__getitem__) if scores else None), scores


def alike(prompts: list[Prompt]) -> Iterator[list[Prompt]]:
    """Those that fit, with the same examples together."""
    fitting = sorted((prompt for prompt in prompts if prompt.fits), key=lambda prompt: prompt.shots)
    for _, group in groupby(fitting, key=lambda prompt: prompt.shots):
        yield list(group)
