"""The stage `vocab`: continued merges against a plain BPE, exact sizes, proofs, and wrong questions."""

import json
import math
from pathlib import Path

import pytest
import sentencepiece

from tests.byte_level import tiny_tokenizer, write_folder
from tests.vocab.conftest import SAMPLE, texts_of
from yayan.errors import UserError
from yayan.stage import execute
from yayan.tokenizer import load_tokenizer
from yayan.vocab.begin import begin
from yayan.vocab.learn import Vocab

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
    assert (metrics["base_size"], metrics["new_pieces"], metrics["proofs"]["dead_pieces"]) == (600, 900, 0)
    assert 0 < metrics["new_characters"] < 900
    assert metrics["proofs"]["base_text"]["changed_tokens"] == 0
    readers = ("round trip", "transformers", "llama.cpp", "sentencepiece")
    assert metrics["proofs"]["equal_texts"] == dict.fromkeys(readers, 10_000)


def test_every_new_piece_comes_out_of_its_own_text(learnt: tuple[Path, dict]) -> None:
    out, _ = learnt
    native = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    for number in range(600, 1500):
        assert native.encode("\n" + native.id_to_piece(number))[-1] == number
    witnesses = json.loads((out / "witnesses.json").read_text(encoding="utf-8"))
    assert len(witnesses) == 900
    assert all(number in native.encode(text) for number, text in enumerate(witnesses, start=600))


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
    english_texts = texts_of("en-train.jsonl")
    assert after.encode_batch(english_texts) == before.encode_batch(english_texts)


def test_the_same_question_gives_the_same_bytes(
    english: Path, learnt: tuple[Path, dict], tmp_path: Path
) -> None:
    again = tmp_path / "again"
    execute(Vocab(out=again, base=english, corpus=[CHINESE], size=1500))
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "witnesses.json"):
        assert (again / name).read_bytes() == (learnt[0] / name).read_bytes()


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


@pytest.mark.parametrize("temperature", [1.0, 2.0, 1000.0])
def test_temperature_evens_the_sources_out(english: Path, tmp_path: Path, temperature: float) -> None:
    """The large source has one word often, the small one another word; the first word is of the heavier share."""
    large = write_corpus(tmp_path / "large.jsonl", *["天地"] * 900)
    small = write_corpus(tmp_path / "small.jsonl", *["玄黄"] * 100)
    stage = Vocab(
        out=tmp_path / "out", base=english, corpus=[large, small], size=700, temperature=temperature
    )
    shares = [source["share"] for source in execute(stage)["metrics"]["sources"]]
    wanted = 900 ** (1 / temperature) / (900 ** (1 / temperature) + 100 ** (1 / temperature))
    assert shares == pytest.approx([wanted, 1 - wanted], abs=1e-3)


def test_weights_decide_which_source_gets_the_rows(english: Path, tmp_path: Path) -> None:
    first = write_corpus(tmp_path / "a.jsonl", *["天地"] * 50)
    second = write_corpus(tmp_path / "b.jsonl", *["玄黄"] * 40)
    for weights, word in (([1.0, 3.0], "玄黄"), ([3.0, 1.0], "天地")):
        stage = Vocab(out=tmp_path / word, base=english, corpus=[first, second], size=603, weights=weights)
        execute(stage)
        tokenizer = load_tokenizer(tmp_path / word)
        assert [tokenizer.token(number) for number in (600, 601, 602)] == [*sorted(word), word]


