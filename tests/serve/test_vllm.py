"""The command line of `vllm serve`, and what is done without vLLM."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sentencepiece_model import make_chat_model
from yayan.errors import UserError
from yayan.serve.server import Serve
from yayan.serve.vllm import vllm_command

PLACE = {"name": "mine", "host": "127.0.0.1", "port": 8000, "parallel": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("vllm") / "model")


def words_of(folder: Path, **options: object) -> list[str]:
    return vllm_command(folder, **PLACE, **options)  # type: ignore[arg-type]


def change(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_a_plain_folder(folder: Path) -> None:
    assert words_of(folder) == [
        *("vllm", "serve", str(folder), "--served-model-name", "mine"),
        *("--host", "127.0.0.1", "--port", "8000", "--max-num-seqs", "16"),
        *("--chat-template", str(folder / "chat_template.jinja")),
        *("--hf-overrides", '{"rope_theta": 10000.0}'),
    ]


def test_a_base_model_has_no_template(tmp_path: Path) -> None:
    assert "--chat-template" not in words_of(make_chat_model(tmp_path / "base", template=None))


def test_positions_quantisation_and_context(tmp_path: Path) -> None:
    folder = make_chat_model(tmp_path / "long")
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5, "original_max_position_embeddings": 512}
    change(folder, rope_parameters=rope, quantization_config={"quant_method": "bitsandbytes"})
    words = words_of(folder, context=2048)
    assert json.loads(after(words, "--hf-overrides")) == {"rope_theta": 5e5, "rope_scaling": rope}
    assert after(words, "--quantization") == "bitsandbytes"
    assert after(words, "--max-model-len") == "2048"
    assert after(words_of(folder, kv_cache="8bit"), "--kv-cache-dtype") == "fp8"
    with pytest.raises(UserError, match="16 or 8 bits"):
        words_of(folder, kv_cache="4bit")


def test_a_context_that_is_chosen_by_itself_is_twice_as_long(tmp_path: Path) -> None:
    folder = make_chat_model(tmp_path / "short")
    words = words_of(folder, context="auto")
    assert after(words, "--max-model-len") == "1024"
    told = json.loads(after(words, "--hf-overrides"))
    assert told == {"rope_theta": pytest.approx(1e4 * 3 ** (8 / 6)), "max_position_embeddings": 1024}


def test_adapters(folder: Path, tmp_path: Path) -> None:
    for name, rank in (("a", 8), ("b", 24)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"r": rank}))
    words = words_of(folder, adapters={name: tmp_path / name for name in "ab"})
    assert words[-4:-2] == ["--max-lora-rank", "32"] or after(words, "--max-lora-rank") == "32"
    assert words[words.index("--lora-modules") + 1 :][:2] == [f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}"]
    for ends in ({"modules_to_save": ["lm_head"]}, {"trainable_token_indices": {"embed_tokens": [1]}}):
        (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({"r": 8, **ends}))
        with pytest.raises(UserError, match="merge it first"):
            words_of(folder, adapters={"a": tmp_path / "a"})


def test_an_adapter_brings_its_template_to_a_base_model(folder: Path, tmp_path: Path) -> None:
    base, law = make_chat_model(tmp_path / "base", template=None), tmp_path / "law"
    law.mkdir()
    (law / "adapter_config.json").write_text(json.dumps({"r": 8}))
    (law / "chat_template.jinja").write_text("{{ messages }}")
    words = words_of(base, adapters={"law": law})
    assert after(words, "--chat-template") == str(law / "chat_template.jinja")
    with pytest.raises(UserError, match="another chat template"):
        words_of(folder, adapters={"law": law})
    with pytest.raises(UserError, match="the model is called mine itself"):
        words_of(folder, adapters={"mine": law})


def test_a_draft(folder: Path, tmp_path: Path) -> None:
    draft = make_chat_model(tmp_path / "draft", num_hidden_layers=1)
    told = json.loads(after(words_of(folder, draft=draft), "--speculative-config"))
    assert told == {"model": str(draft), "num_speculative_tokens": 4, "method": "draft_model"}
    with pytest.raises(UserError, match="the draft has 508 rows, the model 500"):
        words_of(folder, draft=make_chat_model(tmp_path / "other", padding=8))


def run(folder: Path, path: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "yayan", "serve", str(folder), "--engine", "vllm", *options]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=os.environ | {"PATH": path}
    )


def test_the_command_is_run_with_the_key_in_its_environment(folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.write_text('#!/bin/sh\necho "$@"; echo "key $VLLM_API_KEY"\n')
    program.chmod(0o755)
    shown = run(folder, f"{tmp_path}:{os.environ['PATH']}", "--api-key", "secret").stdout
    assert shown.startswith(f"serve {folder} --served-model-name model")
    assert "key secret" in shown
    assert shown.count("secret") == 1


def test_the_options_reach_the_command(folder: Path, tmp_path: Path) -> None:
    draft = make_chat_model(tmp_path / "draft", num_hidden_layers=1)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8}))
    stage = Serve(model=folder, engine="vllm", adapter={"law": tmp_path}, draft=draft)
    words = stage.vllm_words()
    assert f"law={tmp_path}" in words
    assert str(draft) in after(words, "--speculative-config")


def test_without_vllm_it_says_how_to_get_it(folder: Path, tmp_path: Path) -> None:
    result = run(folder, str(tmp_path))
    assert result.returncode == 2
    assert "there is no command vllm" in result.stderr
    assert "pip install vllm" in result.stderr
