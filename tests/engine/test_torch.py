"""The torch engine against `transformers`' own generation; what it streams, batches and refuses."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from tests.sentencepiece_model import TOKENS, make_chat_model
from yayan.engine.batch import Finished
from yayan.engine.sampling import Sampling
from yayan.engine.torch import TorchEngine
from yayan.errors import UserError
from yayan.model.load import load_model
from yayan.template import encode_prompt

GREEDY = Sampling(temperature=0, max_tokens=40)
FIRST = Sampling(temperature=0, max_tokens=1)
ASK = [{"role": "user", "content": "从前，河边有什么？"}]


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Random ids of different lengths."""
    source = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (count,), generator=source).tolist()
    return [torch.randint(4, TOKENS, (n,), generator=source).tolist() for n in lengths]


@pytest.fixture(scope="module")
def engine(chat_model: Path) -> Iterator[TorchEngine]:
    with TorchEngine(chat_model, dtype="float32") as running:
        yield running


@pytest.fixture(scope="module")
def reference(chat_model: Path) -> PreTrainedModel:
    return load_model(chat_model)


def ids_of(
    engine: TorchEngine, prompt: list[int], sampling: Sampling, negative: list[int] | None = None
) -> list[int]:
    return [token for piece in engine.generate(prompt, sampling, negative or []) for token in piece.ids]


def generate(model: PreTrainedModel, prompt: list[int], **options: Any) -> list[int]:
    config = GenerationConfig(eos_token_id=2, pad_token_id=3, max_new_tokens=40, **options)
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return out[0, len(prompt) :].tolist()


def test_an_answer_that_fills_the_context_takes_the_memory_that_is_told(chat_model: Path) -> None:
    """Room grows by doubling, and not beyond the context."""
    with TorchEngine(chat_model, dtype="float32", context=300) as engine:
        found = ids_of(engine, [5] * 270, Sampling(temperature=0, max_tokens=100, logit_bias={2: -100}))
        assert len(found) == 30
        cache = engine.network.kept
        assert cache is not None
        held = sum(tensor.nbytes for tensor in cache.keys + cache.values)
        assert 290 / 300 * engine.cache_bytes < held <= engine.cache_bytes


def test_greedy_is_that_of_transformers(engine: TorchEngine, reference: PreTrainedModel) -> None:
    for prompt in prompts(10):
        assert ids_of(engine, prompt, GREEDY) == generate(reference, prompt, do_sample=False)


def test_penalties_are_those_of_transformers(engine: TorchEngine, reference: PreTrainedModel) -> None:
    sampling = Sampling(temperature=0, max_tokens=40, repetition_penalty=1.4)
    for prompt in prompts(5):
        wanted = generate(reference, prompt, do_sample=False, repetition_penalty=1.4)
        assert ids_of(engine, prompt, sampling) == wanted


@pytest.mark.parametrize("negative", [None, [7, 8, 9, 200]])
def test_guidance_is_that_of_transformers(
    negative: list[int] | None, engine: TorchEngine, reference: PreTrainedModel
) -> None:
    sampling = Sampling(temperature=0, max_tokens=40, guidance_scale=1.5, repetition_penalty=1.2)
    for prompt in prompts(5):
        options: dict[str, Any] = {"guidance_scale": 1.5, "repetition_penalty": 1.2, "do_sample": False}
        config = GenerationConfig(eos_token_id=2, pad_token_id=3, max_new_tokens=40, **options)
        ids = torch.tensor([prompt])
        given = {} if negative is None else {"negative_prompt_ids": torch.tensor([negative])}
        out = reference.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, **given)
        assert ids_of(engine, prompt, sampling, negative) == out[0, len(prompt) :].tolist()


def test_bfloat16_is_close_to_float32(chat_model: Path, engine: TorchEngine) -> None:
    with TorchEngine(chat_model, dtype="bfloat16") as half:
        same = [ids_of(half, p, FIRST) == ids_of(engine, p, FIRST) for p in prompts(40)]
    assert sum(same) > 30


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_quantised(quantize: Any, chat_model: Path, engine: TorchEngine) -> None:
    pytest.importorskip("bitsandbytes")
    with TorchEngine(chat_model, dtype="float32", quantize=quantize) as small:
        found = next(small.generate(prompts(1)[0], Sampling(temperature=0, logprobs=0, max_tokens=1)))
    wanted = next(engine.generate(prompts(1)[0], Sampling(temperature=0, logprobs=20, max_tokens=1)))
    top = wanted.logprobs[0].top
    assert found.logprobs[0].logprob == pytest.approx(top[found.ids[0]], abs=1.0)
    assert found.logprobs[0].logprob != wanted.logprobs[0].logprob


