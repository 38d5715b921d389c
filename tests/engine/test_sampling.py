"""Options of generation: what means nothing is refused, and a model's own defaults are taken."""

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from yayan.engine.sampling import RULES, Sampling
from yayan.errors import UserError

NONSENSE: list[tuple[str, Any]] = [
    ("max_tokens", 0),
    ("max_tokens", 1.5),
    ("max_tokens", True),
    ("stop", ("a", "")),
    ("stop", "abc"),
    ("stop", ["a"]),
    ("seed", -1),
    ("seed", 1 << 32),
    ("seed", (1 << 32) - 1),
    ("logprobs", -1),
    ("logprobs", 21),
    ("guidance_scale", -0.5),
    ("guidance_scale", math.nan),
    ("negative_prompt", 3),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {1: math.inf}),
    ("logit_bias", {"1": 1.0}),
    ("logit_bias", [1]),
    ("repetition_penalty", 0),
    ("repetition_penalty", -1.0),
    ("presence_penalty", math.inf),
    ("frequency_penalty", math.nan),
    ("temperature", -1),
    ("temperature", math.inf),
    ("temperature", "1"),
    ("temperature", None),
    ("top_k", -1),
    ("top_k", 2.0),
    ("top_p", 1.01),
    ("top_p", -0.1),
    ("min_p", 2),
    ("min_p", math.nan),
]


@pytest.mark.parametrize(("name", "value"), NONSENSE)
def test_what_means_nothing_is_named(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^{name} .* means nothing: give "):
        Sampling(**{name: value}).check()


def test_every_option_has_a_rule_that_its_default_keeps_and_a_case_above() -> None:
    Sampling().check()
    assert {item.name for item in fields(Sampling)} == set(RULES) == {name for name, _ in NONSENSE}


def test_the_ends_of_the_ranges_are_possible() -> None:
    Sampling(top_p=0, min_p=1, temperature=0, top_k=1, seed=0, logprobs=20, guidance_scale=0).check()
    Sampling(logit_bias={0: -100}, stop=("\n", "。"), negative_prompt="", guidance_scale=1.5).check()


def test_a_negative_prompt_without_guidance_is_refused() -> None:
    with pytest.raises(UserError, match="negative_prompt has no effect"):
        Sampling(negative_prompt="rude").check()


def test_unknown_options_do_not_exist() -> None:
    with pytest.raises(TypeError, match="typical_p"):
        Sampling(typical_p=0.5)  # type: ignore[call-arg]


def config(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return folder


def test_defaults_of_a_model(tmp_path: Path) -> None:
    assert Sampling.for_model(tmp_path) == Sampling()
    said = {
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": None,
        "max_new_tokens": 77,
        "do_sample": True,
        "eos_token_id": 2,
    }
    assert Sampling.for_model(config(tmp_path, said)) == Sampling(temperature=0.6, top_p=0.9, max_tokens=77)
    assert Sampling.for_model(config(tmp_path, said | {"do_sample": False})).greedy


def test_broken_defaults_of_a_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"generation_config.json cannot be used, temperature -1 means nothing"
    ):
        Sampling.for_model(config(tmp_path, {"temperature": -1}))
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        Sampling.for_model(tmp_path)
