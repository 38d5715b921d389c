"""What was seen, against a plain set: in one call and in many, across moves to the disk, commits and rollbacks."""

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yayan.corpus.seen import HashTable, KeySet, Seen

KEYS = st.one_of(st.integers(0, 60), st.integers(2**64 - 60, 2**64 - 1), st.integers(0, 2**64 - 1))


def plain(seen: set[int], rows: list[list[int]]) -> list[bool]:
    """What `first_seen` must say, by a set of Python; 0 and 1 are one key."""
    answers = []
    for row in rows:
        own = {max(key, 1) for key in row}
        answers.append(bool(own & seen))
        if not answers[-1]:
            seen |= own
    return answers


@given(st.lists(st.lists(st.lists(KEYS, min_size=3, max_size=3), max_size=20), max_size=8))
@settings(max_examples=200, deadline=None)
def test_it_equals_a_plain_set(calls: list[list[list[int]]]) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        seen = KeySet(connection, "seen", 8)  # so small that keys go to the B-tree all the time
        reference: set[int] = set()
        for rows in calls:
            assert seen.first_seen(np.array(rows, np.uint64).reshape(-1, 3)) == plain(reference, rows)
        stored = {key for (key,) in connection.execute("SELECT key FROM seen")}
        assert {int(np.uint64(key % 2**64)) for key in stored} | set(seen.new.keys().tolist()) == reference


@given(st.sets(st.integers(1, 2**64 - 1), max_size=16), st.lists(KEYS.filter(bool)))
def test_hash_table(added: set[int], asked: list[int]) -> None:
    table = HashTable(32)
    halves = np.array(sorted(added), np.uint64)
    table.add(halves[::2])
    table.add(halves[1::2])
    assert table.holds(np.array(asked, np.uint64)).tolist() == [key in added for key in asked]
    assert set(table.keys().tolist()) == added
    assert table.count == len(added)
    table.clear()
    assert not table.holds(halves).any()


def test_exact_and_near_are_two_sets_and_the_first_is_kept(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as connection:
        seen = Seen(connection)
        assert seen.duplicates_exact([5, 7, 5]) == [False, False, True]
        assert seen.duplicates_exact([]) == []
        assert seen.duplicates_exact([7, 8]) == [True, False]
        bands = np.array([[5, 6], [6, 9], [9, 10]], np.uint64)
        # The second has 6 of the first; it is left out, and so is its 9: the third is kept.
        assert seen.duplicates_near(bands) == [False, True, False]
        assert seen.duplicates_near(np.empty((0, 2), np.uint64)) == []
        assert seen.duplicates_near(np.array([[1, 10], [2, 3]], np.uint64)) == [True, False]


def test_what_was_committed_is_there_again_and_nothing_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bands = rng.integers(0, 2**64, (300, 14), dtype=np.uint64)
    file = tmp_path / "journal.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE journal (line INTEGER)")  # the caller's own
        seen = Seen(connection, exact_keys=16, near_keys=1024)
        seen.duplicates_near(bands[:100])
        seen.duplicates_exact(range(10, 50))
        connection.execute("INSERT INTO journal VALUES (100)")
        connection.commit()
        seen.duplicates_near(bands[100:200])
        seen.duplicates_exact(range(50, 60))
        connection.execute("INSERT INTO journal VALUES (200)")
        connection.rollback()
        with pytest.raises(sqlite3.OperationalError):
            connection.execute("SELECT key FROM no_such_table")
    for exact_keys, near_keys in (
        (16, 1024),
        (16, 16),
        (1 << 10, 1 << 12),
    ):  # also with less room than it had
        with closing(sqlite3.connect(file)) as connection:
            seen = Seen(connection, exact_keys=exact_keys, near_keys=near_keys)
            assert connection.execute("SELECT line FROM journal").fetchall() == [(100,)]
            assert seen.duplicates_near(bands) == [True] * 100 + [False] * 200
            assert seen.duplicates_exact(range(10, 60)) == [True] * 40 + [False] * 10
            connection.rollback()


def test_a_call_larger_than_memory(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as connection:
        seen = Seen(connection, exact_keys=64)
        keys = list(range(1, 10_000))
        assert not any(seen.duplicates_exact(keys))
        assert all(seen.duplicates_exact(keys[::-1]))
        (on_disk,) = connection.execute("SELECT count(*) FROM seen_exact").fetchone()
        assert on_disk > 9_800


def test_keys_of_all_64_bits(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as connection:
        seen = Seen(connection, exact_keys=2)
        keys = [0, 2**63 - 1, 2**63, 2**64 - 1]
        assert seen.duplicates_exact(keys) == [False] * 4
        assert seen.duplicates_exact(keys[::-1]) == [True] * 4
