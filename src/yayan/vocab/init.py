"""How the rows of new tokens start: one function, `new_rows`, for all initialisations and both ends.

But for noise and the mean, an initialisation is a set of weights over the old tokens for each new one (`Mixes`): found
once, applied to both ends, block by block, so that no more than some MB are held beside the model's own mapped rows.

Shapes: V old tokens, N new ones, P weights of all new tokens together, D width of the model.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from yayan.corpus.files import text_files
from yayan.corpus.read import documents
from yayan.errors import UserError
from yayan.progress import Progress
from yayan.tokenizer import Tokenizer
from yayan.vocab.sample import Sample
from yayan.vocab.similar import Mix, similar_mixes

Init = Literal["mean_of_pieces", "weighted_mean_of_pieces", "similar", "mean", "noisy_mean", "noise"]
NEED_CORPUS: tuple[Init, ...] = ("weighted_mean_of_pieces", "similar")
BLOCK_ROWS = 1024  # rows that are held at once in a wider format than the model's
BLOCK_WEIGHTS = 4096  # old rows that are gathered at once: 67 MB of float32 at a width of 4,096
# Of the old rows' standard deviation, in `noisy_mean`. A 21 M model with 8,960 new rows, before training: English takes
# 1.537 bits per byte with 0.01 and with 0.1 (1.535 before growing), 1.539 with 0.3, 2.277 with 1.
NOISE_SHARE = 0.1
RARITY = 1e-3  # `a` of SIF weights
# 10 M characters are about 6 M tokens: a token that stands once in a million has a count that says something.
SAMPLE_CHARACTERS = 10_000_000
BATCH_CHARACTERS = 200_000  # cut at once: the native tokenizer holds some 100 bytes for each token meanwhile


@dataclass(frozen=True, eq=False)
class Mixes:
    """Old tokens and weights for each of N new tokens: token i has those from `first[i]` up to `first[i + 1]`."""

    first: np.ndarray  # [N + 1] int64
    ids: np.ndarray  # [P] int64
    weights: np.ndarray  # [P] float32, above 0, in any unit

    @classmethod
    def join(cls, mixes: Sequence[Mix]) -> "Mixes":
        first = np.cumsum([0, *(len(ids) for ids, _ in mixes)])
        ids = np.concatenate([np.empty(0), *(ids for ids, _ in mixes)]).astype(np.int64)
        weights = np.concatenate([np.empty(0), *(weights for _, weights in mixes)]).astype(np.float32)
        return cls(first, ids, weights)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges of tokens that have at most BLOCK_WEIGHTS weights together (or are one), and BLOCK_ROWS tokens."""
        start, count = 0, len(self.first) - 1
        while start < count:
            fits = int(np.searchsorted(self.first, self.first[start] + BLOCK_WEIGHTS, "right")) - 1
            end = min(max(fits, start + 1), start + BLOCK_ROWS, count)
            yield start, end
            start = end


def refuse_wrong_corpus(inits: Sequence[Init], corpus: Sequence[Path] | None) -> None:
    """UserError if an initialisation needs a corpus that is not given, or if none needs the one that is."""
    needing = [name for name in inits if name in NEED_CORPUS]
    if needing and not corpus:
        raise UserError(f"{needing[0]} needs a corpus", where="corpus", cure="name documents with --corpus")
    if corpus and not needing:
        cure = f"leave it out, or start new rows with {' or '.join(NEED_CORPUS)}"
        raise UserError(f"{inits[0]} does not look at a corpus", where="corpus", cure=cure)
    if corpus:
        text_files(corpus)


def cut_new_tokens(old: Tokenizer, new: Tokenizer) -> list[list[int]]:
    """The old ids that each new token's own text is cut into; empty where the old tokenizer knows none of it.

    The bare BPE model is asked, since tokens are already in its alphabet: a normaliser would put a space before them.
    """
    bpe = old.fast.model
    unknown = old.fast.token_to_id(bpe.unk_token) if bpe.unk_token else None
    texts = {id_: token for token, id_ in new.fast.get_vocab().items()}
    return [
        [piece.id for piece in bpe.tokenize(texts.get(id_, "")) if piece.id != unknown]
        for id_ in range(old.size, new.size)
    ]


def make_mixes(init: Init, old: Tokenizer, new: Tokenizer, texts: Sequence[str], seed: int) -> Mixes | None:
    """The weights of an initialisation, None where it has none.

    `texts`: a sample of the corpus, for those of NEED_CORPUS. `mean_of_pieces`: the old ids of the new token's own
    text, all alike. `weighted_mean_of_pieces`: a / (a + p) with p the piece's share of
    the sample's tokens as the old tokenizer cuts it (Arora et al., 2017, "A simple but tough-to-beat baseline for
    sentence embeddings"). `similar`: see `vocab/similar.py`; a token that the sample does not hold often enough starts
    as the mean of its pieces.
    """
    if init not in ("mean_of_pieces", *NEED_CORPUS):
        return None
    cuts = cut_new_tokens(old, new)
    pieces = [(np.array(cut, np.int64), np.ones(len(cut), np.float32)) for cut in cuts]
    if init == "weighted_mean_of_pieces":
        rarity_V = rarities(encode(old, texts), old.size)
        pieces = [(ids, rarity_V[ids]) for ids, _ in pieces]
    if init == "similar":
        found = similar_mixes(encode(new, texts), old.size, new.size, seed)
        pieces = [found.get(number, mix) for number, mix in enumerate(pieces, start=old.size)]
    return Mixes.join(pieces)


