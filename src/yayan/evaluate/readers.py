"""What a model expects at each position of a text: a folder through torch, a GGUF file through llama.cpp's C functions.

Both read the same windows (`model/score`), so that their figures can be compared. Shapes: N targets, V rows of the end.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from gguf import TokenType
from tokenizers import Tokenizer as FastTokenizer

from yayan.engine.llama_c import Network
from yayan.errors import UserError
from yayan.evaluate.encoders import open_tokenizer, spelled_token
from yayan.evaluate.scorer import open_network
from yayan.model.folder import Context
from yayan.model.load import Quantization
from yayan.model.longer import by_turning
from yayan.model.score import Window, body_and_head, score_windows, window_logits
from yayan.weights.gguf_ids import ids_of, opened_vocabulary
from yayan.weights.gguf_vocabulary import read_vocabulary

TORCH, LLAMA_CPP = "torch, float32", "llama.cpp, float32 cache"
QUANTISED_TORCH = "torch, bfloat16, bitsandbytes"


class Reader(Protocol):
    """A model opened for reading. `before` stands before a text's first token; `unknown` is -1 if there is none."""

    engine: str
    before: int
    unknown: int

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without BOS; what looks like a special token is text."""

    def token_bytes(self) -> list[int]:
        """By id: UTF-8 bytes that a token adds to a text."""

    def score(self, windows: list[Window]) -> Iterator[tuple[Window, torch.Tensor]]:
        """Each window, in any order, with the nats of its targets: nats_N, float64."""

    def logits(self, windows: list[Window]) -> Iterator[tuple[Window, int, torch.Tensor]]:
        """(window, number of its first target here, logits_NV in float32, which hold until the next ones)."""


class FolderReader:
    """A model folder in float32, or, its weights quantised by bitsandbytes, in bfloat16.

    `stretching`: each window is turned by what its length needs (`model/longer`).
    """

    def __init__(
        self, model: Path, quantization: Quantization | None = None, *, stretching: bool = False
    ) -> None:
        self.model, self.stretching = model, stretching
        dtype = torch.bfloat16 if quantization else torch.float32
        self.tokenizer, network = open_network(model, dtype, quantization)
        self.network = network
        self.body, self.head = body_and_head(network)
        self.engine = QUANTISED_TORCH if quantization else TORCH
        self.bytes = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
        self.before, self.unknown = self.tokenizer.before, unknown_id(self.tokenizer.fast)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer.encode_batch(list(texts))

    def token_bytes(self) -> list[int]:
        return [len(token.data) if token else 0 for token in open_tokenizer(self.model).tokens]

    def score(self, windows: list[Window]) -> Iterator[tuple[Window, torch.Tensor]]:
        for alike in self.by_turning(windows):
            yield from score_windows(self.body, self.head, alike)

    def logits(self, windows: list[Window]) -> Iterator[tuple[Window, int, torch.Tensor]]:
        for alike in self.by_turning(windows):
            yield from window_logits(self.body, self.head, alike)

    def by_turning(self, windows: list[Window]) -> Iterator[list[Window]]:
        """Windows of one step together, the model turned so while they are read."""
        if self.stretching:
            return by_turning(self.network, windows, lambda window: len(window.ids))
        return iter([windows])


class GgufReader:
    """A GGUF file. llama.cpp cuts SentencePiece texts itself; byte-level ones are cut by `tokenizers`, proven equal,
    since llama.cpp's own regular expressions end the process on a long run of letters.
    """

    engine = LLAMA_CPP

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.path, self.threads = path, threads
        self.vocabulary = read_vocabulary(path)
        ids = self.vocabulary.special_ids
        found = ids.get("bos", ids.get("eos"))
        if found is None:
            what = "this vocabulary names neither BOS nor EOS, so nothing can stand before a text"
            raise UserError(what, where=path, cure="make the file again from its model folder")
        types = self.vocabulary.types
        self.before = found
        self.unknown = types.index(TokenType.UNKNOWN) if TokenType.UNKNOWN in types else -1
        self.native = open_tokenizer(path) if self.vocabulary.model != "llama" else None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        if self.native:
            return self.native.encode_batch(texts)
        with opened_vocabulary(self.path) as vocabulary:
            return [ids_of(vocabulary, text) for text in texts]

    def token_bytes(self) -> list[int]:
        if self.native:
            return [len(token.data) if token else 0 for token in self.native.tokens]
        text = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.BYTE)
        pieces = zip(self.vocabulary.tokens, self.vocabulary.types, strict=True)
        return [
            len(spelled_token(piece, byte_fallback=kind == TokenType.BYTE).data) if kind in text else 0
            for piece, kind in pieces
        ]

    def logits(self, windows: list[Window]) -> Iterator[tuple[Window, int, torch.Tensor]]:
        """See `Reader`. What a window and the one before it begin with alike is read once."""
        positions = max((len(window.ids) for window in windows), default=1)  # no cache for more than is read
        with Network(self.path, positions=positions, threads=self.threads) as network:
            for window in windows:
                at = 0
                for logits_NV in network.logits(window.ids, window.first, share=True):
                    yield window, at, torch.from_numpy(logits_NV)
                    at += len(logits_NV)

    def score(self, windows: list[Window]) -> Iterator[tuple[Window, torch.Tensor]]:
        """See `Reader`."""
        parts: list[torch.Tensor] = []
        for window, at, logits_NV in self.logits(windows):
            parts = [*parts, nats_of(logits_NV, window.targets[at : at + len(logits_NV)])]
            if at + len(logits_NV) == window.count:
                yield window, torch.cat(parts)
                parts = []


def nats_of(logits_NV: torch.Tensor, targets: list[int]) -> torch.Tensor:
    """-log p of each target, float64; the softmax is taken in float32, as `model/score` takes it."""
    return F.cross_entropy(logits_NV, torch.tensor(targets), reduction="none").double()


def open_reader(model: Path, context: Context = None) -> Reader:
    """The reader of a model folder or of a GGUF file."""
    return GgufReader(model) if model.is_file() else FolderReader(model, stretching=context == "auto")


def unknown_id(fast: FastTokenizer) -> int:
    """The id of text that the tokenizer cannot express, -1 if there is none.

    A text with such tokens looks cheaper than it is: its bits per byte are a lower bound.
    """
    token = getattr(fast.model, "unk_token", None)
    found = fast.token_to_id(token) if token else None
    return -1 if found is None else found
