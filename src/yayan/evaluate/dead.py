"""Ids that no text can produce: rows of a model that are never trained and cost memory all the same."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from yayan.evaluate.encoders import Encoder

BEFORE = ("", "\n", " ", "中", "a")  # what stands before a token's own text, one after the other
ROUNDS = (64, 448, 3584)  # texts that are tried for a part of a character, as long as none gives it
FORMS = 4 * sum(ROUNDS)  # of one shape: behind any lead byte a quarter of all forms or more are characters
BATCH = 8192  # texts encoded at once
LEADS = {
    2: range(0xC2, 0xE0),
    3: range(0xE0, 0xF0),
    4: range(0xF0, 0xF5),
}  # by bytes of a character, RFC 3629
CONTINUATION = range(0x80, 0xC0)
Slots = Sequence[Sequence[int]]  # for each byte, the values that it may have


@dataclass(frozen=True)
class Census:
    """The ids of a tokenizer. `dead`: no text gives them; `unreachable_bytes`: nor these, of the 256 bytes."""

    ids: int
    special: int
    dead: list[int]
    unreachable_bytes: list[int]


def take_census(encoder: Encoder, on_tried: Callable[[int], None] = lambda count: None) -> Census:
    """Try to produce each id; special and unknown tokens are not tried.

    BPE and Unigram cut a stretch of text alike wherever its neighbours leave it alone. So an id that its own text
    does not give, neither alone nor behind a line break, a space, a letter or a Chinese character, is given by no
    text. What is a part of a character is tried in at most 4,096 texts that hold its bytes, spread over all that do.
    A byte has no text where it never occurs in UTF-8 (C0, C1, F5 to FF) or where all its characters have tokens.
    """
    tokens = {number: token for number, token in enumerate(encoder.tokens) if token is not None}
    pending = {number for number, token in tokens.items() if token.kind in ("text", "byte")}

    def produce(texts: Iterable[str]) -> None:
        remaining = iter(texts)
        while batch := list(itertools.islice(remaining, BATCH)):
            for ids in encoder.encode_batch(batch):
                pending.difference_update(ids)
            on_tried(len(batch))

    for before in BEFORE:
        produce([before + text for number in sorted(pending) if (text := tokens[number].text) is not None])
    parts = sorted(number for number in pending if tokens[number].text is None)
    streams = {number: completions(tokens[number].data) for number in parts}
    for count in ROUNDS:
        left = [number for number in parts if number in pending]
        texts = (text for number in left for text in itertools.islice(streams[number], count))
        produce(f"{text}\n{text}" for text in texts)  # some tokenizers put a space before the first
    bytes_left = sorted(number for number in pending if tokens[number].kind == "byte")
    return Census(
        ids=len(tokens),
        special=sum(token.kind in ("special", "unknown") for token in tokens.values()),
        dead=sorted(pending.difference(bytes_left)),
        unreachable_bytes=bytes_left,
    )


def completions(data: bytes) -> Iterator[str]:
    """Texts whose UTF-8 holds `data`, which begins or ends within a character; those of each shape in turn."""
    streams = [itertools.islice(spread(slots), FORMS) for slots in shapes(data)]
    for row in itertools.zip_longest(*streams):
        for raw in row:
            if raw is not None:
                with contextlib.suppress(UnicodeDecodeError):  # overlong forms and surrogates
                    yield raw.decode("utf-8")


def shapes(data: bytes) -> Iterator[Slots]:
    """The ways to complete the characters at both ends of `data`: for each byte, its possible values."""
    tail = next((n for n, byte in enumerate(data) if byte not in CONTINUATION), len(data))
    begun, missing = 0, 0  # bytes of the last character that are there and that it lacks
    for length, leads in LEADS.items():
        for n in range(1, min(length - 1, len(data) - tail) + 1):
            if data[-n] in leads:
                begun, missing = n, length - n
    try:
        data[tail : len(data) - begun].decode("utf-8")
    except UnicodeDecodeError:
        return
    fixed: Slots = [[byte] for byte in data]
    if tail == 0:
        yield [*fixed, *[CONTINUATION] * missing]
        return
    for length, leads in LEADS.items():
        free = length - 1 - tail
        for before in range(free + 1) if tail == len(data) else range(max(free, 0), free + 1):
            after = missing if tail < len(data) else free - before
            yield [leads, *[CONTINUATION] * before, *fixed, *[CONTINUATION] * after]


def spread(slots: Slots) -> Iterator[bytes]:
    """All strings of bytes of a shape, each once, any few of them all over it: steps of the golden ratio."""
    total = math.prod(map(len, slots))
    step = next(n for n in itertools.count(round(total / 1.618) or 1) if math.gcd(n, total) == 1)
    for number in range(total):
        index, raw = number * step % total, bytearray()
        for values in slots:
            index, digit = divmod(index, len(values))
            raw.append(values[digit])
        yield bytes(raw)