def test_words_are_forced_in_and_kept_out(english: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", *["天地玄黄"] * 50, "宇宙洪荒")
    include, exclude = tmp_path / "in.txt", tmp_path / "out.txt"
    include.write_text("宇宙洪荒\n雅言\n", encoding="utf-8")
    exclude.write_text("天地\n黄\n", encoding="utf-8")
    execute(
        Vocab(out=tmp_path / "out", base=english, corpus=[corpus], size=640, include=include, exclude=exclude)
    )
    tokenizer = load_tokenizer(tmp_path / "out")
    tokens = {tokenizer.token(number) for number in range(600, tokenizer.size)}
    assert {"宇宙洪荒", "雅言", "天", "地"} < tokens
    assert not {"天地", "黄", "玄黄", "天地玄黄"} & tokens
    assert len(tokenizer.encode("\n宇宙洪荒雅言")) == len(tokenizer.encode("\n")) + 2


def test_words_that_became_no_pieces_are_named(
    english: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where words have a space before, a word to include is learnt with it, too, as it stands in texts."""
    corpus, include = write_corpus(tmp_path / "c.jsonl", *["éa éa"] * 9), tmp_path / "in.txt"
    include.write_text("né\n  été  \n\nné\n", encoding="utf-8")
    ask = Vocab(
        out=tmp_path / "a", base=english, corpus=[corpus], size=640, scripts=["latin"], include=include
    )
    assert execute(ask)["metrics"]["words_left_out"] == []
    tokenizer = load_tokenizer(tmp_path / "a")
    tokens = {tokenizer.token(number) for number in range(600, tokenizer.size)}
    assert {"né", "▁né", "été", "▁été"} <= tokens
    assert "no pieces" not in capsys.readouterr().err
    few = Vocab(
        out=tmp_path / "b", base=english, corpus=[corpus], size=602, scripts=["latin"], include=include
    )
    assert execute(few)["metrics"]["words_left_out"] == ["né", "été"]
    assert "2 words of" in capsys.readouterr().err


def test_broken_lines_are_refused_or_counted(english: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "c.jsonl"
    line = json.dumps({"text": "天地玄黄"}, ensure_ascii=False).encode()
    corpus.write_bytes(b"\n".join([line] * 3 + [b'{"text": "\xe4\xb8"}', b"no json"]))
    with pytest.raises(UserError, match=r"not UTF-8.*c\.jsonl:4.*or pass --skip-bad"):
        execute(Vocab(out=tmp_path / "out", base=english, corpus=[corpus], size=700))
    stage = Vocab(out=tmp_path / "out", base=english, corpus=[corpus], size=700, skip_bad=True)
    metrics = execute(stage)["metrics"]
    assert metrics["left_out"]["lines"] == 2
    assert metrics["corpus_documents"] == 3


def test_a_byte_level_base_is_continued(tmp_path: Path) -> None:
    write_folder(tmp_path / "base", tiny_tokenizer(), bos_token="<s>")
    out = tmp_path / "out"
    metrics = execute(Vocab(out=out, base=tmp_path / "base", corpus=[CHINESE], size=900))["metrics"]
    before, after = load_tokenizer(tmp_path / "base"), load_tokenizer(out)
    assert after.size == metrics["size"] == 900
    assert metrics["proofs"]["dead_pieces"] == 0
    assert metrics["proofs"]["equal_texts"] == dict.fromkeys(
        ("round trip", "transformers", "llama.cpp"), 10_000
    )
    english_texts, heldout = texts_of("en-train.jsonl"), "".join(texts_of("zh-heldout.jsonl"))
    assert after.encode_batch(english_texts) == before.encode_batch(english_texts)
    assert len(after.encode(heldout)) < 0.7 * len(before.encode(heldout))


def test_a_tokenizer_is_learnt_from_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    corpus = write_corpus(tmp_path / "c.jsonl", *texts_of("en-train.jsonl"))
    metrics = execute(Vocab(out=out, corpus=[corpus], size=1000))["metrics"]
    assert (metrics["size"], metrics["base_size"], metrics["proofs"]["dead_pieces"]) == (1000, 0, 0)
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
        (Vocab(out=out, base=english, corpus=[CHINESE], size=900, temperature=0.5), "temperature is 0.5"),
        (Vocab(out=out, base=english, corpus=[CHINESE], size=900, most_changed=2.0), "most_changed is 2.0"),
        (Vocab(out=out, base=english, corpus=[CHINESE], size=900, weights=[1, 2]), "2 weights for 1 sources"),
        (Vocab(out=out, base=english, corpus=[CHINESE], size=900, weights=[-1]), "a weight is -1"),
        (Vocab(out=out, base=english, corpus=[CHINESE], size=900, weights=[math.nan]), "weight is nan"),
        (Vocab(out=out, base=english, corpus=[CHINESE], size=900, weights=[math.inf]), "weight is inf"),
        (Vocab(out=out, base=english, corpus=[CHINESE], size=900, scripts=[]), "no script is named"),
        (Vocab(out=out, base=english, corpus=[CHINESE], size=900, include=CHINESE), "is no word of han"),
        (Vocab(out=out, corpus=[CHINESE], size=900, scripts=["latin"]), "scripts needs a base"),
        (Vocab(out=out, corpus=[CHINESE], size=900, curve=True), "curve needs a base"),
    ]
    for question, reason in questions:
        with pytest.raises(UserError, match=reason):
            execute(question)
    assert not list(tmp_path.iterdir())


def test_a_corpus_without_chinese_or_without_text_is_refused(english: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", "no such character, かな")
    with pytest.raises(UserError, match="no character of the wanted scripts"):
        execute(Vocab(out=tmp_path / "out", base=english, corpus=[corpus], size=900))
    write_corpus(corpus, "", "")
    with pytest.raises(UserError, match="is empty"):
        execute(Vocab(out=tmp_path / "out", corpus=[corpus], size=900))
    write_corpus(corpus, "".join(map(chr, range(0x4E00, 0x4E00 + 400))))
    with pytest.raises(UserError, match=r"size is 300, but .* need 6"):
        execute(Vocab(out=tmp_path / "out", corpus=[corpus], size=300))
    assert not (tmp_path / "out").exists()
