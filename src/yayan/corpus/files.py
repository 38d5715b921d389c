"""Files of a corpus: which ones paths stand for, of what kind they are, and their bytes out of any compression."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pyarrow

from yayan import lineage
from yayan.errors import UserError

KINDS = (".txt", ".jsonl", ".json", ".parquet", ".csv", ".tsv")
CHAT_KINDS = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
PACKED_KINDS = (".parquet",)  # compressed inside, and not to be read from the front
COMPRESSIONS = (".gz", ".xz", ".zst", ".bz2")
BROKEN = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, pyarrow.ArrowException)


def text_files(paths: Iterable[Path], kinds: Sequence[str] = KINDS) -> list[Path]:
    """The files that `paths` stand for. Raises UserError for a path that is missing or of another kind."""
    files: list[Path] = []
    names = ", ".join(kinds)
    for path in paths:
        if path.is_dir():
            inside = [file for file in lineage.files_of(path) if kind_of(file) in kinds]
            if not inside:
                raise UserError(f"no {names} file is in this folder", where=path, cure="name another")
            files += inside
        elif not path.exists():
            raise UserError("there is no such file or folder", where=path, cure="check the path")
        elif kind_of(path) not in kinds:
            cure = f"it must end in {names}, with {', '.join(COMPRESSIONS)} behind it if it is compressed"
            raise UserError("this kind of file is not read", where=path, cure=cure)
        else:
            files.append(path)
    if not files:
        raise UserError("no file was named", cure="name files or folders of texts")
    for file in files:
        if file.suffix in COMPRESSIONS and kind_of(file) in PACKED_KINDS:
            raise UserError("a parquet file inside another compression is not read", where=file, cure="unpack it")
    return files


def kind_of(path: Path) -> str:
    """`.jsonl` for `a.jsonl` and `a.jsonl.xz`."""
    return Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


@contextmanager
def open_bytes(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The bytes of a file out of its compression, and the file itself, whose `tell` says how much of it was read."""
    with path.open("rb") as file:
        if path.suffix == ".zst":
            # pyarrow's reader says where a file was cut off, and reads on over the end of a frame
            stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")
            yield io.BufferedReader(stream), file
            return
        openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
        opener = openers.get(path.suffix)
        yield cast(IO[bytes], opener(file, "rb") if opener else file), file


def is_broken(error: BaseException) -> bool:
    """Whether an error says that a compressed file is damaged, not that it cannot be reached."""
    return isinstance(error, BROKEN) or (isinstance(error, OSError) and error.errno is None)
