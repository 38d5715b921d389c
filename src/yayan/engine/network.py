"""A model that remembers what it read, and guidance as a second branch of it.

Shapes: N new tokens of a pass, D width, V rows of the output head.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from yayan.engine.body import Body
from yayan.engine.cache import Cache, Part, Step
from yayan.engine.distribution import guide
from yayan.engine.linear import can_pack, take_linear
from yayan.engine.turning import Turning, Turnings
from yayan.errors import UserError
from yayan.machine import STORED, device
from yayan.model.load import Quantization, load_model, read_config


class Network:
    """The model of a folder, ready to read tokens; on a CPU its matrices are packed.

    `dtype` auto is that of the file, but float32 where the machine has no arithmetic for it; `stretching`: each request
    is turned by what its length needs (`model/longer`). Raises UserError for a folder that is no such model, or for an
    unknown dtype.
    """

    def __init__(
        self,
        folder: Path,
        dtype: str = "auto",
        quantization: Quantization | None = None,
        *,
        stretching: bool = False,
    ) -> None:
        config = read_config(folder)
        self.device = device()
        self.dtype = choose_dtype(dtype, str(config.get("dtype") or config.get("torch_dtype")), self.device)
        model = load_model(folder, self.dtype, quantization, self.device)
        self.config = model.config
        with torch.inference_mode():
            self.body, self.head = Body(model), take_linear(model, "lm_head")
        self.rows: int = self.config.vocab_size
        self.turnings = Turnings(config, self.device) if stretching else None
        own: int = self.config.max_position_embeddings
        self.positions = self.turnings.longest if self.turnings else own

    def cache(self, slots: int) -> Cache:
        return Cache(self.config, slots, self.dtype, self.device)

    def turning(self, tokens: int) -> Turning | None:
        """What a request is turned by that will have so many tokens, prompt and answer together."""
        return self.turnings.of(tokens) if self.turnings else None

    @torch.inference_mode()
    def read(
        self, cache: Cache, slots: Sequence[int], ids: Sequence[Sequence[int]], *, every: bool
    ) -> torch.Tensor:
        """Let the sequences in `slots` go on with `ids` each -> logits [N, V], float32, of what follows.

        `every`: after each new token, one sequence after another; else after the last one of each sequence.
        """
        parts: list[Part] = []
        flat: list[int] = []
        for slot, new in zip(slots, ids, strict=True):
            parts.append(Part(slot, cache.lengths[slot], len(flat), len(new)))
            flat += new
        positions = [part.start + i for part in parts for i in range(part.count)]
        cache.make_room(max(positions) + 1)
        device = self.device
        h_ND = self.body(
            torch.tensor(flat, device=device), torch.tensor(positions, device=device), Step(cache, parts)
        )
        for part in parts:
            cache.lengths[part.slot] = part.start + part.count
        if not every and len(flat) > len(parts):
            h_ND = h_ND[[part.first + part.count - 1 for part in parts]]
        return self.head(h_ND).float()


class Branches:
    """One sequence of a network, and with guidance a second one that begins with the negative prompt.

    Both go through the network in one pass. `ids` are those read so far, the negative prompt apart. `tokens`: how many
    the longer branch may come to have, for a network that stretches; it has no use for it otherwise.
    """

    def __init__(
        self,
        network: Network,
        prompt: Sequence[int],
        negative: Sequence[int] = (),
        scale: float = 1.0,
        tokens: int = 0,
    ) -> None:
        self.network, self.scale = network, scale
        self.slots = [0, 1] if scale != 1 else [0]
        self.ids = list(prompt)
        self.cache = network.cache(len(self.slots))
        for slot in self.slots:
            self.cache.begin(slot, network.turning(tokens))
        beginnings = [prompt, negative or prompt[-1:]][: len(self.slots)]
        self.logits_V = self._combine(network.read(self.cache, self.slots, beginnings, every=False))[0]
        """What follows the prompt."""

    def read(self, ids: Sequence[int]) -> torch.Tensor:
        """Go on with `ids` -> logits [len(ids), V] after each, guided."""
        self.ids += ids
        both = [ids] * len(self.slots)
        return self._combine(self.network.read(self.cache, self.slots, both, every=True))

    def take_back(self, count: int) -> None:
        """Forget the last `count` tokens."""
        if count:
            del self.ids[-count:]
            for slot in self.slots:
                self.cache.crop(slot, self.cache.lengths[slot] - count)

    @torch.inference_mode()
    def _combine(self, logits_NV: torch.Tensor) -> torch.Tensor:
        if len(self.slots) == 1:
            return logits_NV
        asked_NV, negative_NV = logits_NV.chunk(2)
        return guide(asked_NV, negative_NV, self.scale)


def choose_dtype(asked: str, stored: str, device: torch.device) -> torch.dtype:
    """What to compute in. Raises UserError for a type that there is not."""
    if asked != "auto":
        if asked not in STORED:
            raise UserError(f"there is no dtype {asked}", cure=f"take auto, {', '.join(STORED)}")
        return STORED[asked]
    dtype = STORED.get(stored, torch.float32)
    slow = device.type == "cpu" and not can_pack(dtype, device)
    return torch.float32 if slow else dtype
