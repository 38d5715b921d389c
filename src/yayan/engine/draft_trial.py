"""A draft in llama.cpp, kept only where a short trial shows that it gains."""

import sys
import time
from itertools import cycle
from pathlib import Path
from typing import Any

from yayan.engine.choose import positions_of
from yayan.engine.gguf import find_gguf
from yayan.engine.llamacpp import LlamaCpp, open_model
from yayan.inputs import sample_path
from yayan.model.folder import choose_context

TRIAL_SECONDS = 1.0  # with the draft, and as long without
TRIAL_TOKENS = 24  # of each answer
GAIN = 1.05  # that a draft must give to be kept: a trial so short is not exact
CHARACTERS = 80  # of the beginnings that are continued
TEXTS = ("sample:zh-heldout.jsonl", "sample:en-heldout.jsonl")


def open_llamacpp(model: Path, draft: Path | None, **settings: Any) -> LlamaCpp:
    """The model, with the draft if there is one and it is faster with it; a line says which.

    `settings`: of `open_model`. Raises UserError as `open_model` does, and for a draft with fewer positions.
    """
    if draft is None:
        return open_model(model, **settings)
    proposing = find_gguf(draft)
    with open_model(model, **settings) as alone:
        choose_context(positions_of(proposing), alone.context, draft)
        plain = tokens_per_second(alone)
    helped = open_model(model, draft=proposing, **settings)
    try:
        gain = tokens_per_second(helped) / plain
    except BaseException:
        helped.close()
        raise
    used = "it is used" if gain >= GAIN else "it is left out"
    print(f"  draft {draft.name}: {gain:.2f} times as fast in a trial, {used}", file=sys.stderr, flush=True)
    if gain >= GAIN:
        return helped
    helped.close()
    return open_model(model, **settings)


def tokens_per_second(engine: LlamaCpp) -> float:
    """How fast beginnings of the built-in texts are continued, greedily; one answer goes before, to warm up."""
    seconds, tokens = 0.0, 0
    begun = time.monotonic()
    for number, ids in enumerate(cycle(beginnings(engine))):
        body = {"prompt": ids, "n_predict": TRIAL_TOKENS, "temperature": 0, "ignore_eos": True}
        timings = engine.ask("/completion", body | {"cache_prompt": False})["timings"]
        if number:
            tokens += timings["predicted_n"]
            seconds += timings["predicted_ms"] / 1000
            if time.monotonic() - begun > TRIAL_SECONDS:
                break
    return tokens / seconds


def beginnings(engine: LlamaCpp) -> list[list[int]]:
    """What a model like this may be asked to continue: beginnings of texts in both languages."""
    from yayan.corpus.read import documents

    texts = [
        document.text[:CHARACTERS] for name in TEXTS for document in documents([sample_path(Path(name))])
    ]
    body = {"add_special": True, "parse_special": False}
    return [engine.ask("/tokenize", body | {"content": text})["tokens"] for text in texts]
