"""A draft is kept where it gains, and only there; the answers stay what they are."""

from pathlib import Path

import pytest

from tests.sentencepiece_model import make_chat_model
from yayan.engine import draft_trial
from yayan.engine.draft_trial import open_llamacpp, tokens_per_second
from yayan.engine.llamacpp import open_model
from yayan.errors import UserError

IDS = list(range(10, 40))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that a pass costs something."""
    return make_chat_model(
        tmp_path_factory.mktemp("large") / "model",
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=8,
    )


@pytest.mark.parametrize("gain", [1.0, 1.2])
def test_what_the_trial_shows_is_done(
    gain: float,
    model: Path,
    sibling: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Which of the two is faster is told here; that it is measured, below."""
    seen = []
    speeds = iter([10.0, 10 * gain])

    def measured(engine: object) -> float:
        assert tokens_per_second(engine) > 0  # type: ignore[arg-type]
        seen.append(engine)
        return next(speeds)

    monkeypatch.setattr(draft_trial, "TRIAL_SECONDS", 0.05)
    monkeypatch.setattr(draft_trial, "tokens_per_second", measured)
    with open_model(model, threads=1) as alone:
        plain = alone.ask("/completion", {"prompt": IDS, "n_predict": 20, "temperature": 0})
    with open_llamacpp(model, sibling, threads=1) as engine:
        found = engine.ask("/completion", {"prompt": IDS, "n_predict": 20, "temperature": 0})
        assert (engine is seen[1]) == (gain > 1.1)
        assert found["timings"].get("draft_n", 0) > 0 or gain == 1
    assert found["content"] == plain["content"]
    told = capsys.readouterr().err
    assert f"{gain:.2f} times as fast in a trial, it is {'used' if gain > 1.1 else 'left out'}" in told


def test_a_draft_as_large_as_the_model_is_left_out(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_llamacpp(model, model, threads=1) as engine:
        found = engine.ask("/completion", {"prompt": IDS, "n_predict": 20, "temperature": 0})
        assert found["timings"].get("draft_n", 0) == 0
    assert "left out" in capsys.readouterr().err


def test_what_is_no_draft(model: Path, tmp_path: Path) -> None:
    short = make_chat_model(tmp_path / "short", max_position_embeddings=100)
    with pytest.raises(UserError, match="give 2 to 100 tokens"):
        open_llamacpp(model, short, threads=1)
    with pytest.raises(UserError, match="no such model"):
        open_llamacpp(model, tmp_path / "nothing", threads=1)
