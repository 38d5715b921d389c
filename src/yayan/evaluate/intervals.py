"""95 % intervals for the two kinds of figures here: a share of right answers, and a ratio of sums over documents."""

import math

import numpy as np

Z_95 = 1.959963984540054  # standard normal quantile of 0.975
RESAMPLES = 1000
SEED = 0
BLOCK = 50  # resamples at once: 62,000 documents then take 25 MB


def wilson(right: int, total: int) -> list[float] | None:
    """Wilson's score interval for `right` of `total` (Wilson 1927, JASA 22); None where nothing was counted.

    Unlike the normal approximation it stays inside 0..1 and has a width for 0 % and 100 %.
    """
    if total == 0:
        return None
    share, z2 = right / total, Z_95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return [max(centre - half, 0.0), min(centre + half, 1.0)]


def bootstrap_ratio(numerators: list[float], denominators: list[float]) -> list[float] | None:
    """Percentile bootstrap (Efron 1979) of sum(numerators) / sum(denominators) over documents drawn again with a
    fixed seed; None for fewer than two documents, which tell nothing about their spread.
    """
    documents = len(numerators)
    if documents < 2:
        return None
    generator = np.random.default_rng(SEED)
    pairs = np.stack([np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)], axis=1)
    equal = np.full(documents, 1 / documents)
    sums = [generator.multinomial(documents, equal, BLOCK) @ pairs for _ in range(RESAMPLES // BLOCK)]
    totals = np.concatenate(sums)
    low, high = np.quantile(totals[:, 0] / totals[:, 1], [0.025, 0.975])
    return [float(low), float(high)]
