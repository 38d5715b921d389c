"""Where a folder came from: `yayan.json` beside the artefact, and the hashes that it is made of.

A folder's hash is that of its files' names and contents, except `yayan.json` and `README.md`, which tell about the
artefact and are no part of it: the same artefact made again an hour later has the same hash. Files are read once; the
hash is remembered by path, size and modification time in the user's cache folder.
"""

import hashlib
import json
import os
import platform
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from yayan import __version__
from yayan.errors import UserError
from yayan.progress import Progress

RECORD_NAME = "yayan.json"
RECORD_FORMAT = 1
RECORD_KEYS = (
    "format",
    "stage",
    "version",
    "options",
    "inputs",
    "tokenizer",
    "template",
    "licences",
    "metrics",
    "seconds",
    "started",
    "machine",
)
NOT_THE_ARTEFACT = {RECORD_NAME, "README.md"}
CHUNK_BYTES = 1 << 20


def cache_folder() -> Path:
    """The user's cache folder for what can be made again (`$XDG_CACHE_HOME/yayan`)."""
    root = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(root) if root else Path.home() / ".cache") / "yayan"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, or of the sorted names and hashes of a folder's files.

    Raises UserError if nothing is there.
    """
    if path.is_file():
        return _sha256_of_file(path)
    if not path.is_dir():
        raise UserError("there is no such file or folder", where=path, cure="check the path")
    digest = hashlib.sha256()
    for file in files_of(path):
        digest.update(f"{file.relative_to(path).as_posix()}\0{_sha256_of_file(file)}\n".encode())
    return digest.hexdigest()


def by_content(path: Path) -> dict[str, str]:
    """A path with the hash of what lies there."""
    return {"path": str(path), "sha256": sha256_of(path)}


def files_of(folder: Path) -> Iterator[Path]:
    """The files that make up an artefact, sorted by name; hidden ones do not count."""
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if file.is_file() and not hidden and inside.as_posix() not in NOT_THE_ARTEFACT:
            yield file


def remember(path: Path, sha256: str) -> None:
    """Keep the hash of a file that was just written, so that it need not be read for it."""
    _remembered(key_of(path.stat()), sha256)


def key_of(status: os.stat_result) -> tuple[str, int, int]:
    """What a file is known by: its place on the disk, which stays when OUT.partial becomes OUT, size and time."""
    return f"{status.st_dev}:{status.st_ino}", status.st_size, status.st_mtime_ns


def _sha256_of_file(path: Path) -> str:
    status = path.stat()
    if known := _remembered(key := key_of(status)):
        return known
    digest = hashlib.sha256()
    try:
        size = status.st_size / 1e6
        with path.open("rb") as stream, Progress(f"hash {path.name}", total=size, unit="MB") as bar:
            while block := stream.read(CHUNK_BYTES):
                digest.update(block)
                bar.advance(len(block) / 1e6)
    except OSError as error:
        what = f"the file cannot be read, {error.strerror}"
        raise UserError(what, where=path, cure="check the path and its permissions") from error
    _remembered(key, digest.hexdigest())
    return digest.hexdigest()


def _remembered(key: tuple[str, int, int], sha256: str | None = None) -> str | None:
    """The hash that is remembered for (inode, bytes, time), after `sha256` was put there if it is given.

    None if there is none, or if the cache cannot be used (a full disk, a home that is read-only): it only saves time.
    """
    try:
        with closing(sqlite3.connect(cache_folder() / "hashes.sqlite", timeout=30)) as memory:
            memory.execute("CREATE TABLE IF NOT EXISTS inodes (inode PRIMARY KEY, bytes, mtime_ns, sha256)")
            if sha256:
                memory.execute("INSERT OR REPLACE INTO inodes VALUES (?, ?, ?, ?)", (*key, sha256))
                memory.commit()
            row = memory.execute(
                "SELECT sha256 FROM inodes WHERE inode = ? AND bytes = ? AND mtime_ns = ?", key
            ).fetchone()
    except (OSError, sqlite3.Error):
        return None
    return str(row[0]) if row else None


def read(folder: Path) -> dict | None:
    """The record of a folder, or None where there is none (a model from elsewhere)."""
    file = folder / RECORD_NAME
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError("this record is not JSON", where=file, cure="make the folder again") from error
    if not isinstance(record, dict) or record.get("format") != RECORD_FORMAT:
        raise UserError(
            f"this record is not of format {RECORD_FORMAT}", where=file, cure="make the folder again"
        )
    if missing := [key for key in RECORD_KEYS if key not in record]:
        raise UserError(f"this record has no {missing[0]}", where=file, cure="make the folder again")
    return record


def write(folder: Path, record: dict) -> None:
    """Write a record whole or not at all."""
    text = json.dumps(record, ensure_ascii=False, indent=2, default=str) + "\n"
    temporary = folder / (RECORD_NAME + ".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / RECORD_NAME)


def machine() -> dict[str, object]:
    """What the figures of a record were measured on."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "yayan": __version__,
    }


def licences_of(folder: Path) -> list[str]:
    """Licences that a folder's record names, and a `LICENSE` file of a model from elsewhere."""
    record = read(folder) if folder.is_dir() else None
    found = set(record["licences"]) if record else set()
    if record is None and folder.is_dir():
        found |= {file.name for file in folder.glob("LICEN[CS]E*")}
    return sorted(found)
