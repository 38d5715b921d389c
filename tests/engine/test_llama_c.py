"""The logits of GGUF files at every position: equal to those of `transformers`, however the text is cut up for them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from tests.sentencepiece_model import make_chat_model
from yayan.engine import llama_c
from yayan.engine.llama_c import Network, context_parameters
from yayan.errors import UserError, WorkError
from yayan.model.load import load_model
from yayan.tokenizer import load_tokenizer
from yayan.weights.gguf_file import write_gguf

TEXT = "The old man went to the river 从前，河边有一座小房子 xyz " * 9


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("network") / "tiny")


@pytest.fixture(scope="module")
def path(model: Path) -> Path:
    write_gguf(model, model.parent / "tiny-F32.gguf", "F32")
    return model.parent / "tiny-F32.gguf"


@pytest.fixture(scope="module")
def ids(model: Path) -> list[int]:
    return [1, *load_tokenizer(model).encode(TEXT)][:150]


@pytest.fixture(scope="module")
def reference(model: Path, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return load_model(model)(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize("batch", [512, 150, 37, 1])
@pytest.mark.parametrize("first", [0, 36, 37, 149])
def test_every_position_is_what_transformers_computes(
    path: Path, ids: list[int], reference: np.ndarray, batch: int, first: int
) -> None:
    with Network(path, positions=150, threads=1, batch=batch) as network:
        found_NV = np.concatenate([part.copy() for part in network.logits(ids, first)])
    assert found_NV.shape == (150 - first, 500)
    assert reference.std() > 1, "a flat distribution proves nothing"
    assert np.abs(found_NV - reference[first:]).max() < 1e-3


def test_a_text_forgets_the_one_before(path: Path, ids: list[int], reference: np.ndarray) -> None:
    with Network(path, positions=150, threads=1) as network:
        list(network.logits(ids[40:]))
        assert np.abs(next(network.logits(ids)) - reference).max() < 1e-3
        assert np.abs(next(network.logits(ids[:40])) - reference[:40]).max() < 1e-3


def test_what_texts_share_is_read_once(
    path: Path, ids: list[int], reference: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second text begins as the first; where that one ends only the rest is read, and nothing changes."""
    sizes: list[int] = []
    read = Network.read

    def counted(self: Network, part: Sequence[int], first: int | None = None) -> np.ndarray:
        sizes.append(len(part))
        return read(self, part, first)

    monkeypatch.setattr(Network, "read", counted)
    with Network(path, positions=150, threads=1) as network:
        list(network.logits([*ids[:100], 7, 8, 9], 102, share=True))
        found_NV = next(network.logits(ids, 120, share=True)).copy()
    assert sizes == [103, 50]
    assert np.abs(found_NV - reference[120:]).max() < 1e-3


def test_the_cache_of_the_server_is_less_exact(path: Path, ids: list[int], reference: np.ndarray) -> None:
    with Network(path, positions=150, threads=1, exact=False) as network:
        difference = np.abs(next(network.logits(ids)) - reference).max()
    assert 1e-5 < difference < 0.1


def test_it_says_how_large_the_model_is(path: Path) -> None:
    with Network(path, threads=1) as network:
        assert (network.positions, network.rows) == (512, 500)
    network.close()  # a second time


@pytest.mark.parametrize("positions", [0, -1, 513])
def test_positions_that_the_model_does_not_have(path: Path, positions: int) -> None:
    with pytest.raises(UserError, match=f"a context of {positions}"):
        Network(path, positions=positions, threads=1)


def test_more_tokens_than_it_has_room_for(path: Path, ids: list[int]) -> None:
    with Network(path, positions=64, threads=1) as network:
        for _ in range(4):  # its room is rounded up to 256
            network.read(ids[:64])
        with pytest.raises(WorkError, match="stopped with code"):
            network.read(ids[:64])


def write_other(path: Path, architecture: str) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_bad_files(path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    shutil.copyfile(path, broken)
    with broken.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 100)
    with pytest.raises(UserError, match="cut short"):
        Network(broken)
    (tmp_path / "text.gguf").write_text("once upon a time")
    with pytest.raises(UserError, match="not a GGUF file"):
        Network(tmp_path / "text.gguf")
    for architecture in ("nonsense", "bert", "llama"):
        with pytest.raises(WorkError, match=rf"cannot load this model \(architecture {architecture}\)"):
            Network(write_other(tmp_path / f"{architecture}.gguf", architecture))


def test_another_layout_of_the_parameters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that is looked for where another one lies does not hold its default."""
    assert context_parameters().n_batch == 2048
    monkeypatch.setattr(llama_c, "DEFAULTS", llama_c.DEFAULTS | {"n_threads": 0})
    with pytest.raises(WorkError, match="lays out n_threads otherwise"):
        context_parameters()
