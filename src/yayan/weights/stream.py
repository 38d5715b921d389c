"""Tensors of a model folder, one at a time: mapped from safetensors files, written straight into new ones.

What is read is a view of the mapped file (no anonymous memory); what is written goes to its final place in a file whose
header was planned beforehand. So the peak is what the caller does with one tensor, whatever the model's size.
Format: https://huggingface.co/docs/safetensors (eight bytes of header length, a JSON header, the tensors' bytes).
"""

import ctypes
import json
import math
import mmap
import shutil
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError, safe_open

from yayan.errors import UserError, WorkError
from yayan.model.folder import read_json, write_json
from yayan.weights.pickles import read_pickle
from yayan.weights.written_file import WrittenFile

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_SHARD_BYTES = 5_000_000_000
HEADER_ALIGNMENT = 8
BLOCKS_AHEAD = 2  # made and not yet written


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.itemsize

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def totals(specs: Mapping[str, TensorSpec]) -> dict[str, object]:
    """Number of tensors, parameters and bytes, and the dtypes (`bfloat16`, or several joined by `+`)."""
    return {
        "tensors": len(specs),
        "parameters": sum(spec.elements for spec in specs.values()),
        "bytes": sum(spec.bytes for spec in specs.values()),
        "dtype": "+".join(sorted({str(spec.dtype).removeprefix("torch.") for spec in specs.values()})),
    }


