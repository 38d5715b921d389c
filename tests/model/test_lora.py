"""Our LoRA layer against PEFT's and against autograd, and that it is the one that is used."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners import lora

from tests.tiny import make_base
from yayan.model.adapters import add_lora, lora_config
from yayan.model.ends import TwoEnds
from yayan.model.load import load_model
from yayan.model.lora import LoraLinear, lora_linear


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 7)] * 4),
    bias=st.booleans(),
    x_trains=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_output_and_gradients_equal_autograd_in_float64(
    sizes: tuple[int, int, int, int], bias: bool, x_trains: bool, seed: int
) -> None:
    n, i, o, r = sizes
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x, w, b, a, up = normal(2, n, i), normal(o, i), normal(o) if bias else None, normal(r, i), normal(o, r)
    trained = [a.requires_grad_(), up.requires_grad_(), *([x.requires_grad_()] if x_trains else [])]
    plain = torch.nn.functional.linear(x, w, b) + 0.7 * (x @ a.T @ up.T)
    ours = lora_linear(x, w, b, a, up, 0.7)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    toward = normal(2, n, o)
    for got, want in zip(
        torch.autograd.grad(ours, trained, toward), torch.autograd.grad(plain, trained, toward), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "settings_",
    [{}, {"rslora": True}, {"dora": True}, {"dropout": 0.5}, {"targets": ["q_proj", "v_proj"]}],
)
def test_a_model_with_it_equals_one_with_pefts_layers(tmp_path, settings_: dict) -> None:  # type: ignore[no-untyped-def]
    size = make_base(tmp_path / "base")
    config = lora_config(**{"rank": 4, "alpha": 6, "dropout": 0.0, **settings_})
    ids = torch.arange(30)[None]
    results = []
    for ours in (True, False):
        ends = TwoEnds(load_model(tmp_path / "base"), size)
        pairs = add_lora(ends, config, seed=1)
        layers = [module for module in ends.model.modules() if isinstance(module, lora.Linear)]
        assert layers
        assert all(type(layer) is LoraLinear for layer in layers)
        if not ours:
            for layer in layers:
                layer.__class__ = lora.Linear
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for value in pairs.values():
                value.add_(0.2 * torch.randn(value.shape, generator=generator))
        ends.train()
        torch.manual_seed(3)
        loss = ends.loss(ids, ids, torch.arange(30)[None])
        loss.backward()
        results.append([loss, *(value.grad for value in pairs.values())])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