def new_rows(
    old_VD: torch.Tensor,
    ids: np.ndarray,
    count: int,
    init: Init,
    *,
    mixes: Mixes | None = None,
    deviation: float = 0.0,
    seed: int = 0,
) -> Iterator[torch.Tensor]:
    """The rows of `count` new tokens in order, in blocks [B, D] of float32.

    `old_VD`: an end of the model, of any dtype; `ids`: its rows that have a token, which alone are looked at.
    `noise`: N(0, deviation^2). `mean`: of all old rows. `noisy_mean`: the mean and N(0, (NOISE_SHARE s_d)^2), s_d the
    old rows' standard deviation in dimension d (Hewitt, 2021, "Initializing new word embeddings for pretrained language
    models", draws from their whole covariance; its diagonal needs no matrix of D x D). All others: the weighted mean
    of the old rows in `mixes`, or the mean of all where a token has none. Sums of all rows are float64.
    """
    generator = torch.Generator().manual_seed(seed)
    mean_D = torch.zeros(old_VD.shape[1]) if init == "noise" else mean_row(old_VD, ids)
    if mixes is not None:
        for start, end in mixes.blocks():
            yield mix_rows(old_VD, mixes, start, end, mean_D)
        return
    spread_D = torch.full_like(mean_D, deviation if init == "noise" else 0.0)
    if init == "noisy_mean":
        spread_D = NOISE_SHARE * deviation_row(old_VD, ids, mean_D)
    for start in range(0, count, BLOCK_ROWS):
        shape = (min(BLOCK_ROWS, count - start), len(mean_D))
        noise = 0.0 if init == "mean" else torch.randn(shape, generator=generator).mul_(spread_D)
        yield mean_D.expand(shape) + noise


def mix_rows(
    old_VD: torch.Tensor, mixes: Mixes, start: int, end: int, otherwise_D: torch.Tensor
) -> torch.Tensor:
    """Weighted means of old rows for the new tokens `start` to `end`, float32; `otherwise_D` for none."""
    held = slice(int(mixes.first[start]), int(mixes.first[end]))
    lengths_N = torch.from_numpy(np.diff(mixes.first[start : end + 1]))
    weights_P = torch.from_numpy(mixes.weights[held])
    rows_PD = old_VD[torch.from_numpy(mixes.ids[held])].float().mul_(weights_P[:, None])
    sums_ND = torch.segment_reduce(rows_PD, "sum", lengths=lengths_N, axis=0)
    totals_N = torch.segment_reduce(weights_P, "sum", lengths=lengths_N)
    return torch.where(lengths_N[:, None] > 0, sums_ND / totals_N[:, None], otherwise_D)


def mean_row(old_VD: torch.Tensor, ids: np.ndarray) -> torch.Tensor:
    """Mean of the rows of `ids`, float32 [D], summed in float64."""
    sums = [rows_BD.double().sum(0) for rows_BD in old_rows(old_VD, ids)]
    return (torch.stack(sums).sum(0) / len(ids)).float()


def deviation_row(old_VD: torch.Tensor, ids: np.ndarray, mean_D: torch.Tensor) -> torch.Tensor:
    """Standard deviation of the rows of `ids` in each dimension, float32 [D]."""
    sums = [(rows_BD.double() - mean_D).square().sum(0) for rows_BD in old_rows(old_VD, ids)]
    return (torch.stack(sums).sum(0) / len(ids)).sqrt().float()


def old_rows(old_VD: torch.Tensor, ids: np.ndarray) -> Iterator[torch.Tensor]:
    return (old_VD[block] for block in torch.from_numpy(ids).split(BLOCK_ROWS))


def rarities(documents: Iterable[Sequence[int]], size: int) -> np.ndarray:
    """a / (a + p) for each old token, float32 [V], p its share of all tokens of the documents."""
    counts: Counter[int] = Counter()
    for ids in documents:
        counts.update(ids)
    share_V = np.array([counts[number] for number in range(size)]) / max(counts.total(), 1)
    return (RARITY / (RARITY + share_V)).astype(np.float32)


def sample_texts(corpus: Iterable[Path], field: str | None) -> list[str]:
    """Beginnings of documents from all over the corpus. Raises UserError for a corpus without text."""
    sample = Sample(most_characters=SAMPLE_CHARACTERS)
    with Progress("sample the corpus", unit="docs") as bar:
        for _ in sample.watch(document.text for document in documents(corpus, field)):
            bar.advance()
    if not sample.characters:
        raise UserError("the corpus is empty", where="corpus", cure="give documents that hold text")
    return sample.texts


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[list[int]]:
    """Ids of each text."""
    with Progress("cut the sample", total=len(texts), unit="docs") as bar:
        start = characters = 0
        for end, text in enumerate(texts, start=1):
            characters += len(text)
            if characters >= BATCH_CHARACTERS or end == len(texts):
                yield from tokenizer.encode_batch(texts[start:end])
                bar.advance(end - start)
                start, characters = end, 0
