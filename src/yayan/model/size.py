"""Parameters, floating-point operations and memory of a LLaMA-family decoder, from its configuration alone.

Shapes: L layers, D width, F feed-forward width, H heads of width E, K key-value heads, V rows of an end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from yayan.model.loss import LOGITS_BYTES, SOFTMAX_BYTES

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
ADAM_BYTES = 4 + 4 + 4  # of a trained parameter: its gradient and two moments, all float32
COPY_BYTES = 4  # of a trained row or LoRA pair: its own float32 value, beside the frozen matrix


@dataclass(frozen=True)
class Size:
    """What a configuration amounts to."""

    layers: int
    width: int
    feed_forward: int
    query_width: int
    key_width: int
    rows: int
    ends: int  # matrices of rows: 1 tied, 2 untied
    small: int  # norms and biases

    @property
    def projections(self) -> list[tuple[int, int]]:
        """(out, in) of the seven matrices of a layer, in the order of PROJECTIONS."""
        D, F, Q, K = self.width, self.feed_forward, self.query_width, self.key_width
        return [(Q, D), (K, D), (K, D), (D, Q), (F, D), (F, D), (D, F)]

    @property
    def body_parameters(self) -> int:
        return self.layers * sum(out * inner for out, inner in self.projections)

    @property
    def parameters(self) -> int:
        return self.body_parameters + self.ends * self.rows * self.width + self.small

    def lora_parameters(self, rank: int, targets: Sequence[str] = PROJECTIONS) -> int:
        shapes = [shape for name, shape in zip(PROJECTIONS, self.projections, strict=True) if name in targets]
        return self.layers * sum(rank * (out + inner) for out, inner in shapes)


def size_of(config: Mapping) -> Size:
    """The size of a model of the LLaMA family (Llama, Mistral, Qwen2, Qwen3)."""
    D, L, H = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    E = config.get("head_dim") or D // H
    Q, K = H * E, (config.get("num_key_value_heads") or H) * E
    small = D + L * 2 * D
    if config.get("attention_bias") or config["model_type"] == "qwen2":
        small += L * (Q + 2 * K) + (L * D if config.get("attention_bias") else 0)
    if config["model_type"] == "qwen3":
        small += L * 2 * E
    ends = 1 if config.get("tie_word_embeddings") else 2
    return Size(L, D, config["intermediate_size"], Q, K, config["vocab_size"], ends, small)


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """What training takes: parameters that move, peak memory, operations for each position."""

    trained_parameters: int
    memory_bytes: int
    flops_per_token: float


def training_cost(
    size: Size,
    *,
    trained_body: int,
    trained_rows: int,
    whole_body: bool,
    dtype: str,
    positions: int,
    sequence_length: int,
) -> TrainingCost:
    """The cost of a step over `positions` positions at once; an estimate from counts, not a measurement.

    Each weight costs 2 operations forward and 2 for the gradient of its input; trained ones 2 more. Activations kept
    for the backward pass: about 8 D + 4 F numbers for each position and layer, as the body computes them.
    """
    end_parameters = trained_rows * size.ends * size.width
    trained = trained_body + end_parameters
    weights = size.parameters * (4 if whole_body else BYTES[dtype])
    activations = positions * size.layers * (8 * size.width + 4 * size.feed_forward) * BYTES[dtype]
    logits = min(LOGITS_BYTES, positions * size.rows * BYTES[dtype]) + 2 * SOFTMAX_BYTES
    body_flops = 4 * size.body_parameters + 2 * trained_body + (0 if whole_body else 4 * trained_body)
    head_flops = 4 * size.rows * size.width + 2 * trained_rows * size.width
    attention_flops = 6 * size.layers * size.query_width * sequence_length
    copies = COPY_BYTES * (end_parameters if whole_body else trained)
    return TrainingCost(
        trained_parameters=trained,
        memory_bytes=weights + copies + trained * ADAM_BYTES + activations + logits,
        flops_per_token=body_flops + head_flops + attention_flops,
    )
