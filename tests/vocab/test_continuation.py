"""Continued BPE: weights of cut runs, what candidates are made of, the guard, and other scripts from end to end."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.byte_level import tiny_tokenizer, write_folder
from tests.vocab.conftest import texts_of
from yayan.stage import execute
from yayan.tokenizer import load_tokenizer
from yayan.vocab import continuation
from yayan.vocab.base import Base
from yayan.vocab.bases import open_base
from yayan.vocab.bytelevel import make_byte_level_base
from yayan.vocab.continuation import Guard, Rules, candidates_of, choose, cut_runs
from yayan.vocab.count import UNIT, Parts, count_source, weigh_runs
from yayan.vocab.learn import Vocab
from yayan.vocab.prove import find_changes
from yayan.vocab.scripts import Script, Wanted

FRENCH = [
    "L'été à Zürich était très chaud, le garçon mangeait des crêpes près de la forêt.",
    "Où est la clé du château ? Elle n'était pas là, répondit l'élève étonné : Qué Xérès !",
    "Ċirku u ġnien, iż-żiemel ħafif; đường phố Việt Nam rất đẹp, người dân thân thiện.",
]
RUSSIAN = [
    "Старик жил у самого моря, и каждый день старик ходил к морю.",
    "Море было спокойно; рыба ушла в море.",
]
KOREAN = [
    "옛날 옛적에 강가에 작은 집이 있었습니다. 그 집에는 노인이 살고 있었습니다.",
    "노인은 강가에서 물고기를 잡았습니다.",
]
ENGLISH = [
    *texts_of("en-train.jsonl")[:5],
    *["The café was naïve, said Zoë at the café. Plain words follow."] * 20,
]
CORPORA: dict[Script, list[str]] = {"latin": FRENCH, "cyrillic": RUSSIAN, "hangul": KOREAN}


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("bytes") / "base", tiny_tokenizer(), bos_token="<s>")


@pytest.fixture(params=["pieces", "bytes"])
def base(request: pytest.FixtureRequest, english: Path, bytewise: Path) -> Base:
    return open_base(english if request.param == "pieces" else bytewise)


def parts_of(texts: list[str], wanted: Wanted) -> Parts:
    source = count_source(texts, wanted)
    return [(source.runs, weigh_runs(source, 1.0))]


def rules(script: Script, least: int = 2, longest: int = 8, *exclude: str) -> Rules:
    return Rules(Wanted((script,)), longest, least * UNIT, frozenset(exclude))


def groups(
    base: Base, alphabet: Tokenizer, cut: tuple[np.ndarray, np.ndarray]
) -> list[tuple[list[int], set[int]]]:
    """Ids and weights between line breaks; without the space that a base puts before each text."""
    found: list[tuple[list[int], set[int]]] = [([], set())]
    for token_id, weight in zip(*(array.tolist() for array in cut), strict=True):
        if b"\n" in base.bytes_of(alphabet.id_to_token(token_id) or ""):
            found.append(([], set()))
        else:
            found[-1][0].append(token_id)
            found[-1][1].add(weight)
    space = alphabet.token_to_id("▁")
    return [group for group in found if group[0] and group[0] != [space]]


def test_each_run_is_cut_as_if_alone_and_keeps_its_weight(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks end inside of the second source, and letters that look like a byte's name are letters."""
    monkeypatch.setattr(continuation, "CHUNK_CHARACTERS", 7)
    monkeypatch.setattr(continuation, "CHUNKS", 2)
    alphabet = base.extended(["Ċ", "中", "é"] if base.text_of("Ċ") == "Ċ" else [])
    rng = random.Random(0)
    for sizes in ([1], [5, 0, 17], [40, 1]):
        runs = [
            ["".join(rng.choices(" é中Ċa，", k=rng.randint(2, 9))) + "z" for _ in range(size)]
            for size in sizes
        ]
        weights = [np.array([rng.randrange(1 << 30) for _ in some], np.int32) for some in runs]
        parts = [("\n".join(some), heavy) for some, heavy in zip(runs, weights, strict=True)]
        expected = []
        for run, weight in zip(sum(runs, []), np.concatenate(weights).tolist(), strict=True):
            ids = alphabet.encode(f"\n{run}\n", add_special_tokens=False).ids
            alone = groups(base, alphabet, (np.array(ids), np.full(len(ids), weight)))
            expected += alone
        assert groups(base, alphabet, cut_runs(base, alphabet, parts)) == expected


@pytest.mark.parametrize("script", ["latin", "cyrillic", "hangul"])
def test_each_candidate_is_made_of_earlier_tokens(base: Base, script: Script) -> None:
    wanted = Wanted((script,))
    candidates = candidates_of(base, parts_of(CORPORA[script] * 3, wanted), rules(script), 80)
    names = [candidate.name for candidate in candidates]
    there = set(base.plain.get_vocab(with_added_tokens=True))
    assert len(names) >= 60
    assert len(set(names)) == len(names)
    for name in names:
        text = base.text_of(name)
        assert name not in there
        start = base.bytes_of(name).removeprefix(b" ")
        assert wanted.owns_prefix(start) if text is None else wanted.holds_own(text)
        halves = [(name[:cut], name[cut:]) for cut in range(1, len(name))]
        assert text == name if not halves else any(there.issuperset(pair) for pair in halves)
        there.add(name)
    gains = [candidate.gain for candidate in candidates]
    assert gains == sorted(gains, reverse=True)


