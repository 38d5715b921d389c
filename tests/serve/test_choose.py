"""Which engine is taken, and that it says why."""

from pathlib import Path

import pytest

from yayan.errors import UserError
from yayan.serve.choose import choose_engine


def test_what_auto_takes(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = gguf.parent / "tiny-chat"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert choose_engine("auto", gguf)[0] == choose_engine("auto", folder)[0] == "llamacpp"
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    assert choose_engine("auto", gguf) == ("llamacpp", "a GGUF file is its own format")
    assert choose_engine("auto", folder)[0] == "torch"
    assert choose_engine("llamacpp", folder) == ("llamacpp", "asked for")
    with pytest.raises(UserError, match="no such model"):
        choose_engine("auto", tmp_path / "none")
