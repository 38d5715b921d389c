"""Which old tokens are used like a new one: vectors out of the corpus, and each new token as a sparse mix of old ones.

The idea is FOCUS (Dobler and de Melo, 2023, arXiv:2305.14481): the cosines between static vectors of a new token and
those of the old tokens go through sparsemax, and the result weighs the old tokens' rows. The vectors are not learnt by
a network but counted: how often a token stands near each of the most frequent ones, as positive pointwise mutual
information, reduced by a truncated singular value decomposition (Levy, Goldberg and Dagan, 2015, TACL 3, 211-225).

Legend: T tokens of the sample, R tokens that get a vector, C contexts, K dimensions, N new tokens, M old ones.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from yayan.progress import Progress

LEAST_COUNT = 5  # a token seen less often gets no vector: what stands near it is chance
WINDOW = 4  # tokens to each side; narrow windows group what is used alike, wide ones what is of one topic
CONTEXTS = 2000  # the most frequent tokens; the matrix of counts takes 8 kB for each token that has a vector
SMOOTHING = (
    0.75  # exponent of the contexts' frequencies, so that rare contexts do not win (Levy et al., 2015)
)
DIMENSIONS = 128
OVERSAMPLING = 16  # more columns than are kept, for the randomised decomposition (arXiv:0909.4061)
NEAREST = 256  # old tokens that can be in a mix: bounds its memory and the work on its rows
CHUNK_TOKENS = 1 << 20
BLOCK_ROWS = 128

Mix = tuple[np.ndarray, np.ndarray]  # ids int64, weights float32 above 0 that sum to 1


def similar_mixes(documents: Iterable[Sequence[int]], old_size: int, size: int, seed: int) -> dict[int, Mix]:
    """For each new token (`old_size` and above) that the documents hold often enough, old tokens that are used alike.

    `documents`: ids of the larger tokenizer, which has `size` of them. Deterministic on one machine with one number of
    threads. Empty where the documents hold no old token often enough.
    """
    ids_T = lay_out(documents)
    counts_S = np.bincount(ids_T[ids_T >= 0], minlength=size)
    ids_R = np.flatnonzero(counts_S >= LEAST_COUNT)
    if not len(ids_R):
        return {}
    frequent_R = np.argsort(-counts_S[ids_R], kind="stable")
    ids_C = np.sort(ids_R[frequent_R[:CONTEXTS]])
    vectors_RK = reduce(to_ppmi(count_neighbours(ids_T, ids_R, ids_C, size)), seed)
    usable_R = vectors_RK.norm(dim=1).numpy() > 0
    old_R, new_R = (ids_R < old_size) & usable_R, (ids_R >= old_size) & usable_R
    if not old_R.any():
        return {}
    mixes = mix_nearest(vectors_RK[torch.from_numpy(new_R)], vectors_RK[torch.from_numpy(old_R)])
    old_ids = ids_R[old_R]
    return {
        int(number): (old_ids[places], weights)
        for number, (places, weights) in zip(ids_R[new_R], mixes, strict=True)
    }


def lay_out(documents: Iterable[Sequence[int]]) -> np.ndarray:
    """Documents back to back, int32 [T], with WINDOW times -1 after each, so that no window reaches across."""
    gap = np.full(WINDOW, -1, np.int32)
    parts = [part for ids in documents for part in (np.asarray(ids, np.int32), gap)]
    return np.concatenate(parts) if parts else np.empty(0, np.int32)


def count_neighbours(ids_T: np.ndarray, ids_R: np.ndarray, ids_C: np.ndarray, size: int) -> torch.Tensor:
    """How often each of `ids_C` stands within WINDOW tokens of each of `ids_R`: [R, C] float32, exact up to 2^24."""
    row_S, column_S = np.full(size + 1, -1), np.full(size + 1, -1)  # the last is for -1, the gap
    row_S[ids_R], column_S[ids_C] = np.arange(len(ids_R)), np.arange(len(ids_C))
    counts_RC = torch.zeros(len(ids_R), len(ids_C))
    with Progress("count neighbours", total=len(ids_T), unit="tok") as bar:
        for start in range(0, len(ids_T), CHUNK_TOKENS):
            # The gap that ends each document is as wide as the window: chunks overlap by as much.
            chunk_T = ids_T[start : start + CHUNK_TOKENS + WINDOW]
            rows_T, columns_T = row_S[chunk_T], column_S[chunk_T]
            inside = min(CHUNK_TOKENS, len(chunk_T))
            for distance in range(1, WINDOW + 1):
                left = slice(0, max(min(inside, len(chunk_T) - distance), 0))
                right = slice(distance, distance + left.stop)
                add_pairs(counts_RC, rows_T[left], columns_T[right])
                add_pairs(counts_RC, rows_T[right], columns_T[left])
            bar.advance(inside)
    return counts_RC


def add_pairs(counts_RC: torch.Tensor, rows: np.ndarray, columns: np.ndarray) -> None:
    """Count pairs of a row and a column in place; -1 in one of them is no pair."""
    held = (rows >= 0) & (columns >= 0)
    keys = torch.from_numpy(rows[held] * counts_RC.shape[1] + columns[held])
    counts_RC.view(-1).scatter_add_(0, keys, torch.ones(len(keys)))


def to_ppmi(counts_RC: torch.Tensor) -> torch.Tensor:
    """Counts -> max(0, log p(r, c) / (p(r) p'(c))) in place, in nats, with p'(c) proportional to count(c)^SMOOTHING."""
    blocks = counts_RC.split(BLOCK_ROWS)
    columns_C = torch.stack([block.double().sum(0) for block in blocks]).sum(0)
    smooth_C = columns_C.clamp(min=1) ** SMOOTHING  # a context without neighbours has counts of 0 alone
    log_C = (smooth_C / smooth_C[columns_C > 0].sum()).log()
    for block in blocks:
        expected_BC = block.double().sum(1).clamp(min=1).log()[:, None] + log_C
        block.log_().sub_(expected_BC).clamp_(min=0)
    return counts_RC


def reduce(matrix_RC: torch.Tensor, seed: int) -> torch.Tensor:
    """Rows of the matrix as unit vectors of at most DIMENSIONS, [R, K] float32; a row of zeros stays zero.

    U S^(1/2) of the truncated decomposition; the root of S is better for similarity than S (Levy et al., 2015).
    """
    columns = min(DIMENSIONS + OVERSAMPLING, *matrix_RC.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        u_RK, s_K, _ = torch.svd_lowrank(matrix_RC, q=columns)
    vectors_RK = (u_RK * s_K.clamp(min=0).sqrt())[:, :DIMENSIONS]
    held_R1 = (matrix_RC.amax(1) > 0)[:, None]
    return torch.where(held_R1, F.normalize(vectors_RK, dim=1), 0.0)


def mix_nearest(new_NK: torch.Tensor, old_MK: torch.Tensor) -> Iterator[Mix]:
    """For each new unit vector, places among the old ones and their weights: sparsemax over the NEAREST cosines."""
    with Progress("mix similar tokens", total=len(new_NK), unit="tok") as bar:
        for block_BK in new_NK.split(BLOCK_ROWS):
            cosines_BM, places_BM = (block_BK @ old_MK.T).topk(min(NEAREST, len(old_MK)), dim=1)
            weights_BM = sparsemax(cosines_BM)
            for places, weights in zip(places_BM.numpy(), weights_BM.numpy(), strict=True):
                yield places[weights > 0], weights[weights > 0]
            bar.advance(len(block_BK))


def sparsemax(scores_BM: torch.Tensor) -> torch.Tensor:
    """The point of the probability simplex nearest to each row of scores (Martins, Astudillo, 2016, arXiv:1602.02068).

    Rows sum to 1, and scores too far below the largest get 0.
    """
    sorted_BM = scores_BM.sort(dim=1, descending=True).values
    rank_M = torch.arange(1, scores_BM.shape[1] + 1, dtype=scores_BM.dtype)
    sums_BM = sorted_BM.cumsum(1) - 1
    support_B1 = (rank_M * sorted_BM > sums_BM).sum(1, keepdim=True)
    threshold_B1 = sums_BM.gather(1, support_B1 - 1) / support_B1
    return (scores_BM - threshold_B1).clamp(min=0)
