"""The layers of a LLaMA-family model without what training needs: flat tokens, joined matrices, a cache of ours.

Shapes: N new tokens of a pass, D width, H query heads, K key heads, E size of a head.

`transformers` loads the model, checks it and knows its rotary embedding; the pass through its layers is ours, because
its own costs more than the matrices of a small model do (benchmarks/generation.py).
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from yayan.engine.cache import Step, attend_to_cache
from yayan.engine.linear import Linear, take_linear
from yayan.engine.turning import angles


class Body:
    """Token ids -> hidden states after the last norm. The model that it is made of loses its matrices."""

    def __init__(self, model: PreTrainedModel) -> None:
        decoder = model.get_decoder()
        self.embedding = decoder.embed_tokens.weight.detach()
        self.rotary = decoder.rotary_emb
        self.norm = Norm(decoder.norm)
        self.layers = [Layer(layer, number, model.config) for number, layer in enumerate(decoder.layers)]

    def __call__(self, ids_N: torch.Tensor, positions_N: torch.Tensor, step: Step) -> torch.Tensor:
        """h_ND. The new tokens stand at `positions_N` of their sequences, which `step` tells apart."""
        h_ND = F.embedding(ids_N, self.embedding)
        cos_NE, sin_NE = self.angles(positions_N, step)
        half = sin_NE.shape[-1] // 2
        signed_NE = torch.cat([-sin_NE[:, :half], sin_NE[:, half:]], -1)
        turn = cos_NE[:, None], signed_NE[:, None]
        for layer in self.layers:
            h_ND = layer(h_ND, turn, step)
        return self.norm(h_ND)

    def angles(self, positions_N: torch.Tensor, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine [N, E], float32: by the turning of each sequence, or the model's own."""
        turnings = [turning for part in step.parts if (turning := step.cache.turnings[part.slot])]
        if turnings:
            return angles(turnings, [part.count for part in step.parts], positions_N)
        cos_1NE, sin_1NE = self.rotary(self.embedding.new_empty(1, dtype=torch.float32), positions_N[None])
        return cos_1NE[0], sin_1NE[0]


class Norm:
    """RMSNorm (arXiv:1910.07467)."""

    def __init__(self, module: Any) -> None:
        self.weight, self.epsilon = module.weight.detach(), module.variance_epsilon
        self.shape = tuple(self.weight.shape)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.shape, self.weight, self.epsilon)


class Layer:
    """Attention and feed-forward network, each after a norm and beside a residual."""

    def __init__(self, module: Any, number: int, config: Any) -> None:
        attention, network = module.self_attn, module.mlp
        self.number, self.size = number, attention.head_dim
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.window: int | None = getattr(
            attention, "sliding_window", getattr(config, "sliding_window", None)
        )
        self.first_norm, self.second_norm = (
            Norm(module.input_layernorm),
            Norm(module.post_attention_layernorm),
        )
        own = hasattr(attention, "q_norm")  # Qwen3
        self.q_norm = Norm(attention.q_norm) if own else None
        self.k_norm = Norm(attention.k_norm) if own else None
        self.qkv: Linear = take_linear(attention, "q_proj", "k_proj", "v_proj")
        self.out: Linear = take_linear(attention, "o_proj")
        self.gate_up: Linear = take_linear(network, "gate_proj", "up_proj")
        self.down: Linear = take_linear(network, "down_proj")
        self.activation = network.act_fn

    def __call__(
        self, h_ND: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], step: Step
    ) -> torch.Tensor:
        h_ND = h_ND + self.out(self.attend(self.qkv(self.first_norm(h_ND)), turn, step))
        gate, up = self.gate_up(self.second_norm(h_ND)).chunk(2, -1)
        return h_ND + self.down(self.activation(gate) * up)

    def attend(self, qkv: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], step: Step) -> torch.Tensor:
        """[N, (H + 2 K) E] -> [N, H E]; queries and keys are turned (arXiv:2104.09864) in float32."""
        kind = step.cache.keys[0].dtype
        qkv_NHE = qkv.view(len(qkv), -1, self.size)
        v_NKE = qkv_NHE[:, self.heads + self.key_heads :].to(kind)
        qk_NHE = qkv_NHE[:, : self.heads + self.key_heads]
        if self.q_norm and self.k_norm:
            q, k = qk_NHE[:, : self.heads], qk_NHE[:, self.heads :]
            qk_NHE = torch.cat([self.q_norm(q), self.k_norm(k)], 1)
        qk_NHE = qk_NHE.float()
        cos, sin = turn
        qk_NHE = torch.addcmul(qk_NHE * cos, qk_NHE.roll(self.size // 2, -1), sin).to(kind)
        q, k = qk_NHE[:, : self.heads], qk_NHE[:, self.heads :]
        return attend_to_cache(q, k, v_NKE, step, self.number, self.window).to(qkv.dtype)
