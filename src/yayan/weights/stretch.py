"""The verb `stretch`: a model for longer texts, by other rotary frequencies, without training."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yayan.errors import UserError
from yayan.model.folder import (
    GENERATION_FILE,
    TOKENIZER_FILES,
    copy_files,
    inherited,
    read_config,
    read_json,
    write_json,
)
from yayan.model.longer import Method, positions_of, stretched
from yayan.model.rope import head_width, rope_of
from yayan.stage import InputPath, Stage
from yayan.weights.card import write_card
from yayan.weights.stream import open_tensors, totals

CACHE_BYTES = 2  # of a number in the cache of keys and values, as engines keep it
LIMITS = {  # lengths that tools read elsewhere and would cut a text at
    "tokenizer_config.json": "model_max_length",
    GENERATION_FILE: "max_length",
}
READY = "it reads beyond the old length without training, short texts hardly worse; a short training makes it better"
EXPECT: Mapping[Method, str] = {
    "pi": "every text is squeezed, short ones suffer as well: train it at the new length before use",
    "ntk": READY,
    "yarn": READY,
    "llama3": READY,
    "dynamic": "up to the old length nothing changes; beyond it, answers from a cache differ from a full pass",
}
ENGINES: Mapping[str, str] = {  # by the type that they read
    "linear": "transformers, llama.cpp, vLLM (which reckons a longer limit: give it --max-model-len {to})",
    "default": "transformers, llama.cpp, vLLM",
    "yarn": "transformers, llama.cpp, vLLM",
    "llama3": "transformers, vLLM, llama.cpp (of the types llama and mistral)",
    "dynamic": "transformers; vLLM, which fixes it for {to} positions; not llama.cpp",
}


@dataclass(frozen=True, kw_only=True)
class Stretch(Stage):
    """Give a model more positions by other rotary frequencies, without training, and say what to expect.

    The weights are the same files (hard links where the disk allows it).
    """

    model: InputPath = field(kw_only=False)
    """Model folder."""
    to: int
    """Positions of the new model."""
    method: Method
    """Position interpolation, NTK-aware (a larger base), dynamic NTK, YaRN, or Llama 3.1's."""
    alpha: float | None = None
    """Alpha of --method ntk; 2 TO / POSITIONS - 1 by default."""

    def check(self) -> None:
        if self.alpha is not None and self.alpha <= 1:
            raise UserError(f"alpha is {self.alpha:g}", where="alpha", cure="give more than 1")
        self.config()
        if open_tensors(self.model).pickled:
            what = "the weights are older .bin files, which only merge and grow read"
            raise UserError(what, where=self.model, cure="save it as safetensors first")

    def config(self) -> dict[str, Any]:
        return stretched(read_config(self.model), self.to, self.method, self.alpha)

    def run(self, work: Path) -> dict[str, object]:
        before, config = read_config(self.model), self.config()
        write_json(work / "config.json", config)
        weights = [work / file.name for file in sorted(self.model.glob("model*.safetensors*"))]
        for path in weights:
            link_or_copy(self.model / path.name, path)
        copy_files(self.model, work, (GENERATION_FILE, *TOKENIZER_FILES))
        raise_limits(work, self.to)
        facts = totals(open_tensors(work).specs) | inherited(self.model)
        write_card(
            work,
            self.out.name,
            self.model,
            {"model": self.model},
            facts,
            [path for path in weights if path.suffix == ".safetensors"],
        )
        return facts | {
            "positions_before": positions_of(before),
            "positions": self.to,
            "rope": rope_of(config),
            "cache_bytes": cache_bytes(config, self.to),
        }

    def tell(self, record: dict) -> None:
        metrics = record["metrics"]
        settings = ", ".join(f"{name} {value}" for name, value in metrics["rope"].items())
        print(f"{metrics['positions_before']:,} → {metrics['positions']:,} positions: {settings}")
        print(f"expect: {EXPECT[self.method]}")
        print(f"read by {ENGINES[metrics['rope']['rope_type']].format(to=self.to)}")
        print(f"a cache of all positions takes {metrics['cache_bytes'] / 1e9:.2f} GB in 16 bits")


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under another name, or a copy on another disk."""
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def raise_limits(folder: Path, positions: int) -> None:
    """Where the small files hold a shorter length as a limit, the new one in its place."""
    for name, key in LIMITS.items():
        path = folder / name
        settings = read_json(path) if path.is_file() else {}
        limit = settings.get(key)
        if isinstance(limit, int) and limit < positions:
            write_json(path, settings | {key: positions})


def cache_bytes(config: Mapping[str, Any], positions: int) -> int:
    """Keys and values of one conversation of that length."""
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    return 2 * config["num_hidden_layers"] * heads * head_width(config) * positions * CACHE_BYTES
