"""Patterns of paths, such as `texts/**/*.jsonl`, and what they match."""

import glob
from pathlib import Path

from yayan.errors import UserError


def is_pattern(path: Path) -> bool:
    """Whether a path is to be matched against files: it has one of `*?[` in it, and nothing is called so."""
    return any(mark in str(path) for mark in "*?[") and not path.exists()


def matches(path: Path) -> list[Path]:
    """Files and folders that a pattern matches, sorted; `**` is any depth, hidden ones are not matched.

    What lies in a folder that is matched, too, is left to the folder.
    """
    found = sorted({Path(item) for item in glob.glob(str(path), recursive=True)})  # noqa: PTH207 (Path.glob is relative)
    folders = {item for item in found if item.is_dir()}
    return [item for item in found if folders.isdisjoint(item.parents)]


def expand(path: Path) -> list[Path]:
    """The paths that a pattern matches, or a path that is none by itself. Raises UserError if nothing is matched."""
    if not is_pattern(path):
        return [path]
    found = matches(path)
    if not found:
        raise UserError("no file matches this pattern", where=path, cure="check it")
    return found
