"""Answers as letters: which of the four does the model find likeliest behind the prompt?"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from transformers import PreTrainedModel

from yayan.evaluate.answers import Item
from yayan.evaluate.prompts import Prompt
from yayan.evaluate.questions import LETTERS
from yayan.evaluate.scorer import open_network, refuse_nonsense
from yayan.machine import DTYPES, device
from yayan.model.folder import read_config
from yayan.model.longer import choose_stretch, rope_applied
from yayan.model.prefix import score_choices
from yayan.model.rope import Rope
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
        for asked, rope in self.alike(prompts):
            rows = sum(len({tuple(ids[:-1]) for ids in prompt.letter_ids}) for prompt in asked)
            share = len(asked) / rows
            network = self.network()
            with rope_applied(network, rope) if rope else nullcontext():
                scores = score_choices(
                    network,
                    [prompt.context_ids for prompt in asked],
                    [prompt.letter_ids for prompt in asked],
                    on_scored=lambda count, share=share: bar.advance(count * share),  # type: ignore[misc]
                )
            refuse_nonsense((score for row in scores for score in row), self.model)
            for prompt, row in zip(asked, scores, strict=True):
                found[prompt.question.number] = prompt.letter_scores(row)
        return [prompt.item(*best_of(found.get(prompt.question.number, {}))) for prompt in prompts]

    def alike(self, prompts: list[Prompt]) -> Iterator[tuple[list[Prompt], Rope | None]]:
        """Those that fit, with the same examples and the same turning together."""
        config = read_config(self.model)
        groups: dict[tuple[int, int], list[Prompt]] = defaultdict(list)
        for prompt in prompts:
            if prompt.fits:
                times = choose_stretch(config, prompt.tokens).times if self.stretching else 1
                groups[prompt.shots, times].append(prompt)
        for _, group in sorted(groups.items()):
            longest = max(prompt.tokens for prompt in group)
            yield group, choose_stretch(config, longest).rope if self.stretching else None


def best_of(scores: dict[str, float]) -> tuple[str | None, dict[str, float]]:
    return (max(LETTERS, key=scores.__getitem__) if scores else None), scores
