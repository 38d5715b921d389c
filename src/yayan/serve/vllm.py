"""`vllm serve` for a model folder: the command line that gives it all that the folder says. vLLM is never imported."""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from yayan.engine.adapters import templates_of
from yayan.engine.choose import KvCache
from yayan.errors import UserError
from yayan.model.folder import TEMPLATE_FILE, Context, read_json
from yayan.tokenizer import read_template

KEY_VARIABLE = "VLLM_API_KEY"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes as the largest of its adapters
DRAFT_TOKENS = 4
ENDS = ("modules_to_save", "trainable_token_indices")


def vllm_command(
    model: Path,
    *,
    name: str,
    host: str,
    port: int,
    parallel: int,
    context: Context = None,
    adapters: Mapping[str, Path] | None = None,
    draft: Path | None = None,
    kv_cache: KvCache | None = None,
) -> list[str]:
    """The words of the command. Raises UserError for what vLLM cannot serve.

    Positions are told as `transformers` 4 and 5 write them, so that a vLLM on either stretches the context as trained.
    """
    if not (model / "config.json").is_file():
        raise UserError("vLLM is given a model folder", where=model, cure="name one, or take another engine")
    config = read_json(model / "config.json")
    stretch: dict[str, object] = {}
    if context == "auto":
        from yayan.model.longer import (
            first_stretch,  # imports torch, which no other engine of serve waits for
        )

        config = first_stretch(config)
        context = config["max_position_embeddings"]
        stretch["max_position_embeddings"] = context
        print(f"  context {context}: all requests are stretched alike", file=sys.stderr)
    words = ["vllm", "serve", str(model), "--served-model-name", name, "--host", host, "--port", str(port)]
    words += ["--max-num-seqs", str(parallel)]
    if context is not None:
        words += ["--max-model-len", str(context)]
    templates_of(name, read_template(model), adapters or {})  # refuses two of them
    files = [folder / TEMPLATE_FILE for folder in (model, *(adapters or {}).values())]
    if template := next(filter(Path.is_file, files), None):
        words += ["--chat-template", str(template)]
    if rope := config.get("rope_parameters"):
        scaled = rope.get("rope_type", "default") != "default"
        told = {"rope_theta": rope["rope_theta"]} | ({"rope_scaling": rope} if scaled else {})
        words += ["--hf-overrides", json.dumps(told | stretch)]
    if quantization := config.get("quantization_config"):
        words += ["--quantization", quantization["quant_method"]]
    if kv_cache == "4bit":
        raise UserError("vLLM keeps keys and values in 16 or 8 bits", where="kv-cache", cure="take 8bit")
    if kv_cache == "8bit":
        words += ["--kv-cache-dtype", "fp8"]
    if adapters:
        words += ["--enable-lora", "--max-lora-rank", str(largest_rank(adapters))]
        words += ["--lora-modules", *(f"{adapter}={path}" for adapter, path in adapters.items())]
    if draft is not None:
        same_tokens(config, read_json(draft / "config.json"), draft)
        speculation = {"model": str(draft), "num_speculative_tokens": DRAFT_TOKENS, "method": "draft_model"}
        words += ["--speculative-config", json.dumps(speculation)]
    return words


def largest_rank(adapters: Mapping[str, Path]) -> int:
    """What vLLM must make room for. Raises UserError for an adapter that it refuses."""
    ranks = []
    for path in adapters.values():
        config = read_json(path / "adapter_config.json")
        if any(config.get(key) for key in ENDS):
            what = "vLLM takes no adapter that brings rows of the two ends"
            raise UserError(what, where=path, cure="merge it first (yayan merge) and serve the merged folder")
        ranks.append(config["r"])
    fitting = [rank for rank in RANKS if rank >= max(ranks)]
    if not fitting:
        raise UserError(f"vLLM takes no adapter of rank {max(ranks)}", cure="merge it first (yayan merge)")
    return fitting[0]


def same_tokens(config: dict, draft: dict, where: Path) -> None:
    """UserError for a draft of another vocabulary."""
    if config["vocab_size"] != draft["vocab_size"]:
        what = f"the draft has {draft['vocab_size']} rows, the model {config['vocab_size']}"
        raise UserError(what, where=where, cure="draft with a smaller model of the same tokenizer")


def launch(words: list[str], keys: list[str]) -> NoReturn:
    """Become vLLM. The key travels in the environment, which other users cannot read. Raises UserError without vLLM."""
    if len(keys) > 1:
        raise UserError("vLLM takes one key from us", cure="give one --api-key")
    if shutil.which(words[0]) is None:
        cure = (
            "install it into an environment of its own (pip install vllm) and put its bin folder on the PATH"
        )
        raise UserError("there is no command vllm", cure=cure)
    os.execvpe(words[0], words, os.environ | dict(zip([KEY_VARIABLE], keys, strict=False)))
