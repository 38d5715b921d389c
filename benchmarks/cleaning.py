"""How fast is each step of cleaning, what do near duplicates find, and how long must a shared part be?

Question  Megabytes (of UTF-8) a second and core of each step; found shares of edited copies and of real pairs against
          Jaccard's similarity; keys a second and memory of `Seen`; documents and planted questions that n pieces find.
Peers     For `seen`, a B-tree of sqlite that takes the keys of each call at once.
Limit     For `rates`, encoding the text as UTF-8.
Command   python benchmarks/cleaning.py --data DATA [rates duplicates seen pieces planted]

Where we expect to lose: `nfkc` and near duplicates of very short texts. The tables are printed as Markdown. Rates are
those of one process and its CPU seconds.
"""

import argparse
import json
import lzma
import random
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from yayan.corpus import duplicates
from yayan.corpus.clean import Cleaner, Cleaning
from yayan.corpus.decontaminate import Decontaminator, record_text
from yayan.corpus.duplicates import BAND_VALUES, BANDS, exact_key, near_bands
from yayan.corpus.read import documents
from yayan.corpus.seen import Seen
from yayan.corpus.shingles import batches, pieces_of, shingles, shingles_of

CHINESE = (
    *("zh-classical-modern", "zh-csl-abstracts", "zh-docs-pingcap", "zh-docs-react", "zh-juejin", "zh-laws"),
    *("zh-lctt-tech", "zh-novels-classical", "zh-poetry", "zh-reviews", "zh-weekly"),
)
TIMED = ("zh-laws", "zh-lctt-tech", "zh-reviews", "en-public-domain")
EVALUATION = ("eval-ceval/dev", "eval-ceval/val", "eval-cmmlu/test")
LENGTHS = (8, 10, 13, 16, 20, 25, 30)
FORMULA_DOCUMENTS = 10  # a shared part of more documents than that is no leaked question
CALL_DOCUMENTS = 1000