def test_letters_of_ascii_never_become_pieces(english: Path) -> None:
    """A base that lacks a capital writes it as one byte, which no piece could save."""
    base = open_base(english)
    lacking = {letter for letter in "XZQ" if base.plain.token_to_id(letter) is None}
    assert lacking
    candidates = candidates_of(base, parts_of(FRENCH * 3, Wanted(("latin",))), rules("latin"), 1000)
    assert not [c for c in candidates if lacking & set(c.name) or c.name.isascii()]
    base.extended([candidate.name for candidate in candidates])


def test_excluded_words_are_kept_out_with_a_space_too(base: Base) -> None:
    parts = parts_of(RUSSIAN * 3, Wanted(("cyrillic",)))

    def texts(*exclude: str) -> set[str | None]:
        found = candidates_of(base, parts, rules("cyrillic", 2, 8, *exclude), 1000)
        return {base.text_of(candidate.name) for candidate in found}

    assert {" старик", " море"} <= texts()
    some = texts("старик", "море", "ы")
    assert not {" старик", "старик", " море", "море", "ы"} & some
    assert " был" not in " ".join(filter(None, some))


def test_a_token_of_the_base_is_not_learnt_again() -> None:
    """Its own merges make 中 of E4 and B8AD, but E4B8 is joined first: no text gives it."""
    parts = json.loads(tiny_tokenizer().to_str())
    kept = [merge for merge in parts["model"]["merges"] if "ä" not in "".join(merge)]
    vocab = {
        name: number for name, number in parts["model"]["vocab"].items() if len(name) == 1 or "<" in name
    }
    for left, right in kept:
        if left in vocab and right in vocab:
            vocab.setdefault(left + right, len(vocab))
    for left, right in (("ä", "¸"), ("¸", "Ń"), ("ä", "¸Ń")):
        kept.append([left, right])
        vocab[left + right] = len(vocab)
    kept = [merge for merge in kept if "".join(merge) in vocab and set(merge) <= vocab.keys()]
    vocab = {name: number for number, name in enumerate(vocab)}
    parts["model"] |= {"vocab": vocab, "merges": kept}
    base = make_byte_level_base(Tokenizer.from_str(json.dumps(parts)), {"eos": vocab["</s>"]})
    assert "ä¸Ń" in vocab
    found = candidates_of(base, parts_of(["中国中文"] * 5, Wanted(("han",))), rules("han"), 50)
    assert found
    assert "ä¸Ń" not in [candidate.name for candidate in found]
    fast = base.extended([candidate.name for candidate in found])
    assert all(fast.token_to_id(name) == number for name, number in vocab.items())


@pytest.mark.parametrize("most_changed", [0.0, 0.001, 0.01, 1.0])
def test_the_guard_bounds_what_changes(base: Base, most_changed: float) -> None:
    candidates = candidates_of(base, parts_of(FRENCH * 3, Wanted(("latin",))), rules("latin"), 130)
    free = choose(base, candidates, 90, Guard([], 0.0))
    changed = find_changes(base, base.extended(list(free)), ENGLISH)
    assert (len(free), changed.changed_outside) == (90, 0)
    assert changed.changed_tokens > 0.01 * changed.tokens
    chosen = choose(base, candidates, 90, Guard(ENGLISH, most_changed))
    after = find_changes(base, base.extended(list(chosen)), ENGLISH)
    assert after.changed_tokens <= most_changed * after.tokens
    assert after.changed_outside == 0
    if most_changed == 1.0:
        assert chosen == free
    else:
        assert len(chosen) > 40


@pytest.mark.parametrize(
    ("kind", "script"), [("pieces", "latin"), ("bytes", "cyrillic"), ("bytes", "hangul")]
)
def test_another_script_from_end_to_end(
    english: Path, bytewise: Path, tmp_path: Path, kind: str, script: Script
) -> None:
    corpus, out, source = tmp_path / "c.txt", tmp_path / "out", english if kind == "pieces" else bytewise
    corpus.write_text("\n\n".join(CORPORA[script] * 4), encoding="utf-8")
    metrics = execute(Vocab(out=out, base=source, corpus=[corpus], size=670, scripts=[script]))["metrics"]
    base, before, after = open_base(source), load_tokenizer(source), load_tokenizer(out)
    assert metrics["size"] == after.size <= 670
    assert metrics["new_pieces"] == after.size - before.size > 50
    assert (
        metrics["proofs"]["dead_pieces"] == metrics["proofs"]["base_text"]["changed_outside_new_tokens"] == 0
    )
    wanted = Wanted((script,))
    names = [after.token(number) for number in range(before.size, after.size)]
    texts = [text for name in names if (text := base.text_of(name)) is not None]
    assert all(wanted.holds_own(text) and wanted.is_part_of_run(text) for text in texts)
    assert any(text.startswith(" ") and len(text) > 3 for text in texts)
    for text in CORPORA[script]:
        ids = after.encode(text)
        assert after.decode(ids) == text
        assert len(ids) < 0.8 * len(before.encode(text))