def test_pieces_are_the_answer(engine: TorchEngine) -> None:
    for prompt in prompts(10, seed=3):
        pieces = list(engine.generate(prompt, GREEDY))
        ids = [token for piece in pieces for token in piece.ids]
        reasons = [piece.finish_reason for piece in pieces]
        assert reasons[-1] == ("stop" if ids[-1] == 2 else "length")
        assert not any(reasons[:-1])
        assert len(ids) <= 40
        whole = engine.tokenizer.decode(ids).rstrip("\ufffd")
        if "\ufffd" not in whole:
            assert "".join(piece.text for piece in pieces) == whole


def test_a_stop_string_ends_an_answer(engine: TorchEngine) -> None:
    prompt = prompts(1)[0]
    text = "".join(piece.text for piece in engine.generate(prompt, GREEDY))
    stop = text[9:12]
    pieces = list(engine.generate(prompt, Sampling(temperature=0, max_tokens=40, stop=(stop,))))
    assert "".join(piece.text for piece in pieces) == text[: text.index(stop)]
    assert pieces[-1].finish_reason == "stop"


def test_logprobs_are_those_of_the_model(engine: TorchEngine, reference: PreTrainedModel) -> None:
    prompt = prompts(1)[0]
    sampling = Sampling(temperature=1.5, seed=4, max_tokens=12, logprobs=3, logit_bias={5: 2.0}, top_k=50)
    found = [item for piece in engine.generate(prompt, sampling) for item in piece.logprobs]
    ids = [item.token for item in found]
    with torch.inference_mode():
        logits_TV = reference(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    for item, logprobs_V in zip(found, logits_TV.log_softmax(-1), strict=True):
        assert item.logprob == pytest.approx(logprobs_V[item.token].item(), abs=1e-4)
        assert list(item.top) == logprobs_V.topk(3).indices.tolist()


def test_a_seed_repeats_an_answer(engine: TorchEngine) -> None:
    prompt = prompts(1)[0]
    first, again, other, free = (
        ids_of(engine, prompt, Sampling(temperature=1.0, seed=seed, max_tokens=20))
        for seed in (1, 1, 2, None)
    )
    assert first == again != other
    assert free != ids_of(engine, prompt, Sampling(temperature=1.0, max_tokens=20))


def test_a_chat_is_answered_from_its_template(engine: TorchEngine) -> None:
    wanted = encode_prompt(engine.tokenizer, ASK)
    assert engine.prompt_ids(ASK) == wanted
    text = "".join(piece.text for piece in engine.generate(wanted, GREEDY))
    assert "".join(engine.stream(ASK, GREEDY)) == text


def test_the_negative_prompt_of_a_chat_is_its_system_prompt(engine: TorchEngine) -> None:
    sampling = Sampling(temperature=0, guidance_scale=2.0, negative_prompt="rude", max_tokens=20)
    negative = encode_prompt(engine.tokenizer, [{"role": "system", "content": "rude"}, *ASK])
    text = "".join(piece.text for piece in engine.generate(engine.prompt_ids(ASK), sampling, negative))
    system = {"role": "system", "content": "be kind"}
    assert "".join(engine.stream(ASK, sampling)) == text
    assert "".join(engine.stream([system, *ASK], sampling)) != text
    of_text = "".join(piece.text for piece in engine.generate(engine.text_ids("the river"), sampling))
    assert of_text == "".join(
        piece.text
        for piece in engine.generate(engine.text_ids("the river"), sampling, engine.text_ids("rude"))
    )


def test_leaving_a_stream_leaves_nothing_behind(engine: TorchEngine) -> None:
    stream = engine.stream(ASK, GREEDY)
    next(stream)
    stream.close()
    assert "".join(engine.stream(ASK, GREEDY)) == "".join(engine.stream(ASK, GREEDY))


def many(engine: TorchEngine, asked: list[list[int]], sampling: Sampling, **options: Any) -> list[Finished]:
    found = dict(engine.generate_many(asked, sampling, **options))
    return [found[i] for i in range(len(asked))]


@pytest.mark.parametrize("rows", [1, 5, 23])
def test_a_batch_is_one_by_one(rows: int, engine: TorchEngine) -> None:
    asked = prompts(26, seed=9)
    for found, prompt in zip(many(engine, asked, GREEDY, rows=rows), asked, strict=True):
        pieces = list(engine.generate(prompt, GREEDY))
        assert found.ids == [token for piece in pieces for token in piece.ids]
        assert found.text == "".join(piece.text for piece in pieces)
        assert found.finish_reason == pieces[-1].finish_reason


def test_a_batch_with_all_options_is_one_by_one(engine: TorchEngine) -> None:
    asked = prompts(24, seed=10)
    sampling = Sampling(
        temperature=0.8,
        top_k=30,
        top_p=0.9,
        seed=3,
        guidance_scale=1.3,
        presence_penalty=0.5,
        stop=("a",),
        logprobs=1,
    )
    found = many(engine, asked, sampling, rows=20)
    assert [item.ids for item in found] == [ids_of(engine, prompt, sampling) for prompt in asked]
    assert all(len(item.logprobs) == len(item.ids) for item in found)
    assert not any("a" in item.text for item in found)


def test_no_prompts_no_answers(engine: TorchEngine) -> None:
    assert many(engine, [], GREEDY) == []


def test_an_answer_ends_with_the_context(chat_model: Path) -> None:
    with TorchEngine(chat_model, dtype="float32", context=50) as small:
        for size in (1, 49, 20):
            pieces = list(
                small.generate([7] * size, Sampling(temperature=0, max_tokens=500, logit_bias={2: -100}))
            )
            assert sum(len(piece.ids) for piece in pieces) == 50 - size
            assert pieces[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "options", "sentence"),
    [
        ([], {}, "prompt is empty"),
        ([5] * 512, {}, "512 tokens, which leaves none"),
        ([TOKENS], {}, "an id that is no token"),
        ([-1], {}, "an id that is no token"),
        ([5], {"temperature": -1}, "temperature -1 means nothing"),
        ([5], {"logit_bias": {TOKENS: 1.0}}, "logit_bias names an id that is no token"),
        (
            [5],
            {"negative_prompt": "x" * 2000, "guidance_scale": 2.0},
            "the negative prompt has .* leaves none",
        ),
    ],
)
def test_questions_that_cannot_be(
    prompt: list[int], options: Any, sentence: str, engine: TorchEngine
) -> None:
    with pytest.raises(UserError, match=sentence):
        engine.generate(prompt, Sampling(**options))
    with pytest.raises(UserError, match=sentence):
        engine.generate_many([[5], prompt], Sampling(**options))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"context": 0}, "a context of 0"),
        ({"context": 513}, "a context of 513"),
        ({"threads": 0}, "threads 0 means nothing"),
        ({"dtype": "int3"}, "no dtype int3"),
        ({"quantize": "2bit"}, "quantize 2bit is not known"),
        ({"draft_length": 0}, "draft_length 0 means nothing"),
        ({"draft": Path("nowhere")}, "no tokenizer"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], sentence: str, chat_model: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        TorchEngine(chat_model, **settings)


def test_rows_that_cannot_be(engine: TorchEngine) -> None:
    with pytest.raises(UserError, match="0 rows"):
        engine.generate_many([[5]], rows=0)


def test_a_base_model_continues_and_does_not_chat(tmp_path: Path) -> None:
    with TorchEngine(make_chat_model(tmp_path / "base", template=None)) as base:
        with pytest.raises(UserError, match="base model.*base"):
            base.refuse_base_model()
        with pytest.raises(UserError, match="base model.*base"):
            next(base.stream(ASK))
        assert list(base.generate(base.text_ids("the"), GREEDY))


def test_defaults_and_end_tokens_are_those_of_the_model(chat_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(chat_model, tmp_path / "own")
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, 300], "max_new_tokens": 3, "do_sample": False})
    )
    with TorchEngine(folder, dtype="float32") as engine:
        assert engine.ends == {2, 300}
        assert sum(len(piece.ids) for piece in engine.generate([5])) <= 3
        pieces = list(engine.generate([5], Sampling(logit_bias={300: 100.0})))
        assert [(piece.ids, piece.text, piece.finish_reason) for piece in pieces] == [([300], "", "stop")]
