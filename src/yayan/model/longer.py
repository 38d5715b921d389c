"""More positions than a model was trained for: the rules of stretching it, in its configuration or for one request.

A request beyond the trained length gets frequencies that stay the same from its first token to its last, in steps of
1, 2, 4 and 8 times that length, so that what is read from a cache of keys is what a full pass computes. (Frequencies
that follow the length, as dynamic NTK's do, turn later keys otherwise than the cached ones.)
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from yayan.errors import UserError
from yayan.model.folder import STEPS
from yayan.model.rope import Rope, adaptive_alpha, dynamic_alpha, frequencies, head_width, ntk_theta, rope_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Method = Literal["pi", "ntk", "dynamic", "yarn", "llama3"]
Config = Mapping[str, Any]
Read = TypeVar("Read")
TYPES: Mapping[Method, str] = {
    "pi": "linear",
    "ntk": "default",
    "dynamic": "dynamic",
    "yarn": "yarn",
    "llama3": "llama3",
}
# Within the trained length, as Llama 3.1 has them
LLAMA3_TURNS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def positions_of(config: Config) -> int:
    return int(config["max_position_embeddings"])


def stretched(config: Config, to: int, method: Method, alpha: float | None = None) -> dict[str, Any]:
    """The configuration of a model for `to` positions; `alpha`: of NTK, by default 2 to / positions - 1.

    One that was stretched before goes on by its own method: the factors multiply, the trained length stays; NTK goes on
    top of PI as well. Raises UserError for another mixture, and for a length that is no stretch.
    """
    positions, rope = positions_of(config), rope_of(config)
    refuse_no_stretch(config, to, positions)
    refuse_mixture(rope["rope_type"], method)
    if method == "ntk":
        alpha = adaptive_alpha(to, positions) if alpha is None else alpha
        theta = ntk_theta(rope["rope_theta"], head_width(config), alpha)
        return with_rope(config, rope | {"rope_theta": theta}, to)
    if alpha is not None:
        raise UserError(f"{method} has no alpha", where="alpha", cure="leave it out, or choose --method ntk")
    growth = {"rope_type": TYPES[method], "factor": rope.get("factor", 1.0) * to / positions}
    if method in ("yarn", "llama3"):
        growth["original_max_position_embeddings"] = rope.get("original_max_position_embeddings", positions)
    turns = LLAMA3_TURNS if method == "llama3" else {}
    # transformers follows the length from max_position_embeddings on, so that it must stay the trained one
    return with_rope(config, turns | rope | growth, positions if method == "dynamic" else to)


def refuse_no_stretch(config: Config, to: int, positions: int) -> None:
    """UserError if there is nothing to stretch."""
    if to <= positions:
        what = f"{to} positions are no stretch, the model has {positions}"
        raise UserError(what, where="to", cure=f"give more than {positions}")
    window = window_of(config)
    if window and window < to:
        what = f"the model sees only {window} positions back, which stretching does not change"
        raise UserError(what, where="sliding_window", cure="take a model without a sliding window")
    if head_width(config) < 4:
        raise UserError(
            "a head of 2 has one frequency", where="head_dim", cure="take a model with wider heads"
        )


def window_of(config: Config) -> int | None:
    """How far back each position sees, itself among them; None where it sees all."""
    return config.get("sliding_window") if config.get("use_sliding_window", True) else None


def refuse_mixture(kind: str, method: Method) -> None:
    """UserError unless a model with RoPE of this type can be stretched by the method."""
    fits = kind == "default" or (kind == TYPES[method] != "dynamic") or (kind, method) == ("linear", "ntk")
    if not fits:
        before = next(name for name, type_ in TYPES.items() if type_ == kind)
        ways = {"pi": "pi or ntk", "yarn": "yarn", "llama3": "llama3"}
        cure = f"go on by {ways[before]}" if before in ways else "stretch the model that it was made from"
        what = f"the model was stretched by {before} before, and {method} does not go on top of it"
        raise UserError(what, where="method", cure=cure)


def with_rope(config: Config, rope: Rope, positions: int) -> dict[str, Any]:
    """A configuration with other settings, as `transformers` 5 and vLLM read them (`rope_parameters`), and their older
    versions as well (`rope_theta`, `rope_scaling`), which would otherwise go on without a word and without them.
    """
    new = {name: value for name, value in config.items() if name != "rope_scaling"}
    new |= {"max_position_embeddings": positions, "rope_theta": rope["rope_theta"], "rope_parameters": rope}
    if rope["rope_type"] != "default":
        new["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    return new


@dataclass(frozen=True)
class Step:
    """What a request is computed with: `times` the trained length, so many positions, these settings."""

    times: int
    positions: int
    rope: Rope


def choose_stretch(config: Config, tokens: int) -> Step:
    """The smallest step that holds a whole request, its prompt and all that it may generate.

    A model goes on by its own method: YaRN's and Llama 3's factor grows, all others get a larger base by the adaptive
    formula (dynamic NTK: by its own). Raises UserError for a request beyond the last step.
    """
    trained = positions_of(config)
    times = next((step for step in STEPS if tokens <= step * trained), None)
    if times is None:
        most = STEPS[-1] * trained
        what = f"{tokens} tokens are more than {most}, {STEPS[-1]} times what the model was trained for"
        raise UserError(what, where="context", cure=f"ask for at most {most}, prompt and answer together")
    rope, positions = rope_of(config), times * trained
    seen = min(window_of(config) or positions, positions)
    if seen <= trained:  # it never looks further back than in training
        return Step(times, positions, plain_within(rope))
    if rope["rope_type"] in ("yarn", "llama3"):
        return Step(times, positions, rope | {"factor": rope["factor"] * times})
    alpha = adaptive_alpha(positions, trained)
    if rope["rope_type"] == "dynamic":
        alpha = dynamic_alpha(rope["factor"], positions, trained)
    theta = ntk_theta(rope["rope_theta"], head_width(config), alpha)
    return Step(times, positions, plain_within(rope) | {"rope_theta": theta})


def first_stretch(config: Config) -> dict[str, Any]:
    """The configuration of the first step beyond the trained length, for an engine that turns all requests alike."""
    step = choose_stretch(config, positions_of(config) + 1)
    return with_rope(config, step.rope, step.positions)


def plain_within(rope: Rope) -> Rope:
    """Settings for the trained length: dynamic NTK is plain there."""
    if rope["rope_type"] != "dynamic":
        return rope
    return {"rope_type": "default", "rope_theta": rope["rope_theta"]}


def apply_rope(network: "PreTrainedModel", rope: Rope) -> None:
    """Let a loaded model turn its heads by other settings from now on; keys that were cached before are worth nothing.

    Raises ValueError for dynamic NTK, which has no frequencies of its own: `choose_stretch` fixes them.
    """
    if rope["rope_type"] == "dynamic":
        raise ValueError("dynamic NTK is not fixed")
    rotary = network.get_decoder().rotary_emb
    config = network.config.to_dict()
    freqs_K, attention = frequencies(rope, head_width(config), positions_of(config))
    rotary.rope_type, rotary.attention_scaling = rope["rope_type"], attention
    rotary.inv_freq.copy_(freqs_K)  # in place: its address may be compiled in


@contextmanager
def rope_applied(network: "PreTrainedModel", rope: Rope) -> Iterator[None]:
    """Other settings inside the block, the model's own again behind it."""
    rotary = network.get_decoder().rotary_emb
    before = {name: getattr(rotary, name) for name in ("rope_type", "attention_scaling")}
    freqs_K = rotary.inv_freq.clone()
    apply_rope(network, rope)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(rotary, name, value)
        rotary.inv_freq.copy_(freqs_K)


def by_turning(
    network: "PreTrainedModel", items: Sequence[Read], tokens_of: Callable[[Read], int]
) -> Iterator[list[Read]]:
    """What is to be read, that of one step together, the model turned so until the next is asked for."""
    config = network.config.to_dict()
    by_step: dict[int, list[Read]] = defaultdict(list)
    for item in items:
        by_step[choose_stretch(config, tokens_of(item)).times].append(item)
    for alike in by_step.values():
        with rope_applied(network, choose_stretch(config, tokens_of(alike[0])).rope):
            yield alike
