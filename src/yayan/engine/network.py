"""A model that remembers what it read, and guidance as a second branch of it.

Shapes: N new tokens of a pass, D width, V rows of the output head.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from yayan.engine.body import Body
from yayan.engine.cache import Cache, Part, Step, common_length
from yayan.engine.distribution import guide
from yayan.engine.linear import can_pack, take_linear
from yayan.engine.turning import Turning, Turnings
from yayan.errors import UserError
from yayan.machine import STORED, device
from yayan.model.load import Quantization, load_model, read_config
from yayan.model.rope import LENGTH_DEPENDENT


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
        kind = self.config.rope_parameters.get("rope_type")
        self.longest = self.positions
        """Tokens that a sequence will have at most, which bounds the room of caches."""
        self.can_share = stretching or kind not in LENGTH_DEPENDENT
        self.kept: Cache | None = None
        """Of the last answer; the next one goes on with what it read alike."""

    def cache(self, slots: int) -> Cache:
        return Cache(self.config, slots, self.dtype, self.device)

    def turning(self, tokens: int) -> Turning | None:
        """What a request is turned by that will have so many tokens, prompt and answer together."""
        return self.turnings.of(tokens) if self.turnings else None

    def begin(self, beginnings: Sequence[Sequence[int]], turning: Turning | None) -> Cache:
        """A cache for sequences that begin so, a slot each: the one kept, cropped to what they share with it, if it has
        as many slots and is turned alike; else an empty one. The last token of each is still to be read.
        """
        cache, self.kept = self.kept, None
        if cache is None or cache.turnings != [turning] * len(beginnings) or not self.can_share:
            cache = self.cache(len(beginnings))
            for slot in range(len(beginnings)):
                cache.begin(slot, turning)
        for slot, ids in enumerate(beginnings):
            cache.crop(slot, common_length(cache.ids[slot], ids[:-1]))
        return cache

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
            parts.append(Part(slot, len(cache.ids[slot]), len(flat), len(new)))
            flat += new
        positions = [part.start + i for part in parts for i in range(part.count)]
        cache.make_room(max(positions) + 1, self.longest)
        device = self.device
        step = Step(cache, parts, every)
        h_ND = self.body(torch.tensor(flat, device=device), torch.tensor(positions, device=device), step)
        for slot, new in zip(slots, ids, strict=True):
            cache.ids[slot] += new
        if not every and len(flat) > len(parts):
            h_ND = h_ND[[part.first + part.count - 1 for part in parts]]
        return self.head(h_ND).float()


class Branches:
    """One sequence of a network, and with guidance a second one that begins with the negative prompt.

    Both go through the network in one pass. `tokens`: how many the longer branch may come to have, for a network that
    stretches; it has no use for it otherwise.
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
        beginnings = [prompt, negative or prompt[-1:]][: len(self.slots)]
        self.cache = network.begin(beginnings, network.turning(tokens))
        rest = [ids[len(held) :] for ids, held in zip(beginnings, self.cache.ids, strict=True)]
        self.logits_V = self._combine(network.read(self.cache, self.slots, rest, every=False))[0]
        """What follows the prompt."""

    @property
    def ids(self) -> list[int]:
        """Those read so far, the negative prompt apart."""
        return self.cache.ids[0]

    def keep(self) -> None:
        """Leave what was read to the next answer; this one must read no more."""
        self.network.kept = self.cache

    def read(self, ids: Sequence[int]) -> torch.Tensor:
        """Go on with `ids` -> logits [len(ids), V] after each, guided."""
        both = [ids] * len(self.slots)
        return self._combine(self.network.read(self.cache, self.slots, both, every=True))

    def follow(self, ids: Sequence[int]) -> torch.Tensor:
        """Go on with `ids` -> logits [V] after the last one, guided."""
        both = [ids] * len(self.slots)
        return self._combine(self.network.read(self.cache, self.slots, both, every=False))[0]

    def take_back(self, count: int) -> None:
        """Forget the last `count` tokens."""
        for slot in self.slots:
            self.cache.crop(slot, len(self.cache.ids[slot]) - count)

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
