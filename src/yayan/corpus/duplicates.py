"""What makes two documents duplicates: a key of the whole text, or one band of a MinHash sketch in common.

Near duplicates as in FineWeb (Penedo et al. 2024, arXiv 2406.17557): 14 bands of 8 values over the set of 5-grams, so
that two documents whose sets have the Jaccard similarity J are found with the probability 1 - (1 - J**8)**14: 8 % at
0.5, 56 % at 0.7, 92 % at 0.8. The pieces of an n-gram are those of `shingles`: for Chinese, characters.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from yayan.corpus.rewriting import library
from yayan.corpus.shingles import (
    BLOCK_CHARACTERS,
    batches,
    mixed,
    pieces_of,
    shingle_blocks,
    shingles_of,
    windows,
)

BANDS, BAND_VALUES = 14, 8
SHINGLE_PIECES = 5
SEED = 20240625
BATCH_TEXTS = 255  # rensa starts threads, which a worker process must not, for 256 texts or more


def exact_key(text: str) -> int:
    """64 bits of the BLAKE2b hash of a text without its white space, so that its line breaks do not matter.

    Among 100 million different texts two have the same key with a probability of 0.03 %.
    """
    plain = "".join(text.split())
    return int.from_bytes(
        hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )


def near_bands(texts: Sequence[str]) -> np.ndarray:
    """A key for each band of each text, uint64 [N, BANDS]: near duplicates have at least one in common.

    A text of fewer than SHINGLE_PIECES pieces has one shingle, of all of them; one of none has its exact key.
    Raises UserError if rensa is not installed. The same on every machine for one version of rensa's algorithm (2).
    """
    values = np.empty((len(texts), BANDS * BAND_VALUES), np.uint32)
    for first, last in batches(texts, BATCH_TEXTS):
        values[first:last] = _sketches(texts[first:last])
    keys = np.broadcast_to(np.arange(BANDS, dtype=np.uint64), (len(texts), BANDS))
    pairs = values.reshape(len(texts), BANDS, BAND_VALUES).view(np.uint64)
    for i in range(BAND_VALUES // 2):
        keys = mixed(keys * np.uint64(2) + np.uint64(1) ^ pairs[:, :, i])
    return keys


def minhash(hashes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """MinHash sketches uint32 [N, BANDS * BAND_VALUES] of sets of shingles, `hashes[offsets[i] : offsets[i + 1]]`.

    The sketch of a union is the lesser of each two values. Two sketches agree in a share of their values that
    estimates the Jaccard similarity of the sets.
    """
    # rensa's R-MinHash 2 is a Fast Similarity Sketching (Dahlgaard, Knudsen and Thorup 2017, arXiv 1704.04370).
    make = library("rensa").RMinHash.digest_matrix_from_flat_token_hashes
    rows = make(np.ascontiguousarray(hashes), offsets.astype(np.uint64), BANDS * BAND_VALUES, SEED).to_rows()
    return np.array(rows, np.uint32)


def _sketches(texts: Sequence[str]) -> np.ndarray:
    """uint32 [N, BANDS * BAND_VALUES], of a batch of short texts or of a long one, which goes block by block."""
    if len(texts) == 1 and len(texts[0]) > BLOCK_CHARACTERS:
        blocks = (hashes for hashes, _ in shingle_blocks(texts[0], SHINGLE_PIECES) if len(hashes))
        sketches = [minhash(hashes, np.array([0, len(hashes)])) for hashes in blocks]
        if sketches:
            return np.minimum.reduce(sketches)
    pieces = pieces_of(texts)
    hashes, offsets = shingles_of(pieces, SHINGLE_PIECES)
    counts = np.diff(offsets)
    few = (counts == 0).nonzero()[0]
    if len(few):
        own = np.array([_key_of_few(texts[i], pieces.hashes[slice(*pieces.offsets[i : i + 2])]) for i in few])
        hashes = np.insert(hashes, offsets[few], own)
        counts[few] = 1
        offsets = np.concatenate([[0], np.cumsum(counts)])
    return minhash(hashes, offsets)


def _key_of_few(text: str, pieces: np.ndarray) -> np.uint64:
    """One shingle for a text that has too few pieces for any."""
    if not len(pieces):
        return np.uint64(exact_key(text))
    return windows(pieces, len(pieces))[0] ^ np.uint64(len(pieces))
