"""Growing: old rows keep their bits, new ones start where they should, and the folder is whole."""

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tests.tiny import PIECES, make_base, make_model, make_tokenizer
from yayan.errors import UserError
from yayan.model.load import load_model
from yayan.stage import execute
from yayan.tokenizer import load_tokenizer
from yayan.vocab.grow import Grow, form_model, grow_model
from yayan.vocab.init import NEED_CORPUS, Init, cut_new_tokens

NEW = ["<pad>", "你好", "bcd", "▁a世", "猫", "好好"]
SIZE, GROWN = len(PIECES), len(PIECES) + len(NEW)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    make_tokenizer(tmp_path / "tokenizer", NEW)
    file = tmp_path / "tokenizer" / "tokenizer.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    state["model"]["merges"].append(["你", "好"])  # so that a text holds a new token
    file.write_text(json.dumps(state), encoding="utf-8")
    return tmp_path / "tokenizer"


def grow(
    tmp_path: Path, tokenizer: Path, init: str = "mean_of_pieces", seed: int = 0, output: str | None = None
) -> dict[str, torch.Tensor]:
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    corpus = None
    if {init, output} & set(NEED_CORPUS):
        corpus = [tmp_path / "corpus.txt"]
        corpus[0].write_text("你世a bcd 好界 你好\n\n" * 30, encoding="utf-8")
    stage = Grow(
        model=tmp_path / "base",
        tokenizer=tokenizer,
        init=init,  # type: ignore[arg-type]
        init_output=output,  # type: ignore[arg-type]
        corpus=corpus,
        seed=seed,
        out=out,
    )
    execute(stage)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("init", get_args(Init))
def test_old_rows_and_all_other_tensors_keep_their_bits(
    tmp_path: Path, tokenizer: Path, tied: bool, dtype: torch.dtype, init: str
) -> None:
    make_base(tmp_path / "base", tied=tied, dtype=dtype)
    old = load_file(tmp_path / "base" / "model.safetensors")
    new = grow(tmp_path, tokenizer, init)
    assert old.keys() == new.keys()
    assert (HEAD in new) == (not tied)
    for name, tensor in new.items():
        assert tensor.dtype == dtype
        if name in (EMBEDDING, HEAD):
            assert tensor.shape == (GROWN, 24)
            assert torch.equal(tensor[:SIZE], old[name])
            assert torch.isfinite(tensor).all()
        else:
            assert torch.equal(tensor, old[name])
    model = load_model(tmp_path / "out", dtype)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    ids = torch.tensor([[1, 260, 270, 5]])
    before = load_model(tmp_path / "base", dtype)(ids).logits
    torch.testing.assert_close(model(ids).logits[..., :SIZE], before)


def test_a_new_token_is_cut_as_the_old_tokenizer_cuts_its_text(tmp_path: Path, tokenizer: Path) -> None:
    make_tokenizer(tmp_path / "old")
    old, new = load_tokenizer(tmp_path / "old"), load_tokenizer(tokenizer)
    cuts = [[old.token(id_) for id_ in cut] for cut in cut_new_tokens(old, new)]
    bytes_of_cat = ["<0xE7>", "<0x8C>", "<0xAB>"]
    pad = ["<0x3C>", "<0x70>", "a", "d", "<0x3E>"]
    assert cuts == [pad, ["你", "好"], ["bc", "d"], ["▁a", "世"], bytes_of_cat, ["好", "好"]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_of_pieces(tmp_path: Path, tokenizer: Path, dtype: torch.dtype) -> None:
    """Both ends: the mean in float64 of the rows of the pieces, within one rounding."""
    make_base(tmp_path / "base", dtype=dtype)
    new = grow(tmp_path, tokenizer)
    ids = [[PIECES.index(piece) for piece in pieces] for pieces in (["你", "好"], ["bc", "d"], ["▁a", "世"])]
    for name in (EMBEDDING, HEAD):
        for token, cut in enumerate(ids, start=SIZE + 1):
            wanted = new[name][cut].double().mean(0)
            torch.testing.assert_close(
                new[name][token].double(), wanted, rtol=torch.finfo(dtype).eps, atol=1e-7
            )
        assert torch.equal(new[name][GROWN - 1], new[name][PIECES.index("好")])


def test_a_token_of_which_no_piece_is_known_has_no_cut(tmp_path: Path) -> None:
    """A tokenizer without bytes knows no 猫; that such a token starts as the mean is test_init's."""
    make_tokenizer(tmp_path / "old", pieces=["<unk>", "<s>", "</s>", *PIECES[259:]])
    make_tokenizer(tmp_path / "new", ["猫", "猫好"], pieces=["<unk>", "<s>", "</s>", *PIECES[259:]])
    cuts = cut_new_tokens(load_tokenizer(tmp_path / "old"), load_tokenizer(tmp_path / "new"))
    assert cuts == [[], [3 + PIECES[259:].index("好")]]


def test_mean(tmp_path: Path, tokenizer: Path) -> None:
    make_base(tmp_path / "base", padding=3)
    new = grow(tmp_path, tokenizer, "mean")
    for name in (EMBEDDING, HEAD):
        wanted = new[name][:SIZE].double().mean(0).float().expand(len(NEW), -1)
        torch.testing.assert_close(new[name][SIZE:], wanted, rtol=0, atol=1e-8)


def test_noise_has_the_spread_of_the_configuration_and_a_seed(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"initializer_range": 0.5}))
    make_tokenizer(tmp_path / "many", [f"你{i}" for i in range(500)])
    first = grow(tmp_path, tmp_path / "many", "noise")
    again = grow(tmp_path, tmp_path / "many", "noise")
    other = grow(tmp_path, tmp_path / "many", "noise", seed=3)
    rows = first[EMBEDDING][SIZE:]
    assert abs(rows.std().item() - 0.5) < 0.02
    assert abs(rows.mean().item()) < 0.02
    assert torch.equal(rows, again[EMBEDDING][SIZE:])
    assert not torch.equal(rows, other[EMBEDDING][SIZE:])
    assert not torch.equal(rows, first[HEAD][SIZE:])


