"""The figures and proofs of a finished tokenizer."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from yayan.errors import WorkError
from yayan.tokenizer import Piece, Tokenizer, load_tokenizer
from yayan.vocab.base import Base
from yayan.vocab.count import Source
from yayan.vocab.extend import open_sentencepiece_base
from yayan.vocab.prove import Changes, find_changes, probe_texts, prove_readers, prove_round_trip, witnesses
from yayan.vocab.sample import Sample

SHOWN = 20
WITNESSES_FILE = "witnesses.json"


def write_witnesses(folder: Path, texts: Sequence[str]) -> None:
    """A text for each new id, in their order, that gives it."""
    content = json.dumps(texts, ensure_ascii=False, indent=0)
    (folder / WITNESSES_FILE).write_text(content + "\n", encoding="utf-8")


def describe(work: Path, base: Base | None, sample: Sample, chosen: Mapping[str, str]) -> dict[str, object]:
    """Size, new tokens, tokens per character on the sample of the corpus.

    `chosen`: names of the new tokens, each with a text that gives it.
    """
    tokenizer = load_tokenizer(work)
    characters = sum(map(len, sample.texts))
    before = None
    if base is not None:
        cuts = base.plain.encode_batch_fast(sample.texts, add_special_tokens=False)
        before = round(sum(len(cut.ids) for cut in cuts) / characters, 4)
    texts = [base.text_of(name) if base else name for name in chosen]
    words = [text for text in texts if text and len(text) > 1]
    after = sum(map(len, tokenizer.encode_batch(sample.texts))) / characters
    return {
        "size": tokenizer.size,
        "base_size": base.size if base else 0,
        "new_pieces": len(chosen),
        "new_characters": sum(text is not None and len(text) == 1 for text in texts),
        "new_parts_of_characters": texts.count(None),
        "tokens_per_character_before": before,
        "tokens_per_character_after": round(after, 4),
        "sample_characters": characters,
        "corpus_characters": sample.characters,
        "corpus_documents": sample.documents,
        "first_pieces": words[:SHOWN],
        "longest_pieces": sorted(words, key=len, reverse=True)[:SHOWN],
    }


def prove(
    work: Path, base: Base | None, sample: Sample, chosen: Mapping[str, str], own_language: Sequence[str]
) -> dict[str, object]:
    """What holds of the tokenizer, told on the way. Raises WorkError if something does not."""
    tokenizer = load_tokenizer(work)
    first = base.taken if base else 0
    dead = 0 if base else dead_pieces(work, tokenizer)
    unwitnessed = [
        text
        for number, text in enumerate(chosen.values(), start=first)
        if number not in tokenizer.plain.encode(text, add_special_tokens=False).ids
    ]
    if unwitnessed:
        raise WorkError(
            f"{len(unwitnessed)} new tokens are dead, such as that of {unwitnessed[0]!r}", where=work
        )
    proofs: dict[str, object] = {"dead_pieces": dead, "witnesses": len(chosen)}
    texts = probe_texts(tokenizer, first, sample.texts)
    if base is not None:
        changes = {"base_text": own_language, "probes": texts}
        for name, some in changes.items():
            proofs[name] = changes_in(base, tokenizer, some, work)
    kept = prove_round_trip(work, tokenizer, texts, base)
    return proofs | {"equal_texts": {"round trip": kept, **prove_readers(work, tokenizer, texts)}}


def dead_pieces(work: Path, tokenizer: Tokenizer) -> int:
    """Pieces of a new tokenizer that no text gives."""
    own = open_sentencepiece_base(work)
    names = [item.piece for item in own.proto.pieces if item.type == Piece.NORMAL]
    return len(names) - len(witnesses(own, tokenizer.plain, names))


def changes_in(base: Base, tokenizer: Tokenizer, texts: Sequence[str], where: Path) -> dict[str, object]:
    """How many old tokens became part of new ones. Raises WorkError if a text changed in any other way."""
    found: Changes = find_changes(base, tokenizer.plain, texts)
    if found.changed_outside:
        raise WorkError(f"{found.changed_outside} texts changed outside of new tokens", where=where)
    return {
        "texts": found.texts,
        "tokens": found.tokens,
        "changed_texts": found.changed_texts,
        "changed_tokens": found.changed_tokens,
        "changed_share": round(found.share, 6),
        "changed_outside_new_tokens": found.changed_outside,
    }


def tell(metrics: Mapping) -> None:
    """Print the proofs, a line each."""
    proofs = metrics["proofs"]
    equal = ", ".join(f"{count:,} ({reader})" for reader, count in proofs["equal_texts"].items())
    lines = [f"texts cut alike: {equal}"]
    if metrics["base_size"]:
        kept, before, after = (
            proofs["base_text"],
            metrics["tokens_per_character_before"],
            metrics["tokens_per_character_after"],
        )
        lines = [
            f"{metrics['new_pieces']:,} new tokens; {before:.3f} tokens a character of the corpus became {after:.3f}",
            f"dead tokens: {proofs['dead_pieces']}; {WITNESSES_FILE} has a text for each that gives it",
            f"text in the base's language: {kept['changed_tokens']:,} of {kept['tokens']:,} tokens became part of new "
            f"ones, {kept['changed_outside_new_tokens']} texts changed elsewhere",
            *lines,
        ]
    print("\n".join(lines))


def figures_of(
    sources: Sequence[Source], shares: Sequence[float], paths: Sequence[Path]
) -> list[dict[str, object]]:
    """What each source held of the scripts, and its share of what was learnt from."""
    return [
        {
            "path": str(path),
            "characters": source.characters,
            "share": round(share, 4),
            "runs_forgotten": source.forgotten,
        }
        for path, source, share in zip(paths, sources, shares, strict=True)
    ]
