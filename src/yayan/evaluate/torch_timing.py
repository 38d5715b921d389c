"""A model folder that answers through `transformers` on this machine's device, for `timing`."""

from collections.abc import Sequence
from pathlib import Path

import torch

from yayan.evaluate.timing import Engine
from yayan.machine import DTYPES, device
from yayan.model.load import Quantization, load_model


class TorchAnswering:
    """A model folder; quantised weights are computed with in bfloat16."""

    def __init__(self, model: Path, engine: Engine, threads: int) -> None:
        torch.set_num_threads(threads)
        quantization: Quantization | None = engine if engine in ("int8", "nf4") else None
        self.device = device().type
        self.network = load_model(model, DTYPES.get(engine, torch.bfloat16), quantization, device())
        self.cache = None

    @torch.inference_mode()
    def _read(self, ids: Sequence[int]) -> int:
        ids_BT = torch.tensor([list(ids)], device=self.network.device)
        out = self.network(ids_BT, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        return int(out.logits[0, -1].argmax())  # waits for a GPU

    def read_prompt(self, ids: Sequence[int]) -> int:
        self.cache = None
        return self._read(ids)

    def read_token(self, token: int) -> int:
        return self._read([token])
