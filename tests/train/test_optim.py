from pathlib import Path

import pytest
import torch

from yayan.train import optim
from yayan.train.checkpoint import (
    latest_checkpoint,
    load_best,
    load_checkpoint,
    save_best,
    save_checkpoint,
)
from yayan.train.optim import Group, Rates, make_optimizers, set_rates

Optimizers = list[torch.optim.Optimizer]


def test_the_cosine_rises_and_falls() -> None:
    rates = Rates(100, 10)
    factors = [rates.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert all(a > b for a, b in zip(factors[10:], factors[11:], strict=False))
    assert factors[55] == pytest.approx(0.55, abs=0.01)
    assert rates.factor(100) == pytest.approx(0.1)
    assert Rates(1, 0).factor(0) == 1.0


def test_wsd_is_flat_until_its_end() -> None:
    rates = Rates(100, 10, "wsd", decay=0.3)
    factors = [rates.factor(step) for step in range(100)]
    assert factors[9:71] == [1.0] * 62
    falls = [a - b for a, b in zip(factors[70:], factors[71:], strict=False)]
    assert falls == pytest.approx([0.9 / 30] * 29)
    assert rates.factor(100) == pytest.approx(0.1)
    late = Rates(10, 5, "wsd", decay=0.9)
    assert [late.factor(step) for step in range(5)] == [0.2, 0.4, 0.6, 0.8, 1.0], "the warm-up is not cut"


def test_groups_keep_their_own_rates_and_vectors_do_not_decay() -> None:
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    rows = torch.nn.Parameter(torch.ones(3, 2))
    optimizers = make_optimizers(
        {"body": Group({"m": matrix, "v": vector}, 0.1, decay=0.5), "rows": Group({"r": rows}, 0.01)}
    )
    set_rates(optimizers, 0.5)
    for value in (matrix, vector, rows):
        value.grad = torch.zeros_like(value)
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 1 - 0.05 * 0.5))
    assert torch.equal(vector.detach(), torch.ones(2))
    assert torch.equal(rows.detach(), torch.ones(3, 2))


@pytest.mark.parametrize("width", [5, 64])
def test_a_sparse_gradient_steps_as_a_dense_one(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are named twice, or not at all, and blocks that do not divide; a large gradient is cut alike."""
    monkeypatch.setattr(optim, "DENSE_BYTES", 7 * width * 4)
    torch.manual_seed(1)
    start = torch.randn(23, width)
    sides = []
    for _ in range(2):
        rows, other = torch.nn.Parameter(start.clone()), torch.nn.Parameter(torch.ones(3, 2))
        groups = {"rows": Group({"r": rows}, 0.1, decay=0.01), "body": Group({"o": other}, 0.1)}
        sides.append((rows, other, make_optimizers(groups)))
    for step in range(6):
        ids = torch.randint(0, 23, (9,))
        values = torch.randn(9, width) * 10 ** (step - 3)
        gradient = torch.sparse_coo_tensor(ids[None], values, (23, width)).coalesce()
        norms = []
        for (rows, other, optimizers), dense in zip(sides, (False, True), strict=True):
            rows.grad = gradient.to_dense() if dense else gradient.clone()
            other.grad = torch.full_like(other, 1e-4)
            norms.append(optim.clip_gradients([rows, other]))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    (sparse, other, its), (dense_rows, dense_other, theirs) = sides
    torch.testing.assert_close(sparse, dense_rows, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(other, dense_other)
    moments, wanted = its[0].state[sparse], theirs[0].state[dense_rows]
    assert moments.keys() == wanted.keys()
    assert moments["step"] == wanted["step"] == 6
    torch.testing.assert_close(moments["exp_avg_sq"], wanted["exp_avg_sq"], rtol=1e-5, atol=0)


def test_a_gradient_is_cut_to_the_norm() -> None:
    values = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    values[0].grad, values[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    assert optim.clip_gradients(values) == pytest.approx(5)
    torch.testing.assert_close(values[1].grad, torch.tensor([0.0, 0.8]))
    assert optim.clip_gradients(values) == pytest.approx(1)
    assert optim.clip_gradients([]) == 0


def test_muon_steps_the_matrices_of_its_group_orthogonally_and_nothing_else() -> None:
    matrix, vector = torch.nn.Parameter(torch.zeros(8, 8)), torch.nn.Parameter(torch.zeros(8))
    rows = torch.nn.Parameter(torch.zeros(9, 8))
    optimizers = make_optimizers(
        {"body": Group({"m": matrix, "v": vector}, 0.1, muon=True), "rows": Group({"r": rows}, 0.1)}
    )
    assert [type(optimizer).__name__ for optimizer in optimizers] == ["AdamW", "Muon"]
    torch.manual_seed(0)
    for value in (matrix, vector, rows):
        value.grad = torch.randn_like(value) * torch.arange(1, 9)  # columns of very unequal size
    for optimizer in optimizers:
        optimizer.step()
    singular = torch.linalg.svdvals(matrix.detach()) / (0.1 * 0.2 * 8**0.5)
    assert singular.min() > 0.5
    assert singular.max() < 1.5
    assert torch.allclose(rows.detach().abs(), torch.full((9, 8), 0.1), rtol=1e-3), (
        "AdamW: a step of the rate"
    )


@pytest.mark.parametrize("muon", [False, True])
def test_a_checkpoint_gives_back_the_same_bits(tmp_path: Path, muon: bool) -> None:
    def start() -> tuple[dict[str, torch.nn.Parameter], Optimizers]:
        torch.manual_seed(0)
        parameters = {"a.b": torch.nn.Parameter(torch.randn(5, 3)), "c": torch.nn.Parameter(torch.randn(2))}
        return parameters, make_optimizers({"body": Group(parameters, 0.1, muon=muon)})

    def step(parameters: dict[str, torch.nn.Parameter], optimizers: Optimizers) -> None:
        for value in parameters.values():
            value.grad = value.detach() ** 2 + 0.1
        for optimizer in optimizers:
            optimizer.step()

    parameters, optimizers = start()
    for number in range(1, 7):
        step(parameters, optimizers)
        if number in (2, 3, 4):
            state = {"step": number, "data": {"sequences": [4]}}
            save_checkpoint(tmp_path, parameters, optimizers, state, keep=2)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000003", "step-00000004"], "the older one is gone"
    resumed, its_optimizers = start()
    assert load_checkpoint(found, resumed, its_optimizers) == {"step": 4, "data": {"sequences": [4]}}
    for _ in range(2):
        step(resumed, its_optimizers)
    for name, value in parameters.items():
        assert torch.equal(resumed[name], value)


def test_the_best_parameters_come_back(tmp_path: Path) -> None:
    parameters = {"a": torch.nn.Parameter(torch.ones(3))}
    save_best(tmp_path, parameters)
    parameters["a"].data += 1
    load_best(tmp_path, parameters)
    assert torch.equal(parameters["a"].detach(), torch.ones(3))
