"""Open a tokenizer that is to be continued, whichever of the two families it is of."""

from pathlib import Path

from yayan.errors import UserError
from yayan.model.folder import read_json
from yayan.tokenizer_files import open_byte_level
from yayan.vocab.base import Base, require_end
from yayan.vocab.bytelevel import make_byte_level_base
from yayan.vocab.extend import open_sentencepiece_base

SUPPORTED = (
    "a base is a SentencePiece BPE with byte fallback (tokenizer.model) or a byte-level BPE (tokenizer.json)"
)


def open_base(path: Path) -> Base:
    """The tokenizer of a model or tokenizer folder, or of one file of a tokenizer (tokenizer.model, .json, .gguf).

    Raises UserError, naming the kind, for one that cannot be continued, and for files that contradict each other.
    """
    if not path.exists():
        raise UserError("there is no such file or folder", where=path, cure="check the path")
    if path.suffix == ".model" or (path.is_dir() and (path / "tokenizer.model").is_file()):
        return open_sentencepiece_base(path)
    if path.is_dir() and not any((path / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError("there is no tokenizer", where=path, cure=SUPPORTED)
    found = open_byte_level(path)
    require_end(found.special_ids, path)
    config = path / "tokenizer_config.json"
    length = read_json(config).get("model_max_length") if config.is_file() else None
    return make_byte_level_base(
        found.fast, found.special_ids, template=found.template, model_max_length=length
    )
