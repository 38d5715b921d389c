from pathlib import Path

import pytest
import torch

from yayan.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from yayan.train.optim import Group, make_optimizer, rate_factor, set_rates


def test_the_schedule_rises_and_falls() -> None:
    factors = [rate_factor(step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert all(a > b for a, b in zip(factors[10:], factors[11:], strict=False))
    assert factors[55] == pytest.approx(0.55, abs=0.01)
    assert rate_factor(100, 100, 10) == pytest.approx(0.1)
    assert rate_factor(0, 1, 0) == 1.0


def test_groups_keep_their_own_rates_and_vectors_do_not_decay() -> None:
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    rows = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = make_optimizer(
        {"body": Group({"m": matrix, "v": vector}, 0.1, decay=0.5), "rows": Group({"r": rows}, 0.01)}
    )
    set_rates(optimizer, 0.5)
    for value in (matrix, vector, rows):
        value.grad = torch.zeros_like(value)
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 1 - 0.05 * 0.5))
    assert torch.equal(vector.detach(), torch.ones(2))
    assert torch.equal(rows.detach(), torch.ones(3, 2))


def test_a_checkpoint_gives_back_the_same_bits(tmp_path: Path) -> None:
    def start() -> tuple[dict[str, torch.nn.Parameter], torch.optim.AdamW]:
        torch.manual_seed(0)
        parameters = {"a.b": torch.nn.Parameter(torch.randn(5, 3)), "c": torch.nn.Parameter(torch.randn(2))}
        return parameters, make_optimizer({"body": Group(parameters, 0.1)})

    def step(parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.AdamW) -> None:
        for value in parameters.values():
            value.grad = value.detach() ** 2 + 0.1
        optimizer.step()

    parameters, optimizer = start()
    for number in range(1, 6):
        step(parameters, optimizer)
        if number in (2, 3):
            save_checkpoint(tmp_path, parameters, optimizer, {"step": number, "data": {"sequences": [4]}})
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"], "the older one is gone"
    resumed, its_optimizer = start()
    assert load_checkpoint(found, resumed, its_optimizer) == {"step": 3, "data": {"sequences": [4]}}
    for _ in range(2):
        step(resumed, its_optimizer)
    for name, value in parameters.items():
        assert torch.equal(resumed[name], value)
