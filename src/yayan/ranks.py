"""The processes of one run. `torchrun` starts several, which train one model together; without it there is one.

Rank 0 leads: it alone writes folders, records and progress. The others wait for its word (`hear`), and do what they do
together with it inside a training. Torch is imported only where there are several.
"""

import os
import signal
import sys
from datetime import timedelta
from typing import Any

PATIENCE = timedelta(days=7)  # of those who wait while rank 0 packs or hashes; torchrun ends all if one fails


def rank() -> int:
    """Which of the processes this is."""
    return int(os.environ.get("RANK", "0"))


def ranks() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    return rank() == 0


def join() -> None:
    """Meet the other processes, once; their numbers go over gloo, tensors of a GPU over NCCL."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)


def leave() -> None:
    """End this process together with the others, if there are any; what was written must be on the disk by then.

    Without Python's and torch's ways out: gloo's threads may still run, and C++ then aborts a process that has done all
    its work (seen in one of about thirty runs).
    """
    if ranks() > 1:
        wait()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def tell(word: Any) -> None:
    """Rank 0's word to the others, who `hear` it."""
    if ranks() > 1:
        _broadcast([word])


def hear() -> Any:
    """What rank 0 tells. A signal ends the wait: Python's own handlers would not be called before the word comes."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    word = [None]
    _broadcast(word)
    signal.signal(signal.SIGTERM, before)
    return word[0]


def _broadcast(word: list) -> None:
    import torch.distributed as dist

    join()
    dist.broadcast_object_list(word, src=0)


def summed(*numbers: float) -> list[float]:
    """The sums of all ranks' numbers, in double precision; waits for all."""
    if ranks() == 1:
        return list(numbers)
    import torch
    import torch.distributed as dist

    join()
    sums = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def wait() -> None:
    """Until all are here."""
    summed(0)
