"""A model folder that answers through the torch engine on this machine's device, for `timing`."""

from collections.abc import Sequence
from pathlib import Path

import torch

from yayan.engine.network import Branches, Network
from yayan.evaluate.timing import Engine
from yayan.model.load import Quantization


class TorchAnswering:
    """A model folder; quantised weights are computed with in bfloat16."""

    def __init__(self, model: Path, engine: Engine, threads: int) -> None:
        torch.set_num_threads(threads)
        quantization: Quantization | None = engine if engine in ("int8", "nf4") else None
        self.network = Network(model, "bfloat16" if quantization else engine, quantization)
        self.device = self.network.device.type

    def read_prompt(self, ids: Sequence[int]) -> int:
        self.sequence = Branches(self.network, ids)
        return likeliest(self.sequence.logits_V)

    def read_token(self, token: int) -> int:
        return likeliest(self.sequence.follow([token]))


def likeliest(logits_V: torch.Tensor) -> int:
    return int(logits_V.argmax())  # waits for a GPU
