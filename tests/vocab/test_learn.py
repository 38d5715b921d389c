"""The stage `vocab`: continued merges against a plain BPE, exact sizes, proofs, and wrong questions."""

import json
from collections import Counter
from pathlib import Path

import pytest
import sentencepiece

from tests.vocab.conftest import SAMPLE, texts_of
from yayan.errors import UserError
from yayan.stage import execute
from yayan.tokenizer import convert_sentencepiece, load_tokenizer
from yayan.vocab.extend import extend, open_base
from yayan.vocab.learn import Vocab, begin
from yayan.vocab.merges import RUN, choose_characters, continue_base, learn_merges

CHINESE = SAMPLE / "zh-train.jsonl"


@pytest.fixture(scope="module")
def learnt(english: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A tokenizer of 1,500 ids continued from English into Chinese, and its metrics."""
    out = tmp_path_factory.mktemp("learnt") / "out"
    record = execute(Vocab(out=out, base=english, corpus=[CHINESE], size=1500))
    return out, record["metrics"]


def write_corpus(path: Path, *texts: str) -> Path:
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_size_is_exactly_what_was_asked(english: Path, learnt: tuple[Path, dict]) -> None:
    out, metrics = learnt
    native = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    assert metrics["size"] == load_tokenizer(out).size == native.vocab_size() == 1500
    assert (metrics["base_size"], metrics["new_pieces"], metrics["dead_pieces"]) == (600, 900, 0)
    assert metrics["new_characters"] == 675  # three quarters, the most that single characters get


def test_every_new_piece_comes_out_of_its_own_text(learnt: tuple[Path, dict]) -> None:
    out, _ = learnt
    native = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    for number in range(600, 1500):
        assert native.encode("\n" + native.id_to_piece(number))[-1] == number


def test_chinese_gets_shorter_and_english_stays(english: Path, learnt: tuple[Path, dict]) -> None:
    out, metrics = learnt
    before, after = load_tokenizer(english), load_tokenizer(out)
    heldout = "".join(texts_of("zh-heldout.jsonl"))
    assert len(after.encode(heldout)) < 0.5 * len(before.encode(heldout))
    assert metrics["tokens_per_character_after"] < 0.5 * metrics["tokens_per_character_before"]
    texts = texts_of("zh-train.jsonl")
    assert metrics["sample_characters"] == metrics["corpus_characters"] == sum(map(len, texts))
    tokens = sum(map(len, after.encode_batch(texts)))
    assert metrics["tokens_per_character_after"] == pytest.approx(tokens / sum(map(len, texts)), abs=1e-4)
    plain_english = [RUN.sub("", text) for text in texts_of("en-train.jsonl")]
    assert after.encode_batch(plain_english) == before.encode_batch(plain_english)


def test_the_same_question_gives_the_same_bytes(
    english: Path, learnt: tuple[Path, dict], tmp_path: Path
) -> None:
    again = tmp_path / "again"
    execute(Vocab(out=again, base=english, corpus=[CHINESE], size=1500))
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        assert (again / name).read_bytes() == (learnt[0] / name).read_bytes()


def replay(words: Counter[tuple[str, ...]], pieces: list[str]) -> None:
    """Plain BPE: each next piece must join a pair that no other pair outnumbers."""
    for piece in pieces:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] += count
        joined = [pair for pair in pairs if "".join(pair) == piece]
        assert max(pairs[pair] for pair in joined) == max(pairs.values()), piece
        left, right = max(joined, key=pairs.__getitem__)
        after: Counter[tuple[str, ...]] = Counter()
        for word, count in words.items():
            out: list[str] = []
            for symbol in word:
                if out and (out[-1], symbol) == (left, right):
                    out[-1] = piece
                else:
                    out.append(symbol)
            after[tuple(out)] += count
        words = after


@pytest.mark.parametrize("old_pieces", [0, 60])
def test_merges_are_those_of_a_plain_bpe_that_goes_on(english: Path, old_pieces: int) -> None:
    """Once from single characters, once from a base that has words already (private-use symbols)."""
    texts = texts_of("zh-train.jsonl")[:25]
    counts = Counter("".join(texts))
    base = open_base(english).proto
    base = extend(base, choose_characters(base, counts, 1200))
    if old_pieces:
        base = extend(base, learn_merges(convert_sentencepiece(base), texts, old_pieces, 50, 2)[:old_pieces])
    fast = convert_sentencepiece(base)
    names = {item.piece for item in base.pieces}
    words: Counter[tuple[str, ...]] = Counter()
    for run in RUN.findall("\n".join(texts)):
        cut = fast.encode("\n" + run, add_special_tokens=False).tokens[2:]
        parts: list[list[str]] = [[]]
        for piece in cut:  # a character without a piece breaks the run
            parts = [*parts, []] if piece.startswith("<0x") else [*parts[:-1], [*parts[-1], piece]]
        words.update(tuple(part) for part in parts)
    found = learn_merges(fast, texts, 60, longest=50, smallest_count=2)[:60]
    assert len(found) == 60
    assert not names & set(found)
    replay(words, found)


def test_rare_characters_break_runs_and_stay_bytes(english: Path) -> None:
    texts = ["甲乙丙" * 3] * 2000 + ["甲龘乙"]
    counts = Counter("".join(texts))
    base = open_base(english).proto
    pieces = continue_base(base, texts, counts, wanted=20, longest=8, smallest_count=1)
    assert set("甲乙丙") < set(pieces)
    assert not any("龘" in piece for piece in pieces)
    fast = convert_sentencepiece(extend(base, pieces))
    text = "甲龘乙"
    assert fast.decode(fast.encode(text).ids) == text


def test_punctuation_gets_pieces_but_no_words(english: Path) -> None:
    texts = ["中国，中国。「中国」１２"] * 20
    counts = Counter("".join(texts))
    pieces = continue_base(open_base(english).proto, texts, counts, wanted=50, longest=8, smallest_count=2)
    assert {"，", "。", "「", "」", "１", "２", "中", "国", "中国"} == set(pieces)


@pytest.mark.parametrize(("longest", "expected"), [(2, 2), (4, 4), (None, 8), (12, 12)])
def test_no_piece_is_longer_than_asked(
    english: Path, tmp_path: Path, longest: int | None, expected: int
) -> None:
    branches = "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳"
    corpus = write_corpus(tmp_path / "c.jsonl", *(branches[:end] for end in range(2, 17)), branches)
    vocab = Vocab(out=tmp_path / "out", base=english, corpus=[corpus], size=800, longest=longest)
    found = execute(vocab)["metrics"]["longest_pieces"]
    assert max(map(len, found)) == expected


def test_words_need_their_smallest_count(english: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", "天地", "天地", "天地", "玄黄", "玄黄")
    vocab = Vocab(out=tmp_path / "out", base=english, corpus=[corpus], size=700, smallest_count=3)
    assert execute(vocab)["metrics"]["first_pieces"] == ["天地"]


def test_a_corpus_that_holds_too_little_gives_a_smaller_tokenizer_and_says_so(
    english: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", "天地玄黄", "天地")
    metrics = execute(Vocab(out=tmp_path / "out", base=english, corpus=[corpus], size=2000))["metrics"]
    assert (metrics["asked_size"], metrics["size"]) == (2000, 605)
    assert "holds enough for 605 ids, not for 2,000" in capsys.readouterr().err


def test_a_tokenizer_is_learnt_from_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    corpus = write_corpus(tmp_path / "c.jsonl", *texts_of("en-train.jsonl"))
    metrics = execute(Vocab(out=out, corpus=[corpus], size=1000))["metrics"]
    assert (metrics["size"], metrics["base_size"], metrics["dead_pieces"]) == (1000, 0, 0)
    tokenizer = load_tokenizer(out)
    specials = (tokenizer.token(number) for number in range(4))
    assert list(specials) == ["<unk>", "<s>", "</s>", "<pad>"]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 3)
    assert [tokenizer.token(number) for number in tokenizer.encode("12")] == ["▁", "1", "2"]
    native = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    texts = [*texts_of("en-heldout.jsonl"), *texts_of("zh-heldout.jsonl"), "  a\n    b\t\tc  "]
    assert tokenizer.encode_batch(texts) == native.encode(texts)
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


def test_a_tokenizer_from_nothing_is_the_same_each_time() -> None:
    texts = texts_of("en-train.jsonl")[:10]
    first, second = (begin(texts, 400, 16).SerializeToString() for _ in range(2))
    assert first == second


def test_wrong_questions_are_answered_before_anything_is_written(english: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    questions = [
        (Vocab(out=out, base=english, corpus=[CHINESE], size=600), "size is 600"),
        (Vocab(out=out, corpus=[CHINESE], size=260), "size is 260"),
        (Vocab(out=out, base=english, corpus=[CHINESE], size=900, longest=1), "longest is 1"),
        (Vocab(out=out, base=english, corpus=[CHINESE], size=900, smallest_count=0), "smallest_count is 0"),
        (Vocab(out=out, base=english, corpus=[tmp_path / "none.txt"], size=900), "no such file"),
        (Vocab(out=out, base=tmp_path / "none", corpus=[CHINESE], size=900), "no such file"),
        (Vocab(out=out, base=SAMPLE, corpus=[CHINESE], size=900), "no tokenizer"),
    ]
    for question, reason in questions:
        with pytest.raises(UserError, match=reason):
            execute(question)
    assert not list(tmp_path.iterdir())


def test_a_corpus_without_chinese_or_without_text_is_refused(english: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", "no such character, かな")
    with pytest.raises(UserError, match="no Chinese character"):
        execute(Vocab(out=tmp_path / "out", base=english, corpus=[corpus], size=900))
    write_corpus(corpus, "", "")
    with pytest.raises(UserError, match="is empty"):
        execute(Vocab(out=tmp_path / "out", corpus=[corpus], size=900))
    write_corpus(corpus, "".join(map(chr, range(0x4E00, 0x4E00 + 400))))
    with pytest.raises(UserError, match=r"size is 300, but .* need 6"):
        execute(Vocab(out=tmp_path / "out", corpus=[corpus], size=300))
    assert not (tmp_path / "out").exists()
