"""Beyond the trained length: rules, steps, and a cache that holds what a full pass computes."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from yayan.errors import UserError
from yayan.model.longer import apply_rope, choose_stretch, rope_applied, stretched
from yayan.model.rope import frequencies, head_width, ntk_theta, rope_of

TRAINED = 64
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": TRAINED,
    "initializer_range": 0.25,  # wide, so that what a head attends to counts
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    "yarn": {"rope_parameters": YARN},
}


def make(**settings: Any) -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return LlamaForCausalLM(LlamaConfig(**(CONFIG | settings))).eval()


def ids_of(length: int) -> torch.Tensor:
    return torch.randint(61, (1, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def cached_logits(network: LlamaForCausalLM, ids_BT: torch.Tensor, prompt: int = 7) -> torch.Tensor:
    """A prompt at once, then token by token."""
    cache, parts = DynamicCache(config=network.config), []
    for start, end in [(0, prompt), *((i, i + 1) for i in range(prompt, ids_BT.shape[1]))]:
        parts.append(network(ids_BT[:, start:end], past_key_values=cache, use_cache=True).logits)
    return torch.cat(parts, dim=1)


@torch.no_grad()
def cache_error(network: LlamaForCausalLM, ids_BT: torch.Tensor) -> float:
    full_BTV = network(ids_BT, use_cache=False).logits
    assert float(full_BTV.std()) > 1, "flat logits prove nothing"
    return float((cached_logits(network, ids_BT) - full_BTV).abs().max())


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("times", [0.9, 1.1, 1.6, 3])
def test_a_cache_holds_what_a_full_pass_computes(settings: str, times: float) -> None:
    network, ids_BT = make(**SETTINGS[settings]), ids_of(int(times * TRAINED))
    step = choose_stretch(CONFIG | SETTINGS[settings], ids_BT.shape[1])
    with rope_applied(network, step.rope):
        assert cache_error(network, ids_BT) < 1e-4


@pytest.mark.parametrize(("times", "consistent"), [(0.9, True), (1.1, False), (1.6, False), (3, False)])
def test_dynamic_ntk_of_transformers_does_not(times: float, consistent: bool) -> None:
    error = cache_error(make(**SETTINGS["dynamic"]), ids_of(int(times * TRAINED)))
    assert error < 1e-4 if consistent else error > 0.05


def test_at_a_steps_full_length_it_is_dynamic_ntk() -> None:
    """Where the request fills its step, a full pass computes the same as `transformers` does with factor 2."""
    theirs, ours, ids_BT = make(**SETTINGS["dynamic"]), make(), ids_of(2 * TRAINED)
    apply_rope(ours, choose_stretch(CONFIG, 2 * TRAINED).rope)
    torch.testing.assert_close(ours(ids_BT).logits, theirs(ids_BT, use_cache=False).logits)


@pytest.mark.parametrize(
    ("tokens", "times"), [(1, 1), (64, 1), (65, 2), (128, 2), (129, 4), (256, 4), (257, 8), (512, 8)]
)
def test_steps(tokens: int, times: int) -> None:
    step = choose_stretch(CONFIG, tokens)
    assert (step.times, step.positions) == (times, times * TRAINED)
    assert step.rope == {"rope_type": "default", "rope_theta": ntk_theta(1e4, 10, 2 * times - 1)}


def test_a_model_goes_on_by_its_own_method() -> None:
    linear = choose_stretch(CONFIG | SETTINGS["linear"], 200).rope
    assert linear == {"rope_type": "linear", "factor": 2.0, "rope_theta": ntk_theta(1e4, 10, 7)}
    assert choose_stretch(CONFIG | SETTINGS["yarn"], 200).rope == YARN | {"factor": 8.0}
    dynamic = choose_stretch(CONFIG | SETTINGS["dynamic"], 200).rope
    assert dynamic == {"rope_type": "default", "rope_theta": ntk_theta(1e4, 10, 2 * 4 - 1)}


def test_a_sliding_window_needs_no_stretch() -> None:
    for window in (16, 64):
        windowed = CONFIG | {"model_type": "mistral", "sliding_window": window}
        assert choose_stretch(windowed, 500).rope["rope_theta"] == 1e4
    for unused in ({"sliding_window": None}, {"sliding_window": 16, "use_sliding_window": False}):
        assert choose_stretch(CONFIG | unused, 500).rope["rope_theta"] > 1e4


def test_beyond_the_last_step_is_one_sentence() -> None:
    with pytest.raises(UserError, match="513 tokens are more than 512, 8 times.*at most 512"):
        choose_stretch(CONFIG, 513)


@pytest.mark.parametrize("settings", SETTINGS)
def test_behind_the_block_the_model_is_its_own_again(settings: str) -> None:
    network, ids_BT = make(**SETTINGS[settings]), ids_of(50)
    before = network(ids_BT).logits
    with rope_applied(network, choose_stretch(CONFIG | SETTINGS[settings], 500).rope):
        assert not torch.allclose(network(ids_BT).logits, before, atol=0.1)
    assert torch.equal(network(ids_BT).logits, before)
    long_BT = ids_of(150)
    assert torch.equal(network(long_BT).logits, make(**SETTINGS[settings])(long_BT).logits)


def test_what_has_no_frequencies_of_its_own_cannot_be_applied() -> None:
    with pytest.raises(ValueError, match="not fixed"):
        apply_rope(make(), rope_of(CONFIG | SETTINGS["dynamic"]))


ONCE: dict[str, tuple[dict[str, Any], int]] = {
    "pi": ({"rope_type": "linear", "factor": 4.0}, 256),
    "ntk": ({"rope_type": "default", "rope_theta": ntk_theta(1e4, 10, 7)}, 256),
    "dynamic": ({"rope_type": "dynamic", "factor": 4.0}, TRAINED),
    "yarn": ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
        256,
    ),
}


@pytest.mark.parametrize("method", ONCE)
def test_a_configuration_says_the_same_in_its_newer_and_in_its_older_form(method: Any) -> None:
    rope, positions = ONCE[method]
    new = stretched(CONFIG, 256, method)
    assert rope_of(new) == {"rope_theta": 1e4} | rope
    assert new["max_position_embeddings"] == positions
    older = {name: value for name, value in new.items() if name != "rope_parameters"}
    newer = {name: value for name, value in new.items() if name not in ("rope_theta", "rope_scaling")}
    ours_K, attention = frequencies(rope_of(new), head_width(new), positions)
    for form in (new, older, newer):
        rotary = LlamaForCausalLM(LlamaConfig(**form)).model.rotary_emb
        torch.testing.assert_close(rotary.inv_freq, ours_K, rtol=1e-6, atol=0)
        assert rotary.attention_scaling == pytest.approx(attention)


@pytest.mark.parametrize("method", ["pi", "ntk", "yarn", "llama3"])
def test_twice_is_once_by_the_product(method: Any) -> None:
    """Factors multiply; of NTK the alphas, so that two stretches by 2 are not one by 4: 3 times 3 and 7."""
    alpha = 9.0 if method == "ntk" else None
    twice, once = (
        stretched(stretched(CONFIG, 128, method), 256, method),
        stretched(CONFIG, 256, method, alpha),
    )
    assert twice["max_position_embeddings"] == once["max_position_embeddings"]
    for found, wanted in zip(rope_of(twice).values(), rope_of(once).values(), strict=True):
        assert found == pytest.approx(wanted) if isinstance(wanted, float) else found == wanted


def test_ntk_goes_on_top_of_pi() -> None:
    both = rope_of(stretched(stretched(CONFIG, 256, "pi"), 512, "ntk"))
    assert both == {"rope_type": "linear", "factor": 4.0, "rope_theta": ntk_theta(1e4, 10, 3)}


@pytest.mark.parametrize(
    ("before", "method", "sentence"),
    [
        ("pi", "yarn", "stretched by pi before, and yarn .*go on by pi or ntk"),
        ("yarn", "pi", "stretched by yarn before, and pi .*go on by yarn"),
        ("yarn", "ntk", "go on by yarn"),
        ("llama3", "dynamic", "go on by llama3"),
        ("dynamic", "dynamic", "stretch the model that it was made from"),
        ("dynamic", "pi", "stretch the model that it was made from"),
    ],
)
def test_other_mixtures_are_refused(before: Any, method: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        stretched(stretched(CONFIG, 256, before), 512, method)


@pytest.mark.parametrize("to", [-1, 0, 63, 64])
def test_no_stretch_is_refused(to: int) -> None:
    with pytest.raises(UserError, match=f"{to} positions are no stretch, the model has 64"):
        stretched(CONFIG, to, "pi")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sliding_window": 32}, "sees only 32 positions back"),
        ({"sliding_window": 64}, "sees only 64 positions back"),
        ({"head_dim": 2}, "one frequency"),
        ({"rope_scaling": {"type": "longrope"}}, "longrope is not supported"),
    ],
)
def test_models_that_cannot_be_stretched(changes: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        stretched(CONFIG | changes, 256, "ntk")


def test_alpha_is_of_ntk() -> None:
    assert rope_of(stretched(CONFIG, 256, "ntk", 4.0))["rope_theta"] == ntk_theta(1e4, 10, 4.0)
    with pytest.raises(UserError, match="yarn has no alpha"):
        stretched(CONFIG, 256, "yarn", 4.0)
