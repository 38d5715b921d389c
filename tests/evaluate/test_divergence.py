"""Divergence from a reference on the disk: against plain softmaxes, also where the disk holds a part only."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from yayan.evaluate import divergence
from yayan.evaluate.divergence import positions_kept, read_text, reference_file, summarise
from yayan.model.score import Window, windows_of

ROWS = 70
IDS = [[0, *range(1, 30)], [0, 5], [0, *range(40, 60)]]
STARTS, COUNTS = [0, 29, 30], [29, 1, 20]


class Loud:
    """A reader whose logits are random, and louder by a factor: deliberately in another order and in odd parts."""

    def __init__(self, seed: int, part: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits_TV = 3 * torch.randn(50, ROWS, generator=generator)
        self.part = part

    def logits(self, windows: list[Window]) -> Iterator[tuple[Window, int, torch.Tensor]]:
        for window in reversed(windows):
            first = STARTS[window.sequence] + window.offset - 1
            for at in range(0, window.count, self.part):
                yield window, at, self.logits_TV[first : first + window.count][at : at + self.part].clone()


@pytest.mark.parametrize("kept", [50, 29, 7])
@pytest.mark.parametrize("part", [64, 3])
def test_it_is_what_the_formula_says(
    tmp_path: Path, kept: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence, "ROWS", 5)
    windows = windows_of(IDS, context=8, stride=3)
    base, other = Loud(1, part), Loud(2, part)
    done: list[int] = []
    written = reference_file(tmp_path / "f32", kept, ROWS, new=True)
    first = read_text(base, windows, STARTS, written, keep=True, on_read=done.append)  # type: ignore[arg-type]
    assert not first.divergence_K.any()
    stored = reference_file(tmp_path / "f32", kept, ROWS, new=False)
    assert np.array_equal(stored, base.logits_TV[:kept].numpy())
    read = read_text(other, windows, STARTS, stored, keep=False, on_read=done.append)  # type: ignore[arg-type]
    assert sum(done) == 2 * sum(COUNTS)

    p, q = base.logits_TV.double().softmax(-1), other.logits_TV.double().softmax(-1)
    wanted = (p * (p / q).log()).sum(-1)[:kept].numpy()
    assert read.divergence_K == pytest.approx(wanted, abs=1e-9)
    same = (p.argmax(-1) == q.argmax(-1))[:kept].numpy()
    assert np.array_equal(read.same_K, same)
    targets = torch.tensor([token for ids in IDS for token in ids[1:]])
    assert read.nats_N == pytest.approx(-q.gather(1, targets[:, None])[:, 0].log().numpy(), rel=1e-5)

    figures = summarise(read, STARTS, COUNTS)
    assert figures["kl_mean"] == pytest.approx(wanted.mean())
    assert figures["kl_999"] == pytest.approx(np.quantile(wanted, 0.999))
    assert figures["top1_agreement"] == pytest.approx(same.mean())
    interval = figures["kl_interval"]
    assert interval is None if kept <= 29 else interval[0] <= figures["kl_mean"] <= interval[1]  # type: ignore[index]


def test_equal_models_do_not_diverge(tmp_path: Path) -> None:
    windows = windows_of(IDS, context=8, stride=3)
    written = reference_file(tmp_path / "f32", 50, ROWS, new=True)
    for keep in (True, False):
        read = read_text(Loud(1, 4), windows, STARTS, written, keep=keep, on_read=lambda _: None)  # type: ignore[arg-type]
    assert read.same_K.all()
    assert np.abs(read.divergence_K).max() < 1e-12


def test_no_more_is_kept_than_the_disk_has_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert positions_kept([10, 2000], 55_296, tmp_path) == [10, 2000]
    monkeypatch.setattr(divergence, "LARGEST_BYTES", 100 * 4 * 55_296)
    assert positions_kept([10, 2000], 55_296, tmp_path) == [10, 50]
    monkeypatch.setattr(divergence, "LARGEST_BYTES", 0)
    assert positions_kept([10, 2000], 55_296, tmp_path) == [1, 1]
