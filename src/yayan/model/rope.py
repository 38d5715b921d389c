"""Rotary position embeddings (RoPE, arXiv:2104.09864) and the ways to stretch them beyond the trained length.

Shapes: E width of a head, K = E / 2 frequencies. The settings of a model are a dict as `rope_parameters` of
`transformers` 5 has them: `rope_type`, `rope_theta` (the base), and what the type needs. All is computed in float32,
operation for operation as `transformers` does.
"""

from collections.abc import Mapping
from math import ceil, floor, log, pi
from typing import Any

import torch

from yayan.errors import UserError

Rope = dict[str, Any]
DEFAULT_THETA = 10_000.0
KEYS: Mapping[str, frozenset[str]] = {  # what each type that is known here needs besides its base
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "yarn": frozenset({"factor", "original_max_position_embeddings"}),
    "llama3": frozenset(
        {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}
    ),
}
LENGTH_DEPENDENT = ("dynamic", "longrope")  # angles that depend on the last position of a pass
FAST, SLOW = (
    32,
    1,
)  # YaRN: a frequency that turns more often within the trained length stays, one below is interpolated


def plain(theta: float, width: int) -> torch.Tensor:
    """theta^(-2i / E), arXiv:2104.09864, section 3.2.2."""
    return 1 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)


def interpolated(freqs_K: torch.Tensor, factor: float) -> torch.Tensor:
    """Position interpolation (PI), arXiv:2306.15595: all positions squeezed into the trained length."""
    return freqs_K / factor


def ntk_theta(theta: float, width: int, alpha: float) -> float:
    """NTK-aware scaling as a larger base (arXiv:2309.00071, section 3.1).

    The slowest frequency is divided by alpha, the fastest stays.
    """
    return theta * alpha ** (width / (width - 2))


def dynamic_alpha(factor: float, length: int, trained: int) -> float:
    """Dynamic NTK (arXiv:2309.00071, section 3.3): alpha for a text of `length`, 1 up to the trained length."""
    return factor * max(length, trained) / trained - (factor - 1)


def adaptive_alpha(length: int, trained: int) -> float:
    """The adaptive formula of Chinese-LLaMA-Alpaca-2 at its coefficient 1: 2 L / L0 - 1, dynamic NTK of factor 2."""
    return dynamic_alpha(2.0, length, trained)


def yarn(theta: float, width: int, factor: float, trained: int) -> torch.Tensor:
    """YaRN, arXiv:2309.00071, section 3.2: PI for slow frequencies, nothing for fast ones, a ramp between them."""

    def place(turns: float) -> float:
        return width * log(trained / (turns * 2 * pi)) / (2 * log(theta))

    first, last = max(floor(place(FAST)), 0), min(ceil(place(SLOW)), width - 1)
    ramp_K = (torch.arange(width // 2, dtype=torch.float32) - first) / (last - first or 0.001)
    kept_K = 1 - ramp_K.clamp(0, 1)
    freqs_K = plain(theta, width)
    return interpolated(freqs_K, factor) * (1 - kept_K) + freqs_K * kept_K


def yarn_attention(factor: float) -> float:
    """What YaRN multiplies cosine and sine by, arXiv:2309.00071, section 3.4."""
    return 0.1 * log(factor) + 1 if factor > 1 else 1.0


def llama3(theta: float, width: int, factor: float, trained: int, low: float, high: float) -> torch.Tensor:
    """Llama 3.1's (arXiv:2407.21783; formula in its published code): as YaRN, with a ramp over the wavelength."""
    freqs_K = plain(theta, width)
    turns_K = trained / (2 * pi / freqs_K)
    kept_K = ((turns_K - low) / (high - low)).clamp(0, 1)
    return (1 - kept_K) * freqs_K / factor + kept_K * freqs_K


def frequencies(
    rope: Mapping[str, Any], width: int, positions: int, length: int | None = None
) -> tuple[torch.Tensor, float]:
    """What a model turns its heads by -> frequencies, and the factor of cosine and sine.

    `positions`: its max_position_embeddings; `length`: of the text, which dynamic NTK alone asks for.
    """
    theta, factor = rope["rope_theta"], rope.get("factor", 1.0)
    match rope["rope_type"]:
        case "linear":
            return interpolated(plain(theta, width), factor), 1.0
        case "dynamic":
            alpha = dynamic_alpha(factor, length or positions, positions)
            return plain(ntk_theta(theta, width, alpha), width), 1.0
        case "yarn":
            trained = rope["original_max_position_embeddings"]
            return yarn(theta, width, factor, trained), yarn_attention(factor)
        case "llama3":
            trained, low, high = (
                rope[name]
                for name in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
            )
            return llama3(theta, width, factor, trained, low, high), 1.0
    return plain(theta, width), 1.0


def rope_of(config: Mapping[str, Any]) -> Rope:
    """The settings of a configuration, however it writes them (older: `rope_theta` beside `rope_scaling`, which goes
    before, as in `transformers`).

    Raises UserError for a type that is not known here, or that lacks or has a key too many.
    """
    written = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta = written.get("rope_theta") or config.get("rope_theta") or DEFAULT_THETA
    kind = written.get("rope_type") or written.get("type") or "default"
    rope = {name: value for name, value in written.items() if name != "type" and value is not None}
    rope |= {"rope_type": kind, "rope_theta": float(theta)}
    if kind in ("yarn", "llama3"):
        rope.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    odd = sorted((rope.keys() - {"rope_type", "rope_theta"}) ^ KEYS.get(kind, frozenset()))
    partial = config.get("partial_rotary_factor", 1.0) != 1.0
    if kind not in KEYS or odd or partial:
        name = "partial_rotary_factor" if partial else odd[0] if odd else ""
        fault = f" {'without' if name in KEYS.get(kind, ()) else 'with'} {name}" if name else ""
        cure = f"{', '.join(KEYS)} with their own keys are"
        raise UserError(f"RoPE of type {kind}{fault} is not supported", where="config.json", cure=cure)
    return rope


def head_width(config: Mapping[str, Any]) -> int:
    """E: numbers of a head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