@pytest.mark.parametrize("padding", [1, 6, 9])
def test_rows_beyond_the_old_tokenizer_are_no_tokens(tmp_path: Path, tokenizer: Path, padding: int) -> None:
    """New tokens take the padding's place; padding beyond the new tokenizer stays, bit for bit."""
    make_base(tmp_path / "base", padding=padding)
    old = load_file(tmp_path / "base" / "model.safetensors")
    poisoned = old | {
        name: old[name].index_fill(0, torch.arange(SIZE, SIZE + padding), 1e6) for name in (EMBEDDING, HEAD)
    }
    save_file(poisoned, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    for init in get_args(Init):
        new = grow(tmp_path, tokenizer, init)
        for name in (EMBEDDING, HEAD):
            assert len(new[name]) == max(GROWN, SIZE + padding)
            assert new[name][:GROWN].abs().max() < 1
            assert (new[name][GROWN:] == 1e6).all()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    metrics = json.loads((tmp_path / "out" / "yayan.json").read_text())["metrics"]
    assert config["vocab_size"] == metrics["rows"] == max(GROWN, SIZE + padding)
    assert (metrics["old_rows"], metrics["rows_added"]) == (SIZE, len(NEW))


def test_a_tied_matrix_stored_twice_grows_alike(tmp_path: Path, tokenizer: Path) -> None:
    make_base(tmp_path / "base", tied=True)
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    tensors[HEAD] = tensors[EMBEDDING].clone()
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    for init in ("mean_of_pieces", "noise"):
        new = grow(tmp_path, tokenizer, init)
        assert torch.equal(new[HEAD], new[EMBEDDING])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("config", [MistralConfig, Qwen2Config, Qwen3Config])
def test_every_family_grows(
    tmp_path: Path, tokenizer: Path, config: type[PreTrainedConfig], tied: bool
) -> None:
    """Models as `transformers` writes them, with biases and norms of their own; logits of old tokens stay."""
    base = tmp_path / "base"
    make_tokenizer(base)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings = config(
        **sizes, num_key_value_heads=2, head_dim=6, vocab_size=SIZE + 3, tie_word_embeddings=tied
    )
    AutoModelForCausalLM.from_config(settings).to(torch.bfloat16).save_pretrained(base)
    old = load_file(base / "model.safetensors")
    for init in ("mean_of_pieces", "similar", "noisy_mean"):
        new = grow(tmp_path, tokenizer, init)
        assert old.keys() == new.keys()
        for name in old:
            rows = SIZE if name in (EMBEDDING, HEAD) else len(old[name])
            assert torch.equal(new[name][:rows], old[name][:rows])
        assert {len(new[name]) for name in (EMBEDDING, HEAD) if name in new} == {max(GROWN, SIZE + 3)}
        ids = torch.tensor([[1, 260, 270, 5]])
        before, after = (
            load_model(folder, torch.bfloat16)(ids).logits for folder in (base, tmp_path / "out")
        )
        torch.testing.assert_close(after[..., :SIZE], before[..., :SIZE])


def test_the_ends_may_start_differently(tmp_path: Path, tokenizer: Path) -> None:
    make_base(tmp_path / "base")
    alone = {init: grow(tmp_path, tokenizer, init) for init in get_args(Init)}
    for init, output in (("mean_of_pieces", "noise"), ("noisy_mean", "similar"), ("similar", "mean")):
        both = grow(tmp_path, tokenizer, init, output=output)
        assert torch.equal(both[EMBEDDING], alone[init][EMBEDDING])
        assert torch.equal(both[HEAD], alone[output][HEAD])
    assert len({tensors[HEAD].numpy().tobytes() for tensors in alone.values()}) == len(alone)


@pytest.mark.parametrize("init", get_args(Init))
def test_the_same_question_gives_the_same_bytes(tmp_path: Path, tokenizer: Path, init: str) -> None:
    make_base(tmp_path / "base", dtype=torch.bfloat16)
    found = []
    for _ in range(2):
        grow(tmp_path, tokenizer, init, seed=5)
        found.append((tmp_path / "out" / "model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_an_output_end_that_is_the_input_end_has_no_start_of_its_own(tmp_path: Path, tokenizer: Path) -> None:
    make_base(tmp_path / "base", tied=True)
    stage = Grow(model=tmp_path / "base", tokenizer=tokenizer, init_output="mean", out=tmp_path / "out")
    assert_refused(stage, "the ends of this model are tied")


def test_a_corpus_is_given_where_it_is_needed_and_nowhere_else(tmp_path: Path, tokenizer: Path) -> None:
    make_base(tmp_path / "base")
    base, out, corpus = tmp_path / "base", tmp_path / "out", tmp_path / "corpus.txt"
    for init in NEED_CORPUS:
        assert_refused(Grow(model=base, tokenizer=tokenizer, init=init, out=out), f"{init} needs a corpus")
        stage = Grow(model=base, tokenizer=tokenizer, init_output=init, out=out)
        assert_refused(stage, f"{init} needs a corpus")
    corpus.write_text("你好", encoding="utf-8")
    stage = Grow(model=base, tokenizer=tokenizer, init="mean", corpus=[corpus], out=out)
    assert_refused(stage, "mean does not look at a corpus .*: leave it out")
    stage = Grow(model=base, tokenizer=tokenizer, init="similar", corpus=[tmp_path / "none.txt"], out=out)
    with pytest.raises(UserError, match="none"):
        execute(stage)
    for given in ({"corpus": [corpus]}, {"init_output": "mean"}):
        stage = Grow(tokenizer=tokenizer, shape={}, out=out, **given)
        assert_refused(stage, "a new model starts from noise alone")
    corpus.write_text('{"heading": "一", "own": "你好"}', encoding="utf-8")
    rows = corpus.rename(tmp_path / "corpus.jsonl")
    stage = Grow(model=base, tokenizer=tokenizer, init="similar", corpus=[rows], out=out)
    with pytest.raises(UserError, match="no field is called text or content, there are heading, own"):
        execute(stage)
    execute(Grow(model=base, tokenizer=tokenizer, init="similar", corpus=[rows], field="own", out=out))


def test_the_folder_is_whole(tmp_path: Path, tokenizer: Path) -> None:
    make_base(tmp_path / "base", dtype=torch.bfloat16)
    (tmp_path / "base" / "chat_template.jinja").write_text("of the base")
    (tokenizer / "tokenizer.model").write_bytes(b"pieces")
    generation = tmp_path / "base" / "generation_config.json"
    generation.write_text(
        json.dumps(json.loads(generation.read_text()) | {"temperature": 0.3, "eos_token_id": [2, 7]})
    )
    grow(tmp_path, tokenizer)
    out = tmp_path / "out"
    old, config = (json.loads((path / "config.json").read_text()) for path in (tmp_path / "base", out))
    assert config == old | {"vocab_size": GROWN, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": SIZE}
    carried = json.loads((out / "generation_config.json").read_text())
    assert (carried["temperature"], carried["eos_token_id"], carried["pad_token_id"]) == (0.3, [2, 7], SIZE)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (tokenizer / name).read_bytes()
    assert (out / "chat_template.jinja").read_text() == "of the base"
    assert load_tokenizer(out).sha256 == load_tokenizer(tokenizer).sha256
    (tokenizer / "chat_template.jinja").write_text("of the tokenizer")
    grow(tmp_path, tokenizer)
    assert (out / "chat_template.jinja").read_text() == "of the tokenizer"


def test_shards_are_the_same_model(tmp_path: Path, tokenizer: Path) -> None:
    make_base(tmp_path / "base")
    for name, size in (("one", 1 << 30), ("many", 10_000)):
        (tmp_path / name).mkdir()
        grow_model(tmp_path / "base", tokenizer, tmp_path / name, "mean_of_pieces", 0, size)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    one, many = load_model(tmp_path / "one").state_dict(), load_model(tmp_path / "many").state_dict()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_a_model_is_formed_from_nothing(tmp_path: Path, tokenizer: Path) -> None:
    shape = {"hidden": 20, "layers": 3, "heads": 2, "feed_forward": 33, "positions": 17}
    record = execute(Grow(tokenizer=tokenizer, shape=shape, out=tmp_path / "out"))
    model = load_model(tmp_path / "out")
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (20, 3, 2)
    assert (config.intermediate_size, config.max_position_embeddings, config.vocab_size) == (33, 17, GROWN)
    assert (config.rope_parameters["rope_theta"], config.rms_norm_eps) == (10000.0, 1e-5)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, SIZE)
    assert record["metrics"]["parameters"] == sum(value.numel() for value in model.parameters())
    assert record["metrics"]["dtype"] == "float32"
    values = torch.cat([value.flatten() for value in model.parameters() if value.dim() == 2])
    assert abs(values.std().item() - 0.02) < 5e-4
    assert model(torch.tensor([[1, GROWN - 1]])).logits.isfinite().all()
    assert load_tokenizer(tmp_path / "out").pad_id == SIZE


def test_forming_is_decided_by_the_seed(tmp_path: Path, tokenizer: Path) -> None:
    weights = []
    for number, seed in enumerate((0, 0, 1)):
        (tmp_path / str(number)).mkdir()
        form_model({"hidden": 8, "layers": 1, "heads": 1}, tokenizer, tmp_path / str(number), seed)
        weights.append((tmp_path / str(number) / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_a_tied_model_is_formed_without_a_head(tmp_path: Path, tokenizer: Path) -> None:
    execute(Grow(tokenizer=tokenizer, shape={"hidden": 16, "tied": 1}, out=tmp_path / "out"))
    assert HEAD not in load_file(tmp_path / "out" / "model.safetensors")
    model = load_model(tmp_path / "out")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ({"width": 3}, r"no such key \(width\): its keys are hidden, layers, heads"),
        ({"layers": 0}, r"0 is no size \(shape\.layers\)"),
        ({"hidden": 30, "heads": 4}, "cannot be cut into 4 heads"),
        ({"hidden": 12, "heads": 4}, "heads of even width"),
        ({"tied": 2}, "tied ends are 1, untied 0"),
    ],
)
def test_a_shape_that_makes_no_model_is_refused(
    tmp_path: Path, tokenizer: Path, shape: dict[str, int], sentence: str
) -> None:
    assert_refused(Grow(tokenizer=tokenizer, shape=shape, out=tmp_path / "out"), sentence)


def assert_refused(stage: Grow, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        execute(stage)
    assert not stage.out.exists()
    assert not stage.out.with_name("out.partial").exists()


def test_neither_or_both_of_model_and_shape_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    make_base(tmp_path / "base")
    for options in ({}, {"model": tmp_path / "base", "shape": {}}):
        stage = Grow(tokenizer=tokenizer, out=tmp_path / "out", **options)  # type: ignore[arg-type]
        assert_refused(stage, "exactly one of a model and a shape")


def test_a_tokenizer_that_is_not_larger_is_refused(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    make_tokenizer(tmp_path / "same")
    stage = Grow(model=tmp_path / "base", tokenizer=tmp_path / "same", out=tmp_path / "out")
    assert_refused(stage, "has no new tokens")


def test_a_tokenizer_of_others_is_refused_by_its_first_difference(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    other = [*PIECES[:264], "x", *PIECES[265:268], "y", *PIECES[269:]]
    make_tokenizer(tmp_path / "other", NEW, pieces=other)
    stage = Grow(model=tmp_path / "base", tokenizer=tmp_path / "other", out=tmp_path / "out")
    assert_refused(stage, "id 264 is 'x' in this tokenizer and 'e' in the model's")
    make_tokenizer(tmp_path / "shorter", pieces=[*PIECES[:265], *PIECES[269:]])
    stage = Grow(model=tmp_path / "base", tokenizer=tmp_path / "shorter", out=tmp_path / "out")
    assert_refused(stage, "id 265 is '▁a' in this tokenizer and '你' in the model's")


def test_a_matrix_smaller_than_its_tokenizer_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    make_tokenizer(tmp_path / "base")
    make_model(tmp_path / "base", rows=SIZE - 1)
    stage = Grow(model=tmp_path / "base", tokenizer=tokenizer, out=tmp_path / "out")
    assert_refused(stage, f"has {SIZE - 1} rows, but the model's own tokenizer {SIZE} tokens")


def test_a_model_without_its_ends_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    make_base(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    for name in (HEAD, EMBEDDING):
        save_file({key: value for key, value in tensors.items() if key != name}, file)
        stage = Grow(model=tmp_path / "base", tokenizer=tokenizer, out=tmp_path / "out")
        assert_refused(stage, f"the model has no {name}")


def test_folders_of_another_kind_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    make_base(tmp_path / "base")
    out = tmp_path / "out"
    assert_refused(Grow(model=tokenizer, tokenizer=tokenizer, out=out), r"it has no config\.json")
    (tmp_path / "empty").mkdir()
    assert_refused(Grow(model=tmp_path / "base", tokenizer=tmp_path / "empty", out=out), "no tokenizer")