class TensorSource:
    """The tensors of a folder; `specs` knows them all before any is read."""

    def __init__(self, folder: Path, files: list[Path]) -> None:
        self.folder = folder
        self.specs: dict[str, TensorSpec] = {}
        self._files: dict[str, safe_open] = {}
        self._mapped: dict[str, torch.Tensor] = {}
        for path in files:
            self._open_pickle(path) if path.suffix == ".bin" else self._open(path)

    def _open(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"the shard {path.name} is missing", where=self.folder, cure="fetch it again")
        try:
            file = safe_open(path, "pt")
        except SafetensorError as error:
            what = f"this file is truncated or damaged, {error}"
            raise UserError(what, where=path, cure="fetch or make it again") from error
        for name in file.keys():  # noqa: SIM118 (the handle is no mapping)
            part = file.get_slice(name)
            if part.get_dtype() not in DTYPES:
                what = f"the tensor {name} is of type {part.get_dtype()}"
                cure = "take the model that is not quantised (float32, float16 or bfloat16)"
                raise UserError(what, where=path, cure=cure)
            self.specs[name] = TensorSpec(tuple(part.get_shape()), DTYPES[part.get_dtype()])
            self._files[name] = file

    def _open_pickle(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"the shard {path.name} is missing", where=self.folder, cure="fetch it again")
        for name, value in read_pickle(path).items():
            if value.dtype not in DTYPE_NAMES:
                what = f"the tensor {name} is of type {value.dtype}"
                cure = "take the model that is not quantised (float32, float16 or bfloat16)"
                raise UserError(what, where=path, cure=cure)
            self.specs[name] = TensorSpec(tuple(value.shape), value.dtype)
            self._mapped[name] = value

    @property
    def pickled(self) -> bool:
        """Whether they come from older files, which `transformers` is not asked to read here."""
        return bool(self._mapped)

    def names(self) -> list[str]:
        return list(self.specs)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.specs[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.specs[name].dtype

    def read(self, name: str) -> torch.Tensor:
        """A view of the mapped file: only what is touched is read from the disk. Not to be written to."""
        return self._files[name].get_tensor(name) if name in self._files else self._mapped[name]

    def read_rows(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        """Some rows, and no more of the file: else megabytes are read ahead behind each."""
        tensor = self.read(name)
        advise(tensor, mmap.MADV_RANDOM)
        try:
            return tensor[ids]
        finally:
            advise(tensor, mmap.MADV_NORMAL)


def advise(tensor: torch.Tensor, advice: int) -> None:
    """Tell the system how mapped memory is going to be read (madvise). It is a hint, which may be refused."""
    start = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    size = tensor.data_ptr() + tensor.nbytes - start
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice)


def open_tensors(folder: Path, stem: str = "model") -> TensorSource:
    """The tensors of `STEM.safetensors`, or of the shards that `STEM.safetensors.index.json` names.

    Where there is neither, those of `STEM.bin` (of a model `pytorch_model.bin`) and its index, of which nothing is run.
    Raises UserError if there are none, if a file is missing or damaged, or if index and shards disagree.
    """
    older = "pytorch_model" if stem == "model" else stem
    for name in (f"{stem}.safetensors", f"{older}.bin"):
        single, index = folder / name, folder / f"{name}.index.json"
        if single.is_file():
            return TensorSource(folder, [single])
        if index.is_file():
            return open_shards(folder, index)
    raise UserError(f"there is no {stem}.safetensors", where=folder, cure="name a folder that holds weights")


def open_shards(folder: Path, index: Path) -> TensorSource:
    """The tensors of the files that an index names."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError("this index names no tensors", where=index, cure="fetch or make it again")
    source = TensorSource(folder, [folder / name for name in sorted(set(places.values()))])
    odd = sorted(set(places) ^ set(source.specs))
    if odd:
        what = f"the index and its shards disagree about {odd[0]}"
        raise UserError(what, where=index, cure="fetch or make the folder again")
    return source


class TensorWriter:
    """Writes the tensors of a plan, in any order, into `STEM.safetensors` or into shards with an index.

    `with TensorWriter(out, plan) as writer: writer.add(name, tensor)` for each name of the plan. Raises WorkError if
    the disk has not enough room for all of them.
    """

    def __init__(
        self,
        folder: Path,
        plan: Mapping[str, TensorSpec],
        max_shard_bytes: int = MAX_SHARD_BYTES,
        stem: str = "model",
    ) -> None:
        self.folder, self.plan, self.stem = folder, dict(plan), stem
        self.bytes = sum(spec.bytes for spec in plan.values())
        for stale in folder.glob(f"{stem}*.safetensors*"):
            stale.unlink()
        refuse_full_disk(folder, self.bytes)
        groups = group_by_size(self.plan, max_shard_bytes)
        self._missing = set(plan)
        self._places: dict[str, tuple[WrittenFile, int]] = {}
        self._files: list[WrittenFile] = []
        self._disk = ThreadPoolExecutor(1)  # writes and hashes while the next block is made
        self._pending: deque[Future[None]] = deque()
        for number, names in enumerate(groups, start=1):
            header, offsets = plan_shard({name: self.plan[name] for name in names})
            file = WrittenFile(folder / shard_name(stem, number, len(groups)))
            file.write(0, header)
            self._files.append(file)
            self._places |= {name: (file, offset) for name, offset in offsets.items()}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor of the plan. Raises ValueError if it is another one than planned."""
        spec = TensorSpec(tuple(tensor.shape), tensor.dtype)
        if self.plan.get(name) != spec:
            raise ValueError(f"{name}: {spec} is written, {self.plan.get(name)} was planned")
        self.add_rows(name, [tensor])
        self._wait(0)

    def add_rows(self, name: str, blocks: Iterable[torch.Tensor]) -> None:
        """Write one tensor of the plan out of blocks that follow one another in its first dimension; a few are held,
        and must stay as they are.
        """
        spec, written = self.plan[name], 0
        file, offset = self._places[name]
        for block in blocks:
            fits = block.dtype == spec.dtype and tuple(block.shape[1:]) == spec.shape[1:]
            if not fits or written + block.nbytes > spec.bytes:
                found = f"{list(block.shape)} {block.dtype}"
                raise ValueError(f"{name}: a block {found} does not fit into {spec}")
            self._wait(BLOCKS_AHEAD)
            data = block.contiguous().flatten().view(torch.uint8).numpy().data
            self._pending.append(self._disk.submit(file.write, offset + written, data))
            written += block.nbytes
        if written != spec.bytes:
            raise ValueError(f"{name}: {written} bytes are written, {spec} was planned")
        self._missing.discard(name)

    def _wait(self, pending: int) -> None:
        """Until at most so many blocks are not written yet. Raises what writing raised."""
        while len(self._pending) > pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """Write the index and let everything reach the disk. Raises ValueError if a planned tensor is missing."""
        if self._missing:
            raise ValueError(f"{len(self._missing)} tensors were not written, such as {min(self._missing)}")
        self._wait(0)
        if len(self._files) > 1:
            places = {name: file.path.name for name, (file, _) in self._places.items()}
            index = {"metadata": {"total_size": self.bytes}, "weight_map": places}
            write_json(self.folder / f"{self.stem}.safetensors.index.json", index)
        for file in self._files:
            file.finish()

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.close()
        finally:
            self._disk.shutdown(cancel_futures=True)
            for file in self._files:
                file.close()


def refuse_full_disk(folder: Path, size_bytes: int) -> None:
    """WorkError unless so much fits on the disk of a folder."""
    if shutil.disk_usage(folder).free < size_bytes:
        what = f"the disk is full, the weights need {size_bytes / 1e9:.3g} GB"
        raise WorkError(what, where=folder, cure="free some space, the same command goes on")


def group_by_size(plan: Mapping[str, TensorSpec], max_bytes: int) -> list[list[str]]:
    """Names in their order, cut into groups of at most `max_bytes`; a larger tensor is a group of its own."""
    groups: list[list[str]] = []
    room = 0
    for name, spec in plan.items():
        if not groups or spec.bytes > room:
            groups.append([])
            room = max_bytes
        groups[-1].append(name)
        room -= spec.bytes
    return groups


def plan_shard(specs: Mapping[str, TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """The header of one file, and where in the file the bytes of each tensor begin.

    The widest elements come first, so that each tensor is aligned to its own.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, end = {}, 0
    for name in sorted(specs, key=lambda name: -specs[name].dtype.itemsize):
        spec = specs[name]
        starts[name], end = end, end + spec.bytes
        offsets = [starts[name], end]
        entries[name] = {"dtype": DTYPE_NAMES[spec.dtype], "shape": spec.shape, "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + start for name, start in starts.items()}


def shard_name(stem: str, number: int, count: int) -> str:
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{number:05}-of-{count:05}.safetensors"
