"""Random models whose answers wander: a chat model, and a smaller sibling with the same tokenizer."""

from pathlib import Path
from typing import Any

import pytest

from tests.sentencepiece_model import make_chat_model

WIDE: dict[str, Any] = {  # multiples of 32
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "head_dim": 16,
    "num_hidden_layers": 2,
}


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("torch") / "wide-chat", **WIDE)


@pytest.fixture(scope="session")
def sibling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its guesses are seldom right."""
    return make_chat_model(
        tmp_path_factory.mktemp("draft") / "sibling", seed=1, **{**WIDE, "num_hidden_layers": 1}
    )
