"""The logits of a GGUF file at every position of a text, through llama.h's C functions: no server, nothing sampled.

llama.cpp's server tells probabilities of answers only; here each token of a text is judged, as `model/score` does
it for a model folder. Shapes: N positions, V rows of the output end.
"""

import ctypes
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType

import numpy as np
import xllamacpp

from yayan.errors import UserError, WorkError
from yayan.model.folder import choose_context
from yayan.weights.ggml import Pointer, read_header
from yayan.weights.gguf_ids import Id, llama, model_parameters, quiet_llamacpp

F32, F16 = 0, 1  # ggml's numbers of the types of the cache
NO_FLASH_ATTENTION, AUTO = 0, -1
BATCH = 512  # positions computed at once, llama.cpp's own n_ubatch: the logits of 55,296 rows are 113 MB
Flag, Number, Count, Real = ctypes.c_int8, ctypes.c_int32, ctypes.c_uint32, ctypes.c_float


class ContextParameters(ctypes.Structure):
    """llama_context_params up to its flags, and room for what stands behind them and is never looked into.

    Given by value, so its layout must be that of the wheel: `context_parameters` compares it with the known defaults.
    """

    _fields_ = (
        *((name, Count) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, Count) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
        *((name, Number) for name in ("n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type")),
        *((name, Number) for name in ("pooling_type", "attention_type", "flash_attn_type")),
        *((name, Real) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor")),
        *((name, Real) for name in ("yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", Count),
        ("defrag_thold", Real),
        *((name, Pointer) for name in ("cb_eval", "cb_eval_user_data")),
        *((name, Number) for name in ("type_k", "type_v")),
        ("room", ctypes.c_uint64 * 64),
    )


DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_threads": 4,
    "n_threads_batch": 4,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": AUTO,
    "rope_freq_base": 0.0,
    "yarn_ext_factor": -1.0,
    "yarn_orig_ctx": 0,
    "cb_eval": None,
    "type_k": F16,
    "type_v": F16,
}  # what llama.cpp gives; a field that has moved does not hold its own any more


class Batch(ctypes.Structure):
    """llama_batch. Without positions and sequences, llama.cpp goes on behind what it has read."""

    _fields_ = (
        ("n_tokens", Number),
        ("token", ctypes.POINTER(Id)),
        ("embd", Pointer),
        ("pos", Pointer),
        ("n_seq_id", Pointer),
        ("seq_id", Pointer),
        ("logits", ctypes.POINTER(Flag)),
    )


@cache
def functions() -> ctypes.CDLL:
    """The shared library, with the signatures (llama.h) of the functions that compute."""
    found = llama()
    signatures = {
        "llama_context_default_params": (ContextParameters, []),
        "llama_init_from_model": (Pointer, [Pointer, ContextParameters]),
        "llama_free": (None, [Pointer]),
        "llama_n_ctx": (Count, [Pointer]),
        "llama_n_batch": (Count, [Pointer]),
        "llama_n_ubatch": (Count, [Pointer]),
        "llama_n_threads": (Number, [Pointer]),
        "llama_n_threads_batch": (Number, [Pointer]),
        "llama_model_has_decoder": (ctypes.c_bool, [Pointer]),
        "llama_model_has_encoder": (ctypes.c_bool, [Pointer]),
        "llama_vocab_n_tokens": (Number, [Pointer]),
        "llama_batch_get_one": (Batch, [ctypes.POINTER(Id), Number]),
        "llama_decode": (Number, [Pointer, Batch]),
        "llama_synchronize": (None, [Pointer]),
        "llama_get_logits": (ctypes.POINTER(Real), [Pointer]),
        "llama_get_memory": (Pointer, [Pointer]),
        "llama_memory_seq_rm": (ctypes.c_bool, [Pointer, Number, Number, Number]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def context_parameters() -> ContextParameters:
    """llama.cpp's defaults. Raises WorkError if this wheel lays them out otherwise than they are laid out here."""
    found = functions().llama_context_default_params()
    moved = [name for name, value in DEFAULTS.items() if getattr(found, name) != value]
    ids = (Id * 3)(7, 8, 9)
    one = functions().llama_batch_get_one(ids, 3)
    if moved or one.n_tokens != 3 or one.token[2] != 9 or one.logits:
        what = f"xllamacpp {xllamacpp.__version__} lays out {moved[0] if moved else 'llama_batch'} otherwise"
        raise WorkError(what, cure="install the version that yayan was tested with (requirements.lock)")
    return found


def all_threads() -> int:
    """`OMP_NUM_THREADS`, as torch takes it, else all cores."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    return int(named) if named.isdigit() and int(named) else os.cpu_count() or 1


class Network:
    """A GGUF file opened for its logits. `with Network(path, positions=512) as network: network.logits(ids)`.

    `positions`: tokens that it sees at most; `exact`: a float32 cache and no flash attention, so that a figure is that
    of the weights; otherwise llama.cpp's own choices, which it serves with.
    Raises UserError for a bad file or too many positions, WorkError if llama.cpp cannot load it.
    """

    def __init__(
        self,
        gguf: Path,
        *,
        positions: int | None = None,
        threads: int | None = None,
        exact: bool = True,
        batch: int = BATCH,
    ) -> None:
        self.path, self.header = gguf, read_header(gguf)
        self.positions = choose_context(self.header.context, positions, gguf)
        self.batch = min(batch, self.positions)
        self._seen: list[int] = []
        self._context: int | None = None
        with quiet_llamacpp():
            self._model: int | None = self._load()
            try:
                self._open(threads or all_threads(), exact=exact)
            except BaseException:
                self.close()
                raise
        self.rows: int = functions().llama_vocab_n_tokens(functions().llama_model_get_vocab(self._model))

    def _load(self) -> int:
        found = functions().llama_model_load_from_file(os.fsencode(self.path), model_parameters())
        if not found:
            what = f"llama.cpp cannot load this model (architecture {self.header.architecture})"
            raise WorkError(what, where=self.path, cure="free some memory; --debug shows its reasons")
        if functions().llama_model_has_encoder(found) or not functions().llama_model_has_decoder(found):
            functions().llama_model_free(found)
            what = f"a model of architecture {self.header.architecture} does not continue texts"
            raise UserError(what, where=self.path, cure="give a decoder, such as llama or qwen2")
        return found

    def _open(self, threads: int, *, exact: bool) -> None:
        wanted = context_parameters()
        wanted.n_ctx, wanted.n_batch, wanted.n_ubatch = self.positions, self.batch, self.batch
        wanted.n_threads = wanted.n_threads_batch = threads
        if exact:
            wanted.type_k = wanted.type_v = F32
            wanted.flash_attn_type = NO_FLASH_ATTENTION
        self._context = functions().llama_init_from_model(self._model, wanted)
        if not self._context:
            what = f"llama.cpp has no memory for a context of {self.positions} tokens"
            raise WorkError(what, where=self.path, cure="ask for a smaller one; --debug shows its reasons")
        is_so = {
            "n_ctx": functions().llama_n_ctx(self._context) >= self.positions,  # it rounds up
            "n_batch": functions().llama_n_batch(self._context) == self.batch,
            "n_ubatch": functions().llama_n_ubatch(self._context) == self.batch,
            "n_threads": functions().llama_n_threads(self._context) == threads,
            "n_threads_batch": functions().llama_n_threads_batch(self._context) == threads,
        }
        if not all(is_so.values()):
            raise WorkError("llama.cpp does not take its settings as they were given", where=str(is_so))

    def close(self) -> None:
        """Free memory and file; may be called twice."""
        if self._context:
            functions().llama_free(self._context)
            self._context = None
        if self._model:
            functions().llama_model_free(self._model)
            self._model = None

    def __enter__(self) -> "Network":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def forget(self, kept: int = 0) -> None:
        """Forget what was read, but for its first tokens."""
        memory = functions().llama_get_memory(self._context)
        if not functions().llama_memory_seq_rm(memory, 0, kept, -1):
            raise WorkError(f"llama.cpp cannot go back to token {kept}", where=self.path)
        del self._seen[kept:]

    def read(self, ids: Sequence[int], first: int | None = None) -> np.ndarray:
        """Go on reading at most `batch` tokens -> logits_NV (float32) of those from `first` on (default: the last).

        The array lies in llama.cpp's memory and holds until the next call, or until the network is closed.
        """
        first = len(ids) - 1 if first is None else first
        tokens = (Id * len(ids))(*ids)
        flags = (Flag * len(ids))(*([0] * first + [1] * (len(ids) - first)))
        code = functions().llama_decode(self._context, Batch(len(ids), tokens, None, None, None, None, flags))
        if code != 0:
            raise WorkError(f"llama.cpp stopped with code {code}", where=self.path)
        functions().llama_synchronize(self._context)
        self._seen += ids
        if first == len(ids):
            return np.empty((0, self.rows), np.float32)
        return np.ctypeslib.as_array(
            functions().llama_get_logits(self._context), (len(ids) - first, self.rows)
        )

    def logits(self, ids: Sequence[int], first: int = 0, *, share: bool = False) -> Iterator[np.ndarray]:
        """Read a text from its beginning -> logits_NV of its positions from `first` on, at most `batch` at a time.

        Each array holds until the next one is asked for. `share`: what the text before began with alike is not read
        again.
        """
        known = len(os.path.commonprefix([self._seen, list(ids[:first])])) if share else 0
        self.forget(known)
        for start in range(known, len(ids), self.batch):
            part = ids[start : start + self.batch]
            logits_NV = self.read(part, min(max(first - start, 0), len(part)))
            if len(logits_NV):
                yield logits_NV
