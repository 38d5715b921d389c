"""How far the distributions of a quantised model lie from those of the one that it was made from.

The logits of the reference are kept on the disk as they are (float32), one text after the other: models then come one
at a time, each as the only one in memory, and the reference is computed once. Shapes: N positions, V rows of the end.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from yayan.evaluate.intervals import bootstrap_ratio
from yayan.evaluate.readers import Reader, nats_of
from yayan.model.score import Window

LARGEST_BYTES = 8 << 30  # of all references together: 38,000 positions of 55,296 rows
ROWS = 64  # positions compared at once, in float64: 28 MB each of 55,296 rows


@dataclass(frozen=True)
class Read:
    """What a model made of a text. By position: nats of the token that follows; of the first ones, compared with the
    reference, Kullback-Leibler divergence KL(reference || model) in nats, and whether the likeliest token is the same.
    All are float64 but the last, which is bool.
    """

    nats_N: np.ndarray
    divergence_K: np.ndarray
    same_K: np.ndarray


def positions_kept(counts: list[int], rows: int, folder: Path) -> list[int]:
    """How many of each text's positions are compared: as many as half of the free disk holds, and 8 GiB at most."""
    budget = min(LARGEST_BYTES, shutil.disk_usage(folder).free // 2) // (4 * rows)
    return [min(count, max(budget // len(counts), 1)) for count in counts]


def reference_file(path: Path, positions: int, rows: int, *, new: bool) -> np.ndarray:
    """Logits of the reference, float32 [positions, rows], mapped."""
    return np.memmap(path, np.float32, "w+" if new else "r", shape=(positions, rows))


def read_text(
    reader: Reader,
    windows: list[Window],
    starts: list[int],
    reference_KV: np.ndarray,
    *,
    keep: bool,
    on_read: Callable[[int], None],
) -> Read:
    """Read a text; with `keep` its logits become the reference. `starts`: where each document begins."""
    total, kept = sum(len(window.targets) for window in windows), len(reference_KV)
    read = Read(np.zeros(total), np.zeros(kept), np.ones(kept, bool))
    for window, at, logits_NV in reader.logits(windows):
        first = starts[window.sequence] + window.offset - 1 + at
        count = len(logits_NV)
        read.nats_N[first : first + count] = nats_of(logits_NV, window.targets[at : at + count]).numpy()
        both = max(min(count, kept - first), 0)
        if keep:
            reference_KV[first : first + both] = logits_NV[:both].numpy()
        else:
            compare(reference_KV, logits_NV[:both], first, read)
        on_read(count)
    return read


def compare(reference_KV: np.ndarray, logits_NV: torch.Tensor, first: int, read: Read) -> None:
    """Fill in the divergences of some positions in a row."""
    for begin in range(0, len(logits_NV), ROWS):
        ours_RV = logits_NV[begin : begin + ROWS]
        place = slice(first + begin, first + begin + len(ours_RV))
        theirs_RV = torch.from_numpy(np.array(reference_KV[place]))
        read.same_K[place] = (theirs_RV.argmax(-1) == ours_RV.argmax(-1)).numpy()
        log_p_RV, log_q_RV = theirs_RV.double().log_softmax(-1), ours_RV.double().log_softmax(-1)
        read.divergence_K[place] = (log_p_RV.exp() * (log_p_RV - log_q_RV)).sum(-1).numpy()


def summarise(read: Read, starts: list[int], counts: list[int]) -> dict[str, object]:
    """Mean divergence with a 95 % interval over documents, its 99.9 % quantile, and the share of equal first tokens."""
    kept = len(read.divergence_K)
    documents = [(s, min(s + n, kept)) for s, n in zip(starts, counts, strict=True) if s < kept]
    sums = [float(read.divergence_K[begin:end].sum()) for begin, end in documents]
    return {
        "kl_mean": float(read.divergence_K.mean()),
        "kl_interval": bootstrap_ratio(sums, [end - begin for begin, end in documents]),
        "kl_999": float(np.quantile(read.divergence_K, 0.999)),
        "top1_agreement": float(read.same_K.mean()),
    }
