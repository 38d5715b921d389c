"""Records: whatever is written in any kind and compression is read back, and what is broken is one sentence."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yayan.corpus import records
from yayan.corpus.bad import Bad
from yayan.corpus.chats import chats
from yayan.corpus.read import documents
from yayan.errors import UserError


def zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
    ".bz2": bz2.compress,
}


def as_jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_json(rows: list[dict]) -> bytes:
    return json.dumps(rows, ensure_ascii=False).encode()


def as_table(delimiter: str) -> Callable[[list[dict]], bytes]:
    def write(rows: list[dict]) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()

    return write


def as_parquet(rows: list[dict]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink, row_group_size=7)
    return bytes(sink.getvalue())


KINDS: dict[str, Callable[[list[dict]], bytes]] = {
    ".jsonl": as_jsonl,
    ".json": as_json,
    ".csv": as_table(","),
    ".tsv": as_table("\t"),
    ".parquet": as_parquet,
}
SPLITS: tuple[records.Split, ...] = ("paragraph", "line", "file")
NAMES = [kind + packed for kind in KINDS for packed in COMPRESS if kind != ".parquet" or not packed]
TEXT = st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]), min_size=1, max_size=20)


def as_file(ending: str, rows: list[dict]) -> bytes:
    """A file of one of NAMES that holds these rows."""
    kind = next(kind for kind in sorted(KINDS, key=len, reverse=True) if ending.startswith(kind))
    return COMPRESS[ending.removeprefix(kind)](KINDS[kind](rows))


@pytest.mark.parametrize("ending", NAMES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXT, min_size=1, max_size=20))
def test_every_kind_is_read_back(tmp_path: Path, ending: str, texts: list[str]) -> None:
    rows = [{"id": f"n{i}", "content": text} for i, text in enumerate(texts)]
    path = tmp_path / f"a{ending}"
    path.write_bytes(as_file(ending, rows))
    assert [document.text for document in documents([path])] == texts
    assert [document.text for document in documents([path], "id")] == [row["id"] for row in rows]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([".txt", *NAMES, ".txt.gz", ".txt.zst"]), data=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / f"fuzz{name}"
    path.write_bytes(data)
    for split in SPLITS:
        with suppress(UserError):
            found = [document.text for document in documents([path], split=split)]
            assert all(isinstance(text, str) for text in found)
    bad = Bad(skip=True)
    with suppress(UserError):
        list(documents([path], bad=bad))
        assert bad.lines or data


def test_what_a_document_is_in_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("一\r\n二\n\u3000\n三\n".encode())
    found = {
        split: [d.text for d in documents([path], split=split)] for split in ("paragraph", "line", "file")
    }
    assert found["paragraph"] == ["一\n二", "三"]
    assert [text for text in found["line"] if text.strip()] == ["一", "二", "三"]
    assert found["file"] == ["一\n二\n\u3000\n三\n"]


@pytest.mark.parametrize(
    "ending", [".jsonl.gz", ".jsonl.xz", ".jsonl.zst", ".jsonl.bz2", ".json", ".parquet", ".csv"]
)
def test_of_a_file_that_is_cut_off_the_front_is_used_where_that_is_asked_for(
    tmp_path: Path, ending: str
) -> None:
    kind, _, packed = ending[1:].partition(".")
    rows = [{"text": f"{i} " + "你好" * (i % 50)} for i in range(4000)]
    data = COMPRESS["." + packed if packed else ""](KINDS["." + kind](rows))
    path = tmp_path / f"a{ending}"
    path.write_bytes(data[: len(data) * 3 // 4] if ending != ".csv" else data + b'"x')
    with pytest.raises(UserError, match=r"is broken.*--skip-bad"):
        list(documents([path], bad=Bad(skip=False)))
    bad = Bad(skip=True)
    found = [document.text for document in documents([path], bad=bad)]
    assert found == [row["text"] for row in rows[: len(found)]]
    assert (len(found) > 100) == (ending not in (".parquet", ".jsonl.bz2")) or ending == ".jsonl.bz2"
    assert bad.lines == 1


def test_rows_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('text,n\n"一\n二",1\nonly\n三,3,3\n四,4\n'.encode() + b"\xff,5\n\xe4\xba\x94,6\n")
    with pytest.raises(UserError, match=r"1 fields, not the 2.*a\.csv:4"):
        list(documents([path]))
    bad = Bad(skip=True)
    assert [(d.text, d.line) for d in documents([path], "text", bad)] == [("一\n二", 2), ("四", 6), ("五", 8)]
    assert dict(bad.reasons) == {"wrong number of fields": 2, "not UTF-8": 1}


def test_json_that_is_no_list_is_read_as_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "b.json").write_bytes(b'\xef\xbb\xbf [{"text": "a"}, 5, {"text": "b"}]')
    bad = Bad(skip=True)
    assert [document.text for document in documents([tmp_path], bad=bad)] == ["a", "b"] * 2
    assert bad.places == [f"{tmp_path}/b.json:2: not a JSON object"]


def test_chats_of_each_kind_and_broken_ones_are_counted(tmp_path: Path) -> None:
    rows = [{"instruction": f"ask {i}", "input": "", "output": "say"} for i in range(3)]
    for kind in (".jsonl", ".json", ".csv", ".parquet"):
        (tmp_path / f"a{kind}").write_bytes(KINDS[kind](rows))
    talk = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 2
    (tmp_path / "b.parquet").write_bytes(as_parquet(talk))
    (tmp_path / "c.jsonl").write_bytes(as_jsonl([{"messages": [{"role": "tool", "content": "a"}]}, rows[0]]))
    bad = Bad(skip=True)
    assert len(list(chats([tmp_path], bad))) == 4 * 3 + 2 + 1
    assert dict(bad.reasons) == {"unknown role": 1}


def test_a_parquet_file_in_a_compression_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(as_parquet([{"text": "a"}])))
    with pytest.raises(UserError, match="parquet file inside another compression"):
        list(documents([tmp_path / "a.parquet.gz"]))


@pytest.mark.parametrize(("name", "split"), [("a.jsonl", "line"), ("a.txt", "paragraph"), ("a.txt", "file")])
def test_a_record_that_is_too_long_is_refused(
    tmp_path: Path, name: str, split: records.Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "LONGEST_RECORD_BYTES", 1000)
    path = tmp_path / name
    rows = [{"text": "a"}, {"text": "b" * 1000}, {"text": "c"}]
    path.write_bytes(as_jsonl(rows) if name == "a.jsonl" else b"\n\n".join(r["text"].encode() for r in rows))
    with pytest.raises(UserError, match=r"has more than 1000 bytes.*a\.\w+:[123]"):
        list(documents([path], split=split))
    bad = Bad(skip=True)
    found = [document.text for document in documents([path], bad=bad, split=split)]
    assert found == ([] if split == "file" else ["a", "c"])
    assert dict(bad.reasons) == {"too long": 1}


READ = """
import sys
from pathlib import Path
from yayan.corpus.read import documents
from yayan.errors import UserError
try:
    list(documents([Path(sys.argv[1])]))
except UserError as error:
    print(error)
# the peak of this program alone: ru_maxrss begins with that of the process that started it
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_a_line_of_200_megabytes_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as stream:
        stream.write(b'{"text": "')
        for _ in range(200):
            stream.write(b"x" * 1_000_000)
    done = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, check=True)
    sentence, kilobytes = done.stdout.splitlines()
    assert f"more than 64 MB ({path}:1)" in sentence
    assert int(kilobytes) < 520_000  # Python with its libraries takes 150,000 of it


@pytest.mark.parametrize("ending", NAMES)
def test_where_the_reading_is_in_the_file_goes_from_front_to_end(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    letters = random.Random(1)
    texts = ["".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=2000)) for _ in range(2000)]
    path.write_bytes(as_file(ending, [{"text": text} for text in texts]))
    reading = records.Records(path)
    positions = [reading.position() for _ in reading]
    assert positions == sorted(positions)
    size = path.stat().st_size
    assert positions[1] < size / 3  # a block of bz2 is 0.9 MB
    assert size / 4 < positions[1000] < size / 1.25
    assert positions[-1] == size
