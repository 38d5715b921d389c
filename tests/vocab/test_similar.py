"""Similarity out of a corpus: each step against a plain computation in float64, and what it is for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from yayan.vocab import similar
from yayan.vocab.similar import count_neighbours, lay_out, reduce, similar_mixes, sparsemax, to_ppmi


def random_documents(seed: int, size: int, lengths: list[int]) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [list(np.minimum(rng.zipf(1.5, length) - 1, size - 1)) for length in lengths]


def naive_counts(documents: list[list[int]], rows: list[int], columns: list[int]) -> np.ndarray:
    counts = np.zeros((len(rows), len(columns)))
    for ids in documents:
        for i, token in enumerate(ids):
            for j in range(max(i - similar.WINDOW, 0), min(i + similar.WINDOW + 1, len(ids))):
                if i != j and token in rows and ids[j] in columns:
                    counts[rows.index(token), columns.index(ids[j])] += 1
    return counts


@pytest.mark.parametrize("chunk", [1, 3, 7, 1 << 20])
def test_neighbours_are_those_of_a_double_loop(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Whatever the chunks; the window ends with the document."""
    monkeypatch.setattr(similar, "CHUNK_TOKENS", chunk)
    documents = random_documents(0, 13, [1, 2, 11, 0, 37])
    rows, columns = [0, 2, 3, 5, 9, 12], [0, 1, 4]
    found = count_neighbours(lay_out(documents), np.array(rows), np.array(columns), 13)
    assert found.numpy().tolist() == naive_counts(documents, rows, columns).tolist()
    assert found.sum() > 0


def test_ppmi_is_that_of_a_double_loop() -> None:
    counts = np.random.default_rng(1).poisson(1.2, (9, 5)).astype(float)
    counts[4], counts[:, 3] = 0, 0
    found = to_ppmi(torch.tensor(counts, dtype=torch.float32))
    smooth = {c: counts[:, c].sum() ** similar.SMOOTHING for c in range(5) if counts[:, c].sum()}
    for r in range(9):
        for c in range(5):
            wanted = 0.0
            if counts[r, c]:
                p_row = counts[r].sum() / counts.sum()
                p_column = smooth[c] / sum(smooth.values())
                wanted = max(0.0, np.log(counts[r, c] / counts.sum() / (p_row * p_column)))
            assert found[r, c].item() == pytest.approx(wanted, abs=1e-5)
    assert found.max() > 0.5


def test_vectors_have_the_cosines_of_the_exact_decomposition() -> None:
    """Of a matrix that the kept dimensions hold whole: U S^(1/2) from float64, up to the signs."""
    generator = torch.Generator().manual_seed(0)
    matrix = (torch.rand(61, 7, generator=generator) @ torch.rand(7, 47, generator=generator)).float()
    matrix[3] = 0
    u, s, _ = torch.linalg.svd(matrix.double(), full_matrices=False)
    wanted = F.normalize(u[:, :7] * s[:7].sqrt(), dim=1)
    wanted[3] = 0
    found = reduce(matrix, seed=0).double()
    torch.testing.assert_close(found @ found.T, wanted @ wanted.T, rtol=0, atol=1e-3)
    assert torch.equal(found, reduce(matrix, seed=0).double())
    assert (found[3] == 0).all()


@pytest.mark.parametrize("width", [1, 2, 7, 33])
@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 20.0])
def test_sparsemax_is_the_projection_onto_the_simplex(width: int, scale: float) -> None:
    """Found by bisection of the threshold; no other point of the simplex that was tried is nearer."""
    scores = scale * torch.randn(
        19, width, generator=torch.Generator().manual_seed(width), dtype=torch.float64
    )
    scores[0] = scores[0, 0]
    found = sparsemax(scores)
    low, high = scores.amin(1, keepdim=True) - 1, scores.amax(1, keepdim=True)
    for _ in range(80):
        middle = (low + high) / 2
        over = (scores - middle).clamp(min=0).sum(1, keepdim=True) > 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    torch.testing.assert_close(found, (scores - low).clamp(min=0), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.sum(1), torch.ones(19, dtype=torch.float64))
    others = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(width), 500))
    nearest = ((scores[:, None] - others) ** 2).sum(-1).amin(1)
    assert (((scores - found) ** 2).sum(1) <= nearest + 1e-12).all()


def used_alike(repeats: int) -> list[list[int]]:
    """Tokens 0-3 stand among 8-11, 4-7 among 12-15; 20 (new) is used as 0-3 are, 21 (new) as 4-7, 22 (new) once."""
    rng = np.random.default_rng(5)
    documents = []
    for _ in range(repeats):
        side = int(rng.integers(2))
        words = [4 * side, 4 * side + 1, 4 * side + 2, 4 * side + 3, 20 + side]
        around = range(8 + 4 * side, 12 + 4 * side)
        documents.append([int(rng.choice(words if i % 2 else around)) for i in range(9)])
    return [*documents, [8, 22, 9]]


def test_a_new_token_is_mixed_of_old_ones_that_are_used_alike() -> None:
    mixes = similar_mixes(used_alike(600), 20, 23, seed=0)
    assert set(mixes) == {20, 21}
    for new, (ids, weights) in mixes.items():
        assert weights.sum() == pytest.approx(1, abs=1e-5)
        assert (weights > 0).all()
        assert (ids < 20).all()
        alike = range(4 * (new - 20), 4 * (new - 20) + 4)
        near = [*alike, *range(alike.start + 8, alike.stop + 8)]
        assert weights[np.isin(ids, alike)].sum() > 0.6
        assert weights[np.isin(ids, near)].sum() > 0.99


def test_the_same_documents_give_the_same_mixes() -> None:
    first, second = (similar_mixes(used_alike(50), 20, 23, seed=0) for _ in range(2))
    assert first.keys() == second.keys()
    for number in first:
        for one, other in zip(first[number], second[number], strict=True):
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("documents", [[], [[]], [[1, 2, 3]], [[21] * 50], [[1] * 50]])
def test_documents_that_show_nothing_give_no_mixes(documents: list[list[int]]) -> None:
    assert similar_mixes(documents, 20, 23, seed=0) == {}


def test_a_mix_is_of_the_nearest_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar, "NEAREST", 2)
    monkeypatch.setattr(similar, "BLOCK_ROWS", 3)
    mixes = similar_mixes(used_alike(600), 20, 23, seed=0)
    assert all(len(ids) <= 2 for ids, _ in mixes.values())
