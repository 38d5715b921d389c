"""The GGUF file that a path means: the file itself, or what a model folder is converted to, once for each content."""

import tempfile
from pathlib import Path

from yayan import __version__
from yayan.engine.choose import no_stretch_of
from yayan.errors import UserError
from yayan.lineage import cache_folder, sha256_of
from yayan.model.folder import read_config, write_json


def find_gguf(model: Path) -> Path:
    """The GGUF file that a path means. Raises UserError if there is none, or if there are several."""
    if not model.exists():
        cure = "name a model folder or a .gguf file"
        raise UserError("there is no such model", where=model, cure=cure)
    if model.is_file():
        return model
    if (model / "config.json").is_file():
        return convert_once(model)
    files = sorted(model.glob("*.gguf"))
    if len(files) != 1:
        found = "several GGUF files" if files else "neither config.json nor a GGUF file"
        names = ", ".join(file.name for file in files)
        cure = f"name one of {names}" if files else "name a model folder or a .gguf file"
        raise UserError(f"the folder holds {found}", where=model, cure=cure)
    return files[0]


def cached_gguf(model: Path) -> Path:
    """Where the F16 GGUF of a model folder lies, or will lie."""
    folder = cache_folder() / "gguf"
    folder.mkdir(exist_ok=True)
    return folder / f"{sha256_of(model)}-{__version__}-F16.gguf"


def convert_once(model: Path) -> Path:
    """The F16 GGUF of a model folder, from the cache if its content was seen before; whole or not at all."""
    from yayan.weights.gguf_file import write_gguf  # imports torch: 2 s that a GGUF file does not need

    path = cached_gguf(model)
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            draft = Path(work) / path.name
            write_gguf(model, draft, "F16")
            draft.replace(path)
    return path


def stretched_once(model: Path) -> Path:
    """The F16 GGUF of a model folder for the first step beyond its trained length (`model/longer`), from the cache.

    Raises UserError for a GGUF file, whose settings llama.cpp takes as they are.
    """
    from yayan.model.longer import first_stretch  # imports torch

    if not (model / "config.json").is_file():
        raise no_stretch_of(model)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / model.resolve().name
        folder.mkdir()
        for file in model.resolve().iterdir():
            if file.is_file() and file.name != "config.json":
                (folder / file.name).symlink_to(file)
        write_json(folder / "config.json", first_stretch(read_config(model)))
        return convert_once(folder)
