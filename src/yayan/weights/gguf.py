"""The verb `gguf`: a model as GGUF files for llama.cpp, proved before they are done."""

from dataclasses import dataclass, field
from pathlib import Path

from yayan.errors import UserError
from yayan.lineage import sha256_of
from yayan.model.folder import TEMPLATE_FILE
from yayan.progress import Progress
from yayan.stage import InputPath, Stage
from yayan.weights.gguf_file import write_gguf_files
from yayan.weights.gguf_plan import plan_file
from yayan.weights.gguf_proof import Proof
from yayan.weights.quantize import FileType


@dataclass(frozen=True, kw_only=True)
class Gguf(Stage):
    """Write a model as GGUF files for llama.cpp, and check them against it."""

    model: InputPath
    """Model folder of the LLaMA family with a SentencePiece or byte-level BPE tokenizer."""
    type: list[FileType] = field(default_factory=lambda: ["F16"])
    """Types of the weights, one file each, llama.cpp's mixtures: Q8_0 takes half the bytes of F16, Q4_K_M about 0.3."""
    calibration: InputPath | None = None
    """Text that shows which columns of a matrix count (an importance matrix); without it ggml weighs them itself."""
    calibration_tokens: int = 50_000
    """Tokens of that text that are read."""
    name: str = "model"
    """Beginning of the files' names: OUT/NAME-TYPE.gguf."""

    def check(self) -> None:
        if not self.type or len(set(self.type)) < len(self.type):
            raise UserError(
                "each type of the weights must be named once", where="type", cure="F16, for example"
            )
        if self.name in ("", "..") or Path(self.name).name != self.name:
            raise UserError("this is no name of a file", where=f"name {self.name}", cure="name one without /")
        if self.calibration_tokens < 1:
            what = f"calibration_tokens is {self.calibration_tokens}"
            raise UserError(what, where="calibration_tokens", cure="give at least 1")
        plan_file(self.model, self.type[0])

    def run(self, work: Path) -> dict[str, object]:
        paths = {kind: work / f"{self.name}-{kind}.gguf" for kind in self.type}
        importance = None
        if self.calibration:
            from yayan.weights.importance import importance_of  # transformers takes seconds

            importance = importance_of(self.model, self.calibration, self.calibration_tokens)
        files = write_gguf_files(self.model, paths, importance)
        proof = Proof(self.model)
        with Progress("check", total=len(paths), unit="files") as bar:
            for kind, path in paths.items():
                files[kind] |= proof.compare(path, kind)
                bar.advance()
        template = self.model / TEMPLATE_FILE
        return {
            "files": {paths[kind].name: entry for kind, entry in files.items()},
            "tokenizer": proof.tokenizer.sha256,
            "template": sha256_of(template) if template.is_file() else None,
        }
