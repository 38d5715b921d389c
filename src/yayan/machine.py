"""What this machine can do, measured now."""

import time

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def matmul_rate(dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Floating-point operations a second in square products of 1,024, with torch's present number of threads."""
    a = torch.randn(1024, 1024).to(dtype)
    a @ a
    started, count = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        a @ a
        count += 1
    return count * 2 * 1024**3 / (time.monotonic() - started)
