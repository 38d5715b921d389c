"""Large tensors whose memory is used again.

A CPU's new memory comes as pages of 4 KB that are cleared one by one: filling 128 MB that are new took 26 ms, filling
them again 5 (docs/log.md). On a GPU torch's own allocator does this already.
"""

import torch

MOST_FREE = 4  # kept at most, the newest ones


class Buffers:
    """Flat CPU tensors that nobody holds at the moment."""

    def __init__(self) -> None:
        self.free: list[torch.Tensor] = []

    def take(self, elements: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A flat tensor of at least so many elements, whatever stands in them: the smallest free one up to twice that.

        Otherwise it is new. Nothing else holds it.
        """
        fitting = [
            i
            for i, flat in enumerate(self.free)
            if flat.dtype == dtype and elements <= len(flat) <= 2 * elements and device.type == "cpu"
        ]
        if fitting:
            return self.free.pop(min(fitting, key=lambda i: len(self.free[i])))
        return torch.empty(elements, dtype=dtype, device=device)

    def give(self, tensor: torch.Tensor) -> None:
        """Take a contiguous tensor back, of which the caller makes no more use."""
        if tensor.device.type == "cpu":
            self.free = [*self.free, tensor.view(-1)][-MOST_FREE:]
