"""ggml through ctypes: the header of a file as gguf's own reader tells it, and files that are none."""

from pathlib import Path

import gguf
import pytest

from tests.sentencepiece_model import make_chat_model
from yayan.errors import UserError
from yayan.weights.ggml import read_header, read_shapes
from yayan.weights.gguf_file import write_gguf


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ggml")
    path = folder / "雅言 é.gguf"
    write_gguf(make_chat_model(folder / "model", template="{{ 'ü你' }}"), path, "Q8_0")
    return path


def test_the_header_is_what_gguf_reads(path: Path) -> None:
    fields = gguf.GGUFReader(path).fields
    header = read_header(path)
    assert header.architecture == fields["general.architecture"].contents() == "llama"
    assert header.context == fields["llama.context_length"].contents() == 512
    assert header.eos == fields["tokenizer.ggml.eos_token_id"].contents() == 2
    assert header.template == "{{ 'ü你' }}"


def test_shapes_are_what_gguf_reads(path: Path) -> None:
    tensors = gguf.GGUFReader(path).tensors
    assert read_shapes(path) == {item.name: tuple(map(int, reversed(item.shape))) for item in tensors}


def test_a_base_model_has_no_template(tmp_path: Path) -> None:
    write_gguf(make_chat_model(tmp_path / "base", template=None), tmp_path / "base.gguf", "F16")
    assert read_header(tmp_path / "base.gguf").template is None


def test_every_cut_is_noticed(path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole, cut = path.read_bytes(), tmp_path / "cut.gguf"
    for size in (0, 3, 4, 8, 100, 5000, len(whole) // 2, len(whole) - 64):
        cut.write_bytes(whole[:size])
        with pytest.raises(UserError, match="not a GGUF file|header.*damaged|cut short"):
            read_header(cut)
    assert capfd.readouterr() == ("", ""), "ggml writes nothing of its own"
