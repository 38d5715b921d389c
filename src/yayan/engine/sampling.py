"""How an answer is chosen: the options of generation, the same for every engine, and a model's own defaults."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from yayan.errors import UserError
from yayan.model.folder import GENERATION_FILE, read_json

LARGEST_SEED = (1 << 32) - 2  # llama.cpp counts to 32 bits, and takes the last number for "any"
REMEMBERED = 1 << 20  # tokens that llama.cpp's penalties look back on: all of a context
MOST_LOGPROBS = 20  # as OpenAI's API


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Options of one answer. From `guidance_scale` on they change the logits, in this order."""

    max_tokens: int = 512
    """Longest answer, in tokens."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are no part of it."""
    seed: int | None = None
    """Seed of the drawing; the same seed gives the same answer."""
    logprobs: int | None = None
    """Tell the natural log-probability of each token, and of so many likeliest ones beside it (0 to 20)."""

    guidance_scale: float = 1.0
    """Classifier-free guidance: how far to move from the negative prompt (1: not at all)."""
    negative_prompt: str | None = None
    """What to move away from: a system prompt of a chat, a text otherwise (default: the last token of the prompt)."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids."""
    repetition_penalty: float = 1.0
    """Divide the positive logits of tokens that stand in the prompt or the answer, multiply the negative ones."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that stand in the answer."""
    frequency_penalty: float = 0.0
    """Taken from the logits of tokens as often as they stand in the answer."""
    temperature: float = 0.2
    """Divides the logits; 0 always takes the likeliest token, 1 draws as the model was trained."""
    top_k: int = 0
    """Draw from so many likeliest tokens (0: from all)."""
    top_p: float = 1.0
    """Draw from the fewest tokens whose probabilities add up to this (1: from all)."""
    min_p: float = 0.0
    """Draw from tokens at least so likely, as a share of the likeliest one's probability."""

    @classmethod
    def for_model(cls, folder: Path) -> "Sampling":
        """The defaults of a model: its `generation_config.json` where it says something, else those above.

        Raises UserError if the file is broken or holds a number that means nothing.
        """
        path = folder / GENERATION_FILE
        if not path.is_file():
            return cls()
        found = read_json(path)
        given = {name: found[name] for name in SHARED_NAMES if found.get(name) is not None}
        if found.get("max_new_tokens") is not None:
            given["max_tokens"] = found["max_new_tokens"]
        if found.get("do_sample") is False:
            given["temperature"] = 0
        try:
            sampling = cls(**given)
            sampling.check()
        except UserError as error:
            raise UserError(
                f"{path.name} cannot be used, {error}", where=folder, cure="correct it"
            ) from error
        return sampling

    @property
    def greedy(self) -> bool:
        """Nothing is drawn."""
        return self.temperature == 0

    def check(self) -> None:
        """Raises UserError for a value that means nothing, the first in the order of the fields."""
        for item in fields(self):
            value, (possible, cure) = getattr(self, item.name), RULES[item.name]
            if not possible(value):
                shown = value if isinstance(value, int | float | str) else "this value"
                raise UserError(f"{item.name} {shown!r} means nothing", cure=cure)
        if self.negative_prompt is not None and self.guidance_scale == 1:
            what = "negative_prompt has no effect with guidance_scale 1"
            raise UserError(what, cure="give a larger guidance_scale, such as 1.5")


def llamacpp_options(sampling: Sampling) -> dict[str, Any]:
    """The fields of a request to llama.cpp's server that ask for the same, every one said, for its defaults are others.

    Its penalties count the tokens of the prompt as well as of the answer, all three of them. `logprobs` come in the
    form of each endpoint. Raises UserError for guidance, which it does not have.
    """
    sampling.check()
    if sampling.guidance_scale != 1:
        raise UserError(
            "llama.cpp has no classifier-free guidance", cure="use the torch engine (--engine torch)"
        )
    options: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],  # the order of this page
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": REMEMBERED,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": [[token, bias] for token, bias in sampling.logit_bias.items()],
        "stop": list(sampling.stop),
    }
    if sampling.seed is not None:
        options["seed"] = sampling.seed
    if sampling.logprobs is not None:
        options |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    return options


SHARED_NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "guidance_scale")
Rule = tuple[Callable[[Any], bool], str]


def whole(least: int, most: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def number(least: float = -math.inf, most: float = math.inf) -> Callable[[Any], bool]:
    """A finite number; NaN and infinities are none, and neither is a truth value."""
    return lambda value: type(value) in (int, float) and math.isfinite(value) and least <= value <= most


def optional(possible: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or possible(value)


def is_bias(value: object) -> bool:
    return isinstance(value, Mapping) and all(whole(0)(i) and number()(b) for i, b in value.items())


def is_stop(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(text, str) and text for text in value)


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "max_tokens": (whole(1), "give at least 1"),
        "stop": (is_stop, "give texts that are not empty"),
        "seed": (optional(whole(0, LARGEST_SEED)), f"give a whole number from 0 to {LARGEST_SEED}"),
        "logprobs": (optional(whole(0, MOST_LOGPROBS)), f"give a whole number from 0 to {MOST_LOGPROBS}"),
        "guidance_scale": (number(0), "give at least 0; 1 is no guidance"),
        "negative_prompt": (optional(lambda value: isinstance(value, str)), "give a text"),
        "logit_bias": (is_bias, "give a finite number for each token id"),
        "repetition_penalty": (lambda value: number(0)(value) and value > 0, "give more than 0; 1 is none"),
        "presence_penalty": (number(), "give a finite number; 0 is none"),
        "frequency_penalty": (number(), "give a finite number; 0 is none"),
        "temperature": (number(0), "give at least 0; 0 always takes the likeliest token"),
        "top_k": (whole(0), "give at least 0; 0 draws from all tokens"),
        "top_p": (number(0, 1), "give 0 to 1; 1 draws from all tokens"),
        "min_p": (number(0, 1), "give 0 to 1; 0 draws from all tokens"),
    }
)
