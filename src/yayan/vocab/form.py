"""A new LLaMA model of a given shape, its weights drawn from a seeded generator: the start of training from nothing."""

from collections.abc import Mapping
from pathlib import Path

import torch

from yayan.errors import UserError
from yayan.model.folder import INPUT_END, OUTPUT_END
from yayan.weights.stream import TensorSpec, TensorWriter

SHAPE = {"hidden": 256, "layers": 4, "heads": 4, "feed_forward": 768, "positions": 512, "tied": 0}
INITIALIZER_RANGE = 0.02  # standard deviation of the matrices, as in `transformers`


def complete_shape(shape: Mapping[str, int]) -> dict[str, int]:
    """A shape with its defaults. Raises UserError for an unknown key or a size that makes no model."""
    unknown = sorted(set(shape) - set(SHAPE))
    if unknown:
        raise UserError("a shape has no such key", where=unknown[0], cure=f"its keys are {', '.join(SHAPE)}")
    full = {**SHAPE, **shape}
    for key, size in full.items():
        if size < 1 and key != "tied":
            raise UserError(f"{size} is no size", where=f"shape.{key}", cure="give a number from 1")
    if full["tied"] not in (0, 1):
        raise UserError("tied ends are 1, untied 0", where="shape.tied", cure="give 0 or 1")
    if full["hidden"] % (2 * full["heads"]):
        what = f"{full['hidden']} cannot be cut into {full['heads']} heads of even width"
        raise UserError(what, where="shape.hidden", cure="give a multiple of twice the number of heads")
    return full


def llama_config(shape: Mapping[str, int], vocab_size: int) -> dict[str, object]:
    """The `config.json` of a LlamaForCausalLM of a complete shape, without special token ids."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["feed_forward"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["heads"],
        "head_dim": shape["hidden"] // shape["heads"],
        "max_position_embeddings": shape["positions"],
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": INITIALIZER_RANGE,
        "tie_word_embeddings": bool(shape["tied"]),
        "use_cache": True,
        "dtype": "float32",
    }


def llama_tensors(shape: Mapping[str, int], vocab_size: int) -> dict[str, TensorSpec]:
    """Names and shapes of a LlamaForCausalLM's tensors, float32."""
    D, F = shape["hidden"], shape["feed_forward"]
    shapes: dict[str, tuple[int, ...]] = {INPUT_END: (vocab_size, D)}
    for layer in range(shape["layers"]):
        here = f"model.layers.{layer}"
        shapes[f"{here}.input_layernorm.weight"] = (D,)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"{here}.self_attn.{name}.weight"] = (D, D)
        shapes[f"{here}.post_attention_layernorm.weight"] = (D,)
        shapes[f"{here}.mlp.gate_proj.weight"] = (F, D)
        shapes[f"{here}.mlp.up_proj.weight"] = (F, D)
        shapes[f"{here}.mlp.down_proj.weight"] = (D, F)
    shapes["model.norm.weight"] = (D,)
    if not shape["tied"]:
        shapes[OUTPUT_END] = (vocab_size, D)
    return {name: TensorSpec(size, torch.float32) for name, size in shapes.items()}


def write_new_weights(plan: Mapping[str, TensorSpec], out: Path, seed: int) -> None:
    """Matrices from N(0, 0.02^2), norms of ones, tensor by tensor in the plan's order."""
    generator = torch.Generator().manual_seed(seed)
    with TensorWriter(out, plan) as writer:
        for name, spec in plan.items():
            if len(spec.shape) == 1:
                writer.add(name, torch.ones(spec.shape))
            else:
                writer.add(name, torch.randn(spec.shape, generator=generator).mul_(INITIALIZER_RANGE))
