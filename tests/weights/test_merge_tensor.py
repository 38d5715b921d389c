"""Blocks of rows against the whole matrix as PEFT adds to it, bit for bit, at odd sizes."""

import random

import pytest
import torch

from yayan.machine import one_thread_each
from yayan.weights import merge_tensor
from yayan.weights.merge_tensor import Pair, block_starts, changed_blocks


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("lengths", [False, True], ids=["lora", "dora"])
def test_blocks_and_threads_do_not_show(seed: int, lengths: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    rows, width, rank = (
        rng.randint(1, 1500),
        rng.choice([rng.randint(1, 900), 512]),
        rng.choice([1, 3, 64, 100]),
    )

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    weight, a_RI, b_OR = draw(rows, width), draw(rank, width), draw(rows, rank)
    lengths_O = draw(rows).abs() if lengths else None
    wanted = weight + (b_OR @ a_RI) * 0.7
    if lengths_O is not None:
        wanted *= (lengths_O / torch.linalg.norm(wanted, dim=1))[:, None]
    monkeypatch.setattr(merge_tensor, "BLOCK_NUMBERS", rng.choice([1, 100, 300]) * width)
    before = torch.get_num_threads()
    with one_thread_each() as workers:
        pair = Pair(a_RI, b_OR, 0.7, lengths_O)
        found = list(changed_blocks("x", weight, [pair], torch.float32, workers))
    assert torch.get_num_threads() == before
    assert torch.equal(torch.cat(found), wanted)


@pytest.mark.parametrize(("rows", "wanted"), [(1, [0]), (100, [0]), (128, [0, 64]), (191, [0, 64]), (0, [])])
def test_no_block_is_too_small(rows: int, wanted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_tensor, "BLOCK_NUMBERS", 10)
    assert block_starts(rows, 7) == wanted
