"""What this machine can do, measured now."""

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STORED = DTYPES | {"float16": torch.float16}  # what weights are kept in, too


def device() -> torch.device:
    """Where this process computes: its own GPU if there is one (`CUDA_VISIBLE_DEVICES=` hides them), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(own)
    return own


def matmul_rate(dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Floating-point operations a second in square products, with torch's present number of threads."""
    size = 1024 if device().type == "cpu" else 8192
    a = torch.randn(size, size, device=device()).to(dtype)
    (a @ a).sum().item()
    started, count = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        out = a @ a
        count += 1
        if count % 16 == 0 or a.device.type == "cpu":
            out[0, 0].item()  # a GPU is waited for
    out[0, 0].item()
    return count * 2 * size**3 / (time.monotonic() - started)


@contextmanager
def one_thread_each() -> Generator[int]:
    """How many threads may compute at the same time, torch's operations in one thread each meanwhile.

    Small ones gain: two threads of torch that wait for each other a thousand times a second, beside a third that writes
    and hashes, took twice the processor time of two that work on something of their own.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def memory_bytes() -> int:
    """The memory that a process here can have: its GPU's, or the machine's, or what its control group allows."""
    if device().type == "cuda":
        return torch.cuda.get_device_properties(device()).total_memory
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total
