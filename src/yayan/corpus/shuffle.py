"""A seeded order of many things that is computed place by place: nothing is stored, the last is as quick as the first.

A number below a * b is a pair (left < a, right < b). A Feistel network adds to each half, in turn, a hash of the other,
which can be undone, so it is a permutation of the pairs; pairs beyond the count go through it again until they fall
below (Black and Rogaway, Ciphers with arbitrary finite domains, 2002). The hash is SplitMix64's last step (Steele, Lea
and Flood, Fast splittable pseudorandom number generators, 2014).
"""

import math

import numpy as np

ROUNDS = 16  # with 8, some orders of 6 numbers come twice as often as they should


def shuffled(places: np.ndarray, count: int, seed: list[int]) -> np.ndarray:
    """What stands at the `places` [N] of an order of the numbers below `count`: [N] uint64."""
    keys = np.random.SeedSequence(seed).generate_state(ROUNDS, np.uint64)
    width = math.isqrt(count - 1) + 1
    found = _network(places.astype(np.uint64), -(-count // width), width, keys)
    while len(beyond := np.flatnonzero(found >= count)):
        found[beyond] = _network(found[beyond], -(-count // width), width, keys)
    return found


def _network(number_N: np.ndarray, height: int, width: int, keys: np.ndarray) -> np.ndarray:
    left_N, right_N = np.divmod(number_N, np.uint64(width))
    for i in range(0, ROUNDS, 2):
        left_N = (left_N + _hash(right_N, keys[i]) % np.uint64(height)) % np.uint64(height)
        right_N = (right_N + _hash(left_N, keys[i + 1]) % np.uint64(width)) % np.uint64(width)
    return left_N * np.uint64(width) + right_N


def _hash(x_N: np.ndarray, key: np.uint64) -> np.ndarray:
    x_N = x_N * np.uint64(0x9E3779B97F4A7C15) + key
    x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))
