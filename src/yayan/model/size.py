"""Parameters, floating-point operations and memory of a LLaMA-family decoder, from its configuration alone.

Shapes: L layers, D width, F feed-forward width, H heads of width E, K key-value heads, V rows of an end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from yayan.model.loss import LOGITS_BYTES, SOFTMAX_BYTES

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTIZED_BYTES: Mapping[str | None, float] = {
    "nf4": 0.516,
    "int8": 1.0,
}  # with the scales of each block or row
Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
MOMENTS_BYTES = 4 + 4  # of a trained parameter
IMPORTED_BYTES = 380 << 20  # Python with torch, transformers and peft, and what the allocator holds in vain


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
    flops_per_token: float  # attention's among them
    attention_flops_per_token: float
    logits_per_token: int
    activation_bytes_per_token: float  # that the body keeps, or would keep without checkpointing


def training_cost(
    size: Size,
    *,
    trained_body: int,
    trained_rows: int,
    updates: int = 0,
    whole_body: bool,
    dtype: str,
    positions: int,
    sequence_length: int,
    checkpointing: bool = False,
    ranks: int = 1,
    quantization: str | None = None,
    device_type: str = "cpu",
    accumulation: int = 1,
) -> TrainingCost:
    """The cost of a step over `positions` positions at once; an estimate from counts, not a measurement.

    Operations: each weight costs 2 forward and 2 for the gradient of its input; trained ones 2 more. Memory is that of
    the fuller of two moments: the loss, when all activations are kept and the head's gradient is made, or the end of
    the backward pass, when all gradients are there; those of earlier batches of the step are there at the loss too.
    `trained_rows`: of each end; `updates`: parameters of the low-rank update of each end's other rows. Of several
    `ranks` each holds its share of the model and of the positions, and for a while one layer and the ends whole.
    """
    positions = positions // ranks
    rows_each = trained_rows * size.width
    trained = trained_body + (rows_each + updates) * size.ends
    body_flops = 4 * size.body_parameters + 2 * trained_body + (0 if whole_body else 4 * trained_body)
    head_flops = 4 * size.rows * size.width + 2 * rows_each + 6 * updates
    attention_flops = 6 * size.layers * size.query_width * sequence_length
    # Frozen weights in their own format; what is trained in float32, with two moments
    frozen_rows = 0 if trained_rows == size.rows else size.rows
    frozen_ends = frozen_rows * size.ends * size.width
    body_bytes = 0.0 if whole_body else size.body_parameters * QUANTIZED_BYTES.get(quantization, BYTES[dtype])
    frozen_bytes = int(body_bytes) + frozen_ends * BYTES[dtype]
    held = IMPORTED_BYTES + (frozen_bytes + trained * (4 + MOMENTS_BYTES)) // ranks
    if ranks > 1:
        layer = size.body_parameters // size.layers
        held += layer * (4 if whole_body else BYTES[dtype])
        held += frozen_ends * BYTES[dtype] + rows_each * size.ends * 4
    narrow = 2 if dtype != "float32" else 0  # the head's own copy for the products
    logits = min(LOGITS_BYTES[device_type], positions * size.rows * BYTES[dtype])
    kept = activation_bytes(size, dtype, positions, whole_body=whole_body, checkpointing=checkpointing)
    at_loss = kept + logits + SOFTMAX_BYTES + rows_each * (4 + narrow)
    # In one process logits and copy stay for the next step, and an untied embedding has the gradient of what was read
    stays = logits + rows_each * narrow if ranks == 1 else 0
    read = accumulation * positions * size.width
    unread = max(rows_each - read, 0) * (size.ends - 1) if ranks == 1 else 0
    gradients = 4 * (trained - unread) // ranks
    if accumulation > 1:  # in one process the head's is added to the sum of the earlier ones as it is made
        at_loss += gradients - (4 * rows_each if ranks == 1 else 0)
    return TrainingCost(
        trained_parameters=trained,
        memory_bytes=held + max(at_loss, stays + gradients),
        flops_per_token=body_flops + head_flops + attention_flops,
        attention_flops_per_token=attention_flops,
        logits_per_token=size.rows,
        activation_bytes_per_token=activation_bytes(
            size, dtype, 1, whole_body=whole_body, checkpointing=False
        ),
    )


def activation_bytes(size: Size, dtype: str, positions: int, *, whole_body: bool, checkpointing: bool) -> int:
    """What the body keeps for the backward pass, as `transformers` computes it: its norms keep float32 copies.

    Numbers for each position and layer, of the model's width and of the feed-forward's, fitted to measurements.
    """
    wide, feed = (48, 6) if whole_body and dtype != "float32" else (28, 4)
    layer = positions * (wide * size.width + feed * size.feed_forward) * BYTES[dtype]
    if checkpointing:
        return layer + size.layers * positions * size.width * BYTES[dtype]
    return size.layers * layer