def clean_all(cleaner: Cleaner, texts: list[str]) -> list[object]:
    return [cleaner.clean(text) for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tables = {
        "rates": rates,
        "duplicates": duplicates_found,
        "seen": seen,
        "pieces": pieces_needed,
        "planted": planted,
    }
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--keys", type=float, default=1e7, help="of bands, for `seen`")
    parser.add_argument(
        "tables", nargs="*", default=[*tables], metavar="TABLE", help=f"of {', '.join(tables)}"
    )
    options = parser.parse_args()
    for name in options.tables:
        print(f"\n{name}\n")
        tables[name](options)


def texts_of(data: Path, name: str, megabytes: float = 1e9) -> list[str]:
    """The first documents of a corpus."""
    texts, room = [], megabytes * 1e6
    for item in documents([data / name / "train.jsonl.xz"]):
        room -= len(item.text.encode())
        texts.append(item.text)
        if room < 0:
            break
    return texts


def records_of(data: Path, names: Sequence[str] = EVALUATION) -> Iterator[tuple[str, dict[str, str]]]:
    for name in names:
        with lzma.open(data / f"{name}.jsonl.xz", "rt", encoding="utf-8") as lines:
            yield from ((f"{name}:{i}", json.loads(line)) for i, line in enumerate(lines, start=1))


def rates(options: argparse.Namespace) -> None:
    found = Decontaminator((place, record_text(record)) for place, record in records_of(options.data))
    cleaners = {
        "mojibake": Cleaning(mojibake=True),
        "control": Cleaning(control=True),
        "nfc": Cleaning(normal_form="nfc"),
        "nfkc": Cleaning(normal_form="nfkc"),
        "simplified": Cleaning(simplified=True),
        "max_symbols, script": Cleaning(max_symbols=1.0, script=("han", "latin"), min_script=0.0),
    }
    steps: dict[str, Callable[[list[str]], object]] = {
        "limit: encode": lambda texts: [text.encode() for text in texts],
        **{name: partial(clean_all, Cleaner(asked)) for name, asked in cleaners.items()},
        "exact_key": lambda texts: [exact_key(text) for text in texts],
        "shingles, n = 13": lambda texts: [shingles_of(pieces_of(texts[a:b]), 13) for a, b in batches(texts)],
        "near_bands": near_bands,
        "Decontaminator.find_all": found.find_all,
    }
    corpora = {name: texts_of(options.data, name, 10) for name in TIMED}
    rows = []
    for name, step in steps.items():
        step(["雅言"])
        row = [name]
        for texts in corpora.values():
            started = time.process_time()
            step(texts)
            seconds = time.process_time() - started
            row.append(f"{sum(len(text.encode()) for text in texts) / 1e6 / seconds:,.0f}")
        rows.append(row)
    print_table(["MB/s of one core", *TIMED], rows)


def duplicates_found(options: argparse.Namespace) -> None:
    rows = []
    for corpus in ("zh-laws", "zh-lctt-tech"):
        texts = [text[:20_000] for text in texts_of(options.data, corpus) if len(text) >= 500]
        sample = random.Random(0).sample(texts, 400)
        for manner, edit in (("characters", scattered), ("passages", passages)):
            for share in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
                rng = random.Random(1)
                copies = [edit(rng, text, share, rng.choice(texts)) for text in sample]
                keys, copied = near_bands(sample), near_bands(copies)
                true = np.array([jaccard(*pair) for pair in zip(sample, copies, strict=True)])
                hit = (keys == copied).any(1).mean()
                rows.append(
                    [
                        corpus,
                        f"{share:.0%} of {manner}",
                        f"{true.mean():.2f}",
                        f"{hit:.0%}",
                        f"{chance(true):.0%}",
                    ]
                )
    print_table(["corpus", "replaced", "Jaccard, mean", "found", "by the formula"], rows)
    print()
    real_pairs(texts_of(options.data, "zh-laws"))


def real_pairs(texts: list[str]) -> None:
    """Of all pairs of laws: how often bands find those of each similarity."""
    keys = near_bands(texts)
    sets = [np.unique(shingles(text, duplicates.SHINGLE_PIECES)) for text in texts]
    order = np.argsort(np.concatenate(sets), kind="stable")
    owners = np.repeat(np.arange(len(sets)), [len(own) for own in sets])[order]
    values = np.concatenate(sets)[order]
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    shared = np.zeros((len(sets), len(sets)), np.int32)
    for group in np.split(owners, starts[1:]):
        if len(group) > 1:
            shared[np.ix_(group, group)] += 1
    size = np.array([len(own) for own in sets])
    one, other = np.triu_indices(len(sets), 1)
    both = shared[one, other]
    true = both / np.maximum(size[one] + size[other] - both, 1)
    hit = np.zeros(len(one), bool)
    for band in range(BANDS):
        hit |= keys[one, band] == keys[other, band]
    rows = []
    for low in (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        own = (true >= low) & (true < low + 0.1 if low < 0.9 else true <= 1)
        rows.append(
            [
                f"{low:.1f} to {low + 0.1:.1f}",
                f"{own.sum():,}",
                f"{hit[own].sum():,}",
                f"{hit[own].mean():.1%}",
                f"{chance(true[own]):.1%}",
            ]
        )
    print_table(["Jaccard of two laws", "pairs", "found", "share", "by the formula"], rows)
    for limit in (0.5, 0.7, 0.8):
        precision, recall = (true[hit] >= limit).mean(), hit[true >= limit].mean()
        print(f"\nPairs of {limit} and more: precision {precision:.1%}, recall {recall:.1%}")


def scattered(rng: random.Random, text: str, share: float, _: str) -> str:
    """Single characters replaced, by others of the text."""
    places = set(rng.sample(range(len(text)), round(share * len(text))))
    return "".join(rng.choice(text) if i in places else character for i, character in enumerate(text))


def passages(rng: random.Random, text: str, share: float, other: str) -> str:
    """Passages of 50 characters replaced, by those of another text."""
    parts = [text[i : i + 50] for i in range(0, len(text), 50)]
    for i in rng.sample(range(len(parts)), round(share * len(parts))):
        at = rng.randrange(max(len(other) - 50, 1))
        parts[i] = other[at : at + 50]
    return "".join(parts)


def jaccard(one: str, other: str) -> float:
    a, b = (np.unique(shingles(text, duplicates.SHINGLE_PIECES)) for text in (one, other))
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def chance(true: np.ndarray) -> float:
    return float((1 - (1 - true**BAND_VALUES) ** BANDS).mean()) if len(true) else float("nan")


def seen(options: argparse.Namespace) -> None:
    rows = []
    for name, most in (("Seen", options.keys), ("B-tree at once", min(options.keys, 2e6))):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "seen.sqlite"
            connection = sqlite3.connect(file)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            take = Seen(connection).duplicates_near if name == "Seen" else at_once(connection)
            rng = np.random.default_rng(0)
            done, part, started, slowest = 0, 0, time.perf_counter(), 0.0
            while done < most:
                keys = rng.integers(1, 2**64, (CALL_DOCUMENTS, BANDS), dtype=np.uint64)
                call = time.perf_counter()
                take(keys)
                connection.commit()
                slowest = max(slowest, time.perf_counter() - call)
                done += keys.size
                if done - part >= most / 5:
                    rate = (done - part) / (time.perf_counter() - started)
                    size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
                    rows.append(
                        [
                            name,
                            f"{done / 1e6:.1f}",
                            f"{rate:,.0f}",
                            f"{rate / BANDS:,.0f}",
                            f"{slowest:.1f}",
                            f"{anonymous_megabytes()}",
                            f"{size:,.0f}",
                        ]
                    )
                    part, started, slowest = done, time.perf_counter(), 0.0
            connection.close()
    print_table(
        ["", "M keys", "keys/s", "documents/s", "slowest call, s", "anonymous memory, MB", "on disk, MB"],
        rows,
    )


def at_once(connection: sqlite3.Connection) -> Callable[[np.ndarray], object]:
    connection.execute(f"PRAGMA cache_size = -{32 << 10}")
    connection.execute("CREATE TABLE plain (key INTEGER PRIMARY KEY)")

    def take(keys: np.ndarray) -> None:
        rows = [(key,) for key in np.sort(keys.ravel().view(np.int64)).tolist()]
        connection.executemany("INSERT OR IGNORE INTO plain VALUES (?)", rows)

    return take


def anonymous_megabytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) // 1024


def pieces_needed(options: argparse.Namespace) -> None:
    corpora = {name: texts_of(options.data, name) for name in CHINESE}
    texts = [(place, record_text(record)) for place, record in records_of(options.data)]
    rows = []
    for n in LENGTHS:
        found = Decontaminator(texts, n, n)
        matches = {name: [match for match in found.find_all(own) if match] for name, own in corpora.items()}
        laws, total = len(matches["zh-laws"]), sum(map(len, matches.values()))
        shared = Counter(match.shared for own in matches.values() for match in own)
        formulas = sum(count for count in shared.values() if count > FORMULA_DOCUMENTS)
        rows.append(
            [str(n), f"{total:,}", f"{laws:,}", f"{total - laws:,}", f"{formulas:,}", f"{found.too_short:,}"]
        )
    documents_looked_at = sum(map(len, corpora.values()))
    print(f"{len(texts):,} evaluation texts, {documents_looked_at:,} documents\n")
    print_table(["n", "documents found", "laws", "others", "by a formula", "texts too short"], rows)


def planted(options: argparse.Namespace) -> None:
    hosts, rng, rows = texts_of(options.data, "zh-weekly"), random.Random(0), []
    for names in (("eval-ceval/dev", "eval-ceval/val"), ("eval-cmmlu/test",), ("eval-mmlu/test",)):
        records = list(records_of(options.data, names))
        sample = rng.sample([record for _, record in records], 1500)
        hosted = [rng.choice(hosts) for _ in sample]
        full = [f"{host}\n1. {printed(record)}" for host, record in zip(hosted, sample, strict=True)]
        bare = [f"{host}\n{record['question']}" for host, record in zip(hosted, sample, strict=True)]
        for n in LENGTHS:
            ours = Decontaminator(((place, record_text(record)) for place, record in records), n, n)
            plain = Decontaminator(((place, "\n".join(record.values())) for place, record in records), n, n)
            shares = [(ours, full), (plain, full), (ours, bare)]
            found = [
                sum(match is not None for match in each.find_all(own)) / len(own) for each, own in shares
            ]
            rows.append([names[0].split("/")[0], str(n), *(f"{share:.1%}" for share in found)])
    print_table(["", "n", "question and choices", "the same, letters unknown", "question alone"], rows)


def printed(record: dict[str, str]) -> str:
    return "\n".join([record["question"], *(f"{letter}. {record[letter]}" for letter in "ABCD")])


def print_table(head: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("| --- |" + " ---: |" * (len(head) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
