"""The files of a folder or of a zip archive, opened alike; an archive is read without unpacking it."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO
from zipfile import BadZipFile, ZipFile, is_zipfile

from yayan import lineage
from yayan.corpus.files import BROKEN, open_bytes, unpacked
from yayan.errors import UserError

ODD_FOLDERS = ("__MACOSX",)


@dataclass(frozen=True)
class File:
    """A file by its name inside a folder or archive."""

    source: Path
    name: str

    @property
    def place(self) -> str:
        return str(self.source / self.name)

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Its bytes, out of the compression that its name ends in; UserError where they cannot be read."""
        try:
            if self.source.is_dir():
                with open_bytes(self.source / self.name) as stream:
                    yield stream
            else:
                with ZipFile(self.source) as archive, archive.open(self.name) as stream:
                    yield unpacked(stream, PurePosixPath(self.name).suffix)
        except (OSError, BadZipFile, RuntimeError, *BROKEN) as error:  # RuntimeError: a password is asked for
            raise UserError(
                f"this file cannot be read, {error}", where=self.place, cure="fetch it again"
            ) from error

    @contextmanager
    def open_text(self) -> Iterator[IO[str]]:
        """As UTF-8, with or without a byte order mark; UserError where it is none, or no CSV for its reader."""
        try:
            with self.open() as stream:
                yield io.TextIOWrapper(stream, "utf-8-sig", newline="")
        except (UnicodeDecodeError, csv.Error) as error:
            what = f"this file is no UTF-8 CSV, {error}"
            raise UserError(what, where=self.place, cure="save it as UTF-8") from error


def files_in(source: Path) -> dict[str, File]:
    """All files by name, sorted; hidden ones do not count. UserError for what is neither a folder nor a zip archive."""
    if source.is_dir():
        names = [file.relative_to(source).as_posix() for file in lineage.files_of(source)]
    elif is_zipfile(source):
        with ZipFile(source) as archive:
            names = [item.filename for item in archive.infolist() if not item.is_dir()]
    else:
        what = "this is neither a folder nor a zip archive" if source.exists() else "nothing is there"
        raise UserError(what, where=source, cure="name the folder or the archive of the benchmark")

    def counts(name: str) -> bool:
        return not any(part.startswith(".") or part in ODD_FOLDERS for part in PurePosixPath(name).parts)

    return {name: File(source, name) for name in sorted(filter(counts, names))}
