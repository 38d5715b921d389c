"""The curve of sizes: costs against hand-made numbers, advice, and the stage that draws it."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.byte_level import tiny_tokenizer
from tests.sentencepiece_model import make_chat_model
from tests.vocab.conftest import SAMPLE, texts_of
from yayan.errors import UserError
from yayan.model.size import size_of
from yayan.stage import execute
from yayan.vocab.base import Base
from yayan.vocab.bytelevel import make_byte_level_base
from yayan.vocab.curve import Point, make_point, measure_points, recommend, shape_of
from yayan.vocab.learn import Vocab

SHAPE = {
    "model_type": "llama",
    "hidden_size": 10,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "vocab_size": 400,
}
BODY = 3 * (4 * 10 * 10 + 3 * 10 * 20)  # q k v o, and gate, up, down
CHINESE = SAMPLE / "zh-train.jsonl"


@pytest.fixture(scope="module")
def base() -> Base:
    """400 ids, with padding of its own."""
    return make_byte_level_base(tiny_tokenizer(), {"bos": 0, "eos": 1, "pad": 2})


def point_of(size: int, gflops: float, tokens: float = 1.0) -> Point:
    return Point(size, size - 1000, tokens, 0, 0.0, gflops, 0, 1.0)


@pytest.mark.parametrize("tied", [False, True])
def test_the_costs_of_a_size(base: Base, tied: bool) -> None:
    model = size_of(SHAPE | {"tie_word_embeddings": tied})
    first = make_point(base, 0, 2.0, None, model)
    assert (first.size, first.added_rows, first.added_parameters, first.gguf_bytes) == (400, 0, 0, 0)
    assert first.speed == 1.0
    large = size_of(SHAPE | {"hidden_size": 10_000, "intermediate_size": 20_000, "tie_word_embeddings": tied})
    first, later = (make_point(base, count, ratio, None, large) for count, ratio in ((0, 2.0), (100, 0.5)))
    body = BODY * 1000**2
    assert first.head_gflops_per_token == pytest.approx(2 * 400 * 10_000 / 1e9, abs=1e-4)
    assert later.head_gflops_per_token == pytest.approx(2 * 500 * 10_000 / 1e9, abs=1e-4)
    assert first.gflops_per_character == pytest.approx(2.0 * (2 * body + 2 * 400 * 10_000) / 1e9, abs=1e-4)
    assert later.gflops_per_character == pytest.approx(0.5 * (2 * body + 2 * 500 * 10_000) / 1e9, abs=1e-4)
    ends = 1 if tied else 2
    assert (later.size, later.added_rows) == (500, 100)
    assert (later.added_parameters, later.gguf_bytes) == (100 * 10_000 * ends, 2 * 100 * 10_000 * ends)
    assert make_point(base, 100, 0.5, first, large).speed == 4.0


def test_padding_that_is_missing_is_a_row_too() -> None:
    tokenizer = tiny_tokenizer()
    text = tokenizer.to_str().replace('"<pad>"', '"<third>"')
    base = make_byte_level_base(type(tokenizer).from_str(text), {"bos": 0, "eos": 1})
    assert make_point(base, 0, 1.0, None, size_of(SHAPE)).added_rows == 0
    assert make_point(base, 5, 1.0, None, size_of(SHAPE)).added_rows == 6


def test_points_are_measured_on_the_sample(base: Base) -> None:
    sample, names = ["龙马精神", "Once upon a time"], ["é¾", "é¾Ļ"]  # first bytes of 龙, and the character
    points = measure_points(base, names, sample, size_of(SHAPE))
    assert [point.added_rows for point in points] == list(range(len(names) + 1))
    for point in points:
        fast = base.extended(names[: point.added_rows]) if point.added_rows else base.plain
        tokens = sum(len(fast.encode(text).ids) for text in sample)
        assert point.tokens_per_character == pytest.approx(tokens / sum(map(len, sample)), abs=1e-4)
    assert points[-1].tokens_per_character < points[0].tokens_per_character
    assert len(measure_points(base, [], sample, size_of(SHAPE))) == 1


def test_the_smallest_size_near_the_best_is_recommended() -> None:
    points = [point_of(1000, 10.0, 2.0), point_of(1500, 6.0), point_of(2001, 5.05, 1.1), point_of(3000, 5.0)]
    size, advice = recommend([*points, point_of(9000, 5.5)])
    assert size == 2048  # the next multiple of 64
    assert advice.startswith("take 2,048 ids: 1.10 tokens a character instead of 2.00")


@pytest.mark.parametrize("best", [8.6, 10.0, 12.0])
def test_a_base_that_is_good_already_is_not_extended(best: float) -> None:
    size, advice = recommend([point_of(1000, 10.0, 0.7), point_of(2000, best, 0.6)])
    assert size == 1000
    assert advice.startswith("do not extend: this base already takes 0.70 tokens")
    assert f"saves {max(1 - best / 10, 0):.0%} " in advice
    assert recommend([point_of(1000, 10.0)])[0] == 1000


def test_the_shape_is_that_of_the_model(tmp_path: Path) -> None:
    make_chat_model(tmp_path / "model")
    size, name = shape_of(tmp_path / "model")
    assert (size.width, size.layers, size.key_width) == (48, 3, 16)
    assert name == str(tmp_path / "model")
    for path in (None, tmp_path, tmp_path / "model" / "tokenizer.model"):
        size, name = shape_of(path)
        assert (size.width, size.parameters // 10**6, name) == (4096, 6738, "Llama-2-7B's shape")


def test_a_curve_is_drawn_instead_of_a_tokenizer(english: Path, tmp_path: Path) -> None:
    stage = Vocab(out=tmp_path / "out", base=english, corpus=[CHINESE], size=1500, curve=True)
    metrics = execute(stage)["metrics"]
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"curve.json", "curve.svg"} <= written
    assert not {"tokenizer.json", "tokenizer.model"} & written
    found = json.loads((tmp_path / "out" / "curve.json").read_text(encoding="utf-8"))
    assert found == {key: metrics[key] for key in ("model", "recommended_size", "advice", "points")}
    sizes = [point["size"] for point in found["points"]]
    assert (sizes[0], sizes[-1], len(sizes)) == (600, 1500, 9)
    ratios = [point["tokens_per_character"] for point in found["points"]]
    assert ratios == sorted(ratios, reverse=True)
    held_out = texts_of("zh-train.jsonl")[49::50]
    assert held_out
    picture = ElementTree.parse(tmp_path / "out" / "curve.svg").getroot()
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"


def test_too_few_documents_are_one_sentence(english: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "c.txt"
    corpus.write_text("\n\n".join(["天地玄黄"] * 49), encoding="utf-8")
    with pytest.raises(UserError, match="a curve needs at least 50 documents"):
        execute(Vocab(out=tmp_path / "out", base=english, corpus=[corpus], size=700, curve=True))
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_family_is_refused_before_the_corpus_is_read(
    english: Path, tmp_path: Path
) -> None:
    for file in english.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    stage = Vocab(out=tmp_path / "out", base=tmp_path, corpus=[CHINESE], size=700, curve=True)
    with pytest.raises(UserError, match="model of type gpt2"):
        stage.check()
