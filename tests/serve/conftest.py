"""One small model for all tests of serving, and one server for those that leave it as it is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.running import Running, make_gguf, serving


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="session")
def server(gguf: Path) -> Iterator[Running]:
    with serving(gguf, "--parallel", "2", "--queue", "8") as running:
        yield running
