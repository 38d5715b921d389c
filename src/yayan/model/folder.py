"""The small files of a model folder: its configuration, and the files that go with the weights wherever they go."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from yayan import lineage
from yayan.errors import UserError

Context = (
    int | Literal["auto"] | None
)  # tokens of a request: so many, what its length needs, or all positions
STEPS = (1, 2, 4, 8)  # times the trained length; nothing was ever seen to work beyond without training
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    TEMPLATE_FILE,
)
GENERATION_FILE = "generation_config.json"
INPUT_END, OUTPUT_END = (
    "model.embed_tokens.weight",
    "lm_head.weight",
)  # [rows, width]; tied models have the first


def read_json(path: Path) -> dict:
    """A file that holds one JSON object. Raises UserError if it is missing or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        what = (
            f"{path.name} cannot be read, {error.strerror}" if path.exists() else f"there is no {path.name}"
        )
        raise UserError(what, where=path.parent, cure="check the folder") from error
    except ValueError as error:
        raise UserError("this file is not JSON", where=path, cure="fetch or make the folder again") from error
    if not isinstance(value, dict):
        raise UserError("this file is not a JSON object", where=path, cure="fetch or make the folder again")
    return value


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path) -> dict:
    """The `config.json` of a decoder of the LLaMA family, as it stands in the folder.

    Raises UserError for anything that is not such a folder.
    """
    if not (folder / "config.json").is_file():
        what = "this is not a model folder, it has no config.json" if folder.exists() else "nothing is there"
        raise UserError(what, where=folder, cure="name a folder in Hugging Face's form")
    config = read_json(folder / "config.json")
    if config.get("model_type") not in MODEL_TYPES:
        kind = config.get("model_type", "without a model_type")
        cure = f"models of type {', '.join(MODEL_TYPES)} are"
        raise UserError(f"a model of type {kind} is not supported", where=folder / "config.json", cure=cure)
    if config.get("quantization_config"):
        raise UserError("this model is quantised", where=folder, cure="take the one that it was made from")
    refuse_bad_sizes(config, folder / "config.json")
    return config


def refuse_bad_sizes(config: dict, where: Path) -> None:
    """UserError unless the sizes that every such configuration has are there and make a model."""
    cure = "fetch or make the folder again"
    for key in SIZES:
        size = config.get(key)
        if not isinstance(size, int) or size < 1:
            raise UserError(f"{key} is {size if key in config else 'missing'}", where=where, cure=cure)
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if width % heads:
        raise UserError(f"hidden_size {width} is no multiple of {heads} heads", where=where, cure=cure)


def context_of(model: Path, asked: Context = None) -> int:
    """Tokens that a request may have, prompt and answer together: as asked, else as many as the model has positions;
    with "auto" as many as the last step of stretching has. UserError if the model has fewer.
    """
    own = int(read_config(model)["max_position_embeddings"])
    return STEPS[-1] * own if asked == "auto" else choose_context(own, asked, model)


def choose_context(own: int, asked: int | None, where: Path) -> int:
    """`asked` of a model's `own` positions, all where nothing is asked; UserError if it has fewer, and for one that
    has no room for a prompt and an answer.
    """
    if asked is not None and not 2 <= asked <= own:
        raise UserError(f"a context of {asked}", where=where, cure=f"give 2 to {own} tokens")
    return asked or own


def old_rows(model: Path) -> int | None:
    """Rows that a model had before it was grown, as its record tells; None if not known."""
    record = lineage.read(model)
    found = record["metrics"].get("old_rows") if record else None
    return None if found is None else int(found)


def inherited(model: Path) -> dict[str, object]:
    """What the record of a model made from another keeps of it: which rows are new."""
    rows = old_rows(model)
    return {} if rows is None else {"old_rows": rows}


def copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy those of the named files that `source` has."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
