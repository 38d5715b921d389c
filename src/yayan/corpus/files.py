"""Files of a corpus: which ones paths stand for, of what kind they are, and their bytes out of any compression."""

import bz2
import gzip
import io
import lzma
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, cast

from yayan import lineage
from yayan.errors import UserError

KINDS = (".txt", ".jsonl", ".json", ".parquet", ".csv", ".tsv")
CHAT_KINDS = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
SNIFFED_BYTES = 1 << 16
PACKED_KINDS = (".parquet",)  # compressed inside, and not to be read from the front
OPENERS: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open, ".zst": None, ".bz2": bz2.open}
MAGIC = {b"\x1f\x8b": ".gz", b"\xfd7zXZ\0": ".xz", b"\x28\xb5\x2f\xfd": ".zst", b"BZh": ".bz2"}
BROKEN = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


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
            cure = f"it must end in {names}, with {', '.join(OPENERS)} behind it if it is compressed"
            raise UserError("this kind of file is not read", where=path, cure=cure)
        else:
            files.append(path)
    if not files:
        raise UserError("no file was named", cure="name files or folders of texts")
    for file in files:
        if file.suffix in OPENERS and kind_of(file) in PACKED_KINDS:
            raise UserError(
                "a parquet file inside another compression is not read", where=file, cure="unpack it"
            )
    return files


@lru_cache(maxsize=4096)
def kind_of(path: Path) -> str:
    """`.jsonl` for `a.jsonl` and `a.jsonl.xz`."""
    return Path(path.stem).suffix if path.suffix in OPENERS else path.suffix


@contextmanager
def open_bytes(path: Path, compression: str | None = None) -> Iterator[IO[bytes]]:
    """The bytes of a file out of its compression, one of OPENERS; by default the one that its name ends in."""
    with path.open("rb") as file:
        yield unpacked(file, compression or path.suffix)


def unpacked(file: IO[bytes], compression: str) -> IO[bytes]:
    """The bytes of an open file out of its compression, one of OPENERS; of any other, as they are."""
    if compression == ".zst":
        import pyarrow  # 0.2 s, which most readings need not spend

        # pyarrow's reader says where a file was cut off, and reads on over the end of a frame
        stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")
        return io.BufferedReader(stream)
    opener = OPENERS.get(compression)
    return cast(IO[bytes], opener(file, "rb") if opener else file)


def sniff(path: Path) -> str:
    """The suffix that a file without a name should have, such as `.jsonl.gz`, from how it begins.

    A text that begins with `{` is taken for JSON lines, one with `[` for JSON, any other one for plain text.
    """
    with path.open("rb") as stream:
        start = stream.read(SNIFFED_BYTES)
    if start.startswith(b"PAR1"):
        return ".parquet"
    compression = next((suffix for magic, suffix in MAGIC.items() if start.startswith(magic)), "")
    if compression:
        try:
            with open_bytes(path, compression) as plain:
                start = plain.read(SNIFFED_BYTES)
        except (OSError, *BROKEN):
            start = b""  # whoever reads it will say what is wrong
    first = start.removeprefix(BOM_UTF8).lstrip()[:1]
    return {b"{": ".jsonl", b"[": ".json"}.get(first, ".txt") + compression


def is_broken(error: BaseException) -> bool:
    """Whether an error says that a compressed file is damaged, not that it cannot be reached."""
    return isinstance(error, BROKEN) or (isinstance(error, OSError) and error.errno is None)
