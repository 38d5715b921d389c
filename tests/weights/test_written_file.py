"""Files written in parts: the bytes, their hash, and file systems that do not write past the page cache."""

import errno
import hashlib
import os
import random
from pathlib import Path
from typing import Any

import pytest

from yayan import lineage
from yayan.weights import written_file
from yayan.weights.written_file import WrittenFile

STAGE = 2 * 4096


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> dict[Path, str]:
    found: dict[Path, str] = {}
    monkeypatch.setattr(lineage, "remember", lambda path, sha256: found.update({path: sha256}))
    monkeypatch.setattr(written_file, "STAGE_BYTES", STAGE)
    return found


def refuse_odd_multiples(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file system that wants blocks larger than ours."""
    real, direct = os.pwrite, written_file.open_directly

    def open_directly(path: Path) -> int | None:
        opened.append(direct(path))
        return opened[-1]

    def pwrite(descriptor: int, data: Any, offset: int) -> int:
        if descriptor in opened:
            raise OSError(errno.EINVAL, "no such multiple")
        return real(descriptor, data, offset)

    opened: list[int | None] = []
    monkeypatch.setattr(written_file, "open_directly", open_directly)
    monkeypatch.setattr(os, "pwrite", pwrite)


@pytest.mark.parametrize("kind", ["direct", "none", "refused"])
def test_what_is_appended_is_there_and_its_hash_is_known(
    kind: str, tmp_path: Path, remembered: dict[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "none":
        monkeypatch.setattr(written_file, "open_directly", lambda _: None)
    if kind == "refused":
        refuse_odd_multiples(monkeypatch)
    for seed in range(20):
        rng = random.Random(seed)
        parts = [
            rng.randbytes(rng.choice([0, 1, 100, STAGE, 3 * STAGE, rng.randint(0, 20_000)])) for _ in range(9)
        ]
        path = tmp_path / f"{seed}.bin"
        file, whole = WrittenFile(path), b""
        for part in parts:
            file.append(part)
            file.align(32)
            whole += part + bytes(-(len(whole) + len(part)) % 32)
        file.finish()
        assert path.read_bytes() == whole
        assert remembered.pop(path) == hashlib.sha256(whole).hexdigest()


def test_parts_in_any_order_are_written_and_not_hashed(tmp_path: Path, remembered: dict[Path, str]) -> None:
    rng = random.Random(0)
    for number in range(20):
        whole = rng.randbytes(rng.randint(1, 5 * STAGE))
        cuts = sorted({0, len(whole), *(rng.randint(0, len(whole)) for _ in range(4))})
        parts = [(start, whole[start:end]) for start, end in zip(cuts, cuts[1:], strict=False)]
        rng.shuffle(parts)
        path = tmp_path / f"{number}.bin"
        file = WrittenFile(path)
        for start, part in parts:
            file.write(start, part)
        file.finish()
        assert path.read_bytes() == whole
        if parts != sorted(parts):
            assert path not in remembered


def test_a_full_disk_is_no_multiple(
    tmp_path: Path, remembered: dict[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pwrite(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", pwrite)
    file = WrittenFile(tmp_path / "x")
    with pytest.raises(OSError, match="full"):
        file.append(bytes(STAGE))
    file.close()
    assert not remembered
