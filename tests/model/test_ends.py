"""Loss and gradients of the two ends against `transformers`' own, over the families that are supported."""

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from yayan.errors import UserError
from yayan.model.attention import Attention
from yayan.model.ends import TwoEnds, first_trained_row

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
ROWS, OLD_ROWS = 83, 61


def make(family: str, *, tied: bool, window: int | None = None) -> PreTrainedModel:
    config, model = FAMILIES[family]
    windows = {"mistral": {"sliding_window": window}, "llama": {}}
    two_layers = {"sliding_window": window, "use_sliding_window": True, "max_window_layers": 1}
    settings = windows.get(family, two_layers) if window else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return model(
            config(
                vocab_size=ROWS,
                hidden_size=24,
                intermediate_size=40,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=6,
                max_position_embeddings=64,
                tie_word_embeddings=tied,
                initializer_range=0.3,
                attn_implementation="sdpa",
                **settings,
            )
        ).eval()


def packed() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Two rows of several documents each, padded at the end -> ids, targets, positions, the documents."""
    generator = torch.Generator().manual_seed(5)
    sizes = [[5, 9, 3], [11, 1, 4]]
    length = 19
    ids, targets = torch.zeros(2, length, dtype=torch.int64), torch.full((2, length), -100)
    positions = torch.zeros(2, length, dtype=torch.int64)
    documents = []
    for row, row_sizes in enumerate(sizes):
        at = 0
        for size in row_sizes:
            document = torch.randint(0, ROWS, (size + 1,), generator=generator)
            documents.append(document)
            ids[row, at : at + size], targets[row, at : at + size] = document[:-1], document[1:]
            positions[row, at : at + size] = torch.arange(size)
            at += size
        positions[row, at:] = torch.arange(length - at)
    return ids, targets, positions, documents


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("first", [0, OLD_ROWS, ROWS])
@pytest.mark.parametrize("attention", ["documents", "mask"])
def test_packed_loss_and_gradients_equal_those_of_separate_documents(
    family: str, tied: bool, first: int, attention: Attention
) -> None:
    ids, targets, positions, documents = packed()
    reference = make(family, tied=tied)
    total = torch.zeros(())
    for document in documents:
        logits = reference(input_ids=document[None, :-1], use_cache=False).logits[0]
        total = total + F.cross_entropy(logits, document[1:], reduction="sum")
    total.backward()

    ends = TwoEnds(make(family, tied=tied), first, attention=attention)
    loss = ends.loss(ids, targets, positions)
    loss.backward()
    torch.testing.assert_close(loss, total, rtol=2e-6, atol=0)
    wanted = dict(reference.named_parameters())
    for module, rows in ends.trained_rows().items():
        name = {"embed_tokens": "model.embed_tokens.weight", "lm_head": "lm_head.weight"}[module]
        assert rows.grad is not None
        assert rows.grad.is_sparse == (module == "embed_tokens" and not tied)
        torch.testing.assert_close(rows.grad.to_dense(), wanted[name].grad[first:], rtol=1e-4, atol=2e-5)
    for name, value in ends.model.named_parameters():
        if "layers" in name:
            torch.testing.assert_close(value.grad, wanted[name].grad, rtol=1e-4, atol=2e-5)
        elif "norm" not in name:
            assert value.grad is None, f"the frozen rows of {name} got a gradient"


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("window", [1, 4, 30])
def test_sliding_windows_are_those_of_separate_documents(family: str, window: int) -> None:
    """Also where only some layers have one."""
    ids, targets, positions, documents = packed()
    reference = make(family, tied=False, window=window)
    total = torch.stack(
        [
            F.cross_entropy(
                reference(input_ids=document[None, :-1], use_cache=False).logits[0],
                document[1:],
                reduction="sum",
            )
            for document in documents
        ]
    ).sum()
    without = TwoEnds(make(family, tied=False), ROWS).loss(ids, targets, positions)
    assert (window == 30) == bool(torch.isclose(without, total, rtol=1e-5))
    for attention in ("documents", "mask"):
        ends = TwoEnds(make(family, tied=False, window=window), 0, attention=attention)
        loss = ends.loss(ids, targets, positions)
        torch.testing.assert_close(loss, total, rtol=2e-6, atol=0)


def test_the_next_gradient_of_the_head_lies_in_the_memory_of_the_last_one() -> None:
    ids, targets, positions, _ = packed()
    ends = TwoEnds(make("llama", tied=False), 0)
    rows = list(ends.trained_rows().values())
    found = []
    for _ in range(3):
        ends.loss(ids, targets, positions).backward()
        assert ends.head is not None
        assert ends.head.grad is not None
        found.append((ends.head.grad.data_ptr(), ends.head.grad.clone()))
        ends.drop_gradients()
        assert all(value.grad is None for value in rows)
    assert found[0][0] == found[1][0] == found[2][0]
    assert torch.equal(found[0][1], found[2][1])


def test_the_sparse_gradient_of_several_batches_has_each_row_once() -> None:
    ids, targets, positions, _ = packed()
    sides = []
    for sparse in (True, False):
        ends = TwoEnds(make("llama", tied=False), 0)
        ends.sparse = sparse
        for _ in range(3):
            ends.loss(ids, targets, positions).backward()
        assert ends.embedding.grad is not None
        sides.append(ends.embedding.grad)
    assert sides[0].is_coalesced()
    assert len(sides[0].values()) == len(ids.unique())
    torch.testing.assert_close(sides[0].to_dense(), sides[1])


@pytest.mark.parametrize("tied", [False, True])
def test_the_heads_gradients_of_several_batches_are_summed_in_one_matrix(tied: bool) -> None:
    ids, targets, positions, _ = packed()
    ends = TwoEnds(make("llama", tied=tied), 0)
    rows = ends.embedding if ends.head is None else ends.head
    ends.loss(ids, targets, positions).backward()
    assert rows.grad is not None
    place, once = rows.grad.data_ptr(), rows.grad.clone()
    for _ in range(2):
        ends.loss(ids, targets, positions).backward()
    assert rows.grad.data_ptr() == place
    torch.testing.assert_close(rows.grad, 3 * once, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        ends.loss(ids, targets, positions)
    torch.testing.assert_close(rows.grad, 3 * once, rtol=1e-5, atol=1e-5)
    scaled = 2 * ends.loss(ids, targets, positions)
    with pytest.raises(RuntimeError, match="cannot be scaled"):
        scaled.backward()


def test_each_end_may_train_other_rows() -> None:
    ids, targets, positions, _ = packed()
    ends = TwoEnds(make("llama", tied=False), ROWS, 0)
    ends.loss(ids, targets, positions).backward()
    assert list(ends.trained_rows()) == ["lm_head"]
    assert len(ends.trained_rows()["lm_head"]) == ROWS
    whole = TwoEnds(make("llama", tied=False), 0)
    whole.loss(ids, targets, positions).backward()
    assert ends.head is not None
    assert whole.head is not None
    torch.testing.assert_close(ends.head.grad, whole.head.grad)
    with pytest.raises(UserError, match="one matrix"):
        TwoEnds(make("llama", tied=True), ROWS, 0)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("first", [OLD_ROWS, ROWS])
def test_old_rows_move_as_those_of_a_model_whose_rows_were_moved(tied: bool, first: int) -> None:
    """Loss, logits and gradients of W + s U V, some rows or all."""
    ids, targets, positions, documents = packed()
    ends = TwoEnds(make("llama", tied=tied), first)
    ends.move_old_rows(rank=3, scale=0.7)
    assert list(ends.updates) == ["embed_tokens", "lm_head"][: 1 if tied else 2]
    generator = torch.Generator().manual_seed(4)
    reference = make("llama", tied=tied)
    matrices = {"embed_tokens": reference.model.embed_tokens.weight, "lm_head": reference.lm_head.weight}
    with torch.no_grad():
        for name, update in ends.updates.items():
            for value in update.parameters():
                value.copy_(0.2 * torch.randn(value.shape, generator=generator))
            matrices[name][:first] += 0.7 * update.u @ update.v
    total = torch.zeros(())
    for document in documents:
        logits = reference(input_ids=document[None, :-1], use_cache=False).logits[0]
        total = total + F.cross_entropy(logits, document[1:], reduction="sum")
    total.backward()
    loss = ends.loss(ids, targets, positions)
    loss.backward()
    torch.testing.assert_close(loss, total, rtol=2e-6, atol=0)
    for name, update in ends.updates.items():
        moved = matrices[name].grad[:first]
        torch.testing.assert_close(update.u.grad, 0.7 * moved @ update.v.T, rtol=1e-4, atol=3e-5)
        torch.testing.assert_close(update.v.grad, 0.7 * update.u.T @ moved, rtol=1e-4, atol=3e-5)
    for name, rows in ends.trained_rows().items():
        assert rows.grad is not None
        torch.testing.assert_close(rows.grad.to_dense(), matrices[name].grad[first:], rtol=1e-4, atol=2e-5)
    with torch.no_grad():
        whole = reference(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(ends.logits(ends.hidden(ids)), whole, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_matrices_are_the_models(tied: bool) -> None:
    model = make("llama", tied=tied)
    ids = torch.arange(ROWS)[None, :40]
    for first in (0, OLD_ROWS):
        ends = TwoEnds(make("llama", tied=tied), first)
        with torch.no_grad():
            before = model(input_ids=ids).logits
            torch.testing.assert_close(ends.logits(ends.hidden(ids)[0]), before[0], rtol=1e-5, atol=1e-5)
    ends = TwoEnds(make("llama", tied=tied), 0)
    with torch.no_grad():
        for value in (*ends.trained_rows().values(), *ends.model.get_decoder().layers.parameters()):
            value.add_(0.1)
        model.load_state_dict(ends.matrices())
        changed = ends.logits(ends.hidden(ids)[0])
        torch.testing.assert_close(model(input_ids=ids).logits[0], changed, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(before[0], changed, atol=0.1)


def test_which_rows_are_trained() -> None:
    assert first_trained_row("none", ROWS, None) == ROWS
    assert first_trained_row("all", ROWS, OLD_ROWS) == 0
    assert first_trained_row("new", ROWS, OLD_ROWS) == OLD_ROWS
    with pytest.raises(UserError, match="not known"):
        first_trained_row("new", ROWS, None)
