"""LoRA on the body by PEFT, and the adapter folder: PEFT's own format, so that plain `peft` loads what we train.

The rows of the ends are stored in PEFT's encoding of trained token rows (the rows' values, their indices in
`adapter_config.json`), not as whole matrices in `modules_to_save`: 8,000 new rows are 8,000 rows.
"""

import json
import math
from collections.abc import Sequence
from copy import copy
from pathlib import Path

import torch
from peft import LoraConfig, TrainableTokensConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file

from yayan.errors import WorkError
from yayan.model.ends import EMBEDDING, HEAD, TwoEnds
from yayan.model.lora import LoraLinear
from yayan.model.sharding import put, whole
from yayan.model.size import PROJECTIONS
from yayan.ranks import leads

PREFIX = "base_model.model."
MODULES = {EMBEDDING: "model.embed_tokens", HEAD: "lm_head"}
ROWS_BESIDE_LORA = ".token_adapter.trainable_tokens_delta"
ROWS_ALONE = ".trainable_tokens_delta"  # PEFT has a kind of adapter of its own for them


def lora_config(
    rank: int,
    alpha: int,
    dropout: float,
    targets: Sequence[str] = PROJECTIONS,
    *,
    rslora: bool = False,
    dora: bool = False,
) -> LoraConfig:
    """LoRA on projections of each layer (arXiv:2106.09685), scaled by alpha / rank.

    `rslora`: by alpha / sqrt(rank) (arXiv:2312.03732). `dora`: direction and length apart (arXiv:2402.09353).
    """
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        use_rslora=rslora,
        use_dora=dora,
        task_type="CAUSAL_LM",
    )


def add_lora(ends: TwoEnds, config: LoraConfig, seed: int) -> dict[str, torch.nn.Parameter]:
    """Put LoRA pairs (float32, B = 0) into the body; everything else there is frozen. Returns them by name."""
    ends.model.requires_grad_(False)
    leaner = copy(config)  # what is saved is plain PEFT's
    leaner._register_custom_module({torch.nn.Linear: LoraLinear})
    inject_adapter_in_model(leaner, ends.model)
    pairs = lora_parameters(ends)
    for value in pairs.values():
        value.data = value.data.float()
        value.requires_grad_(True)
    start_lora(ends, seed)
    return pairs


def lora_parameters(ends: TwoEnds) -> dict[str, torch.nn.Parameter]:
    """LoRA's parameters by their names in the wrapped model."""
    return {name: value for name, value in ends.model.named_parameters() if "lora_" in name}


def start_lora(ends: TwoEnds, seed: int) -> None:
    """Set each A as a linear layer's weight is set, from the seed alone, and each B to 0; V and U of old rows alike."""
    random = torch.Generator().manual_seed(seed)
    pairs, updates = lora_parameters(ends), ends.updates.values()
    down = [value for name, value in pairs.items() if "lora_A" in name] + [each.v for each in updates]
    up = [value for name, value in pairs.items() if "lora_B" in name] + [each.u for each in updates]
    for matrix in down:
        start = torch.empty(matrix.shape)
        torch.nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=random)
        put(matrix, start)
    for matrix in up:
        put(matrix, torch.zeros(matrix.shape))


def stored_name(name: str) -> str:
    """A parameter's name as PEFT stores it: without the adapter's own, and DoRA's lengths without `weight`."""
    return name.replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector").replace(
        ".default", ""
    )


def adapter_tensors(ends: TwoEnds, rows_key: str = ROWS_BESIDE_LORA) -> dict[str, torch.Tensor]:
    """The adapter's tensors under PEFT's names, float32, on the CPU; nothing on other ranks than the first."""
    found: dict[str, torch.Tensor] = {
        PREFIX + stored_name(name): value for name, value in lora_parameters(ends).items()
    }
    for module, rows in moved_rows(ends).items():
        found[PREFIX + MODULES[module] + rows_key] = rows
    tensors = {}
    for name, value in found.items():
        gathered = whole(value.detach())
        if leads():
            tensors[name] = gathered.cpu().contiguous()
    return tensors


def moved_rows(ends: TwoEnds) -> dict[str, torch.Tensor]:
    """The last rows of each end, from the first on that moved, whole and float32: old ones with their update."""
    rows = {name: whole(value.detach()) for name, value in ends.trained_rows().items()}
    matrices = {
        EMBEDDING: ends.model.get_input_embeddings().weight,
        HEAD: ends.model.get_output_embeddings().weight,
    }
    for name, update in ends.updates.items():
        u_VR, v_RD = whole(update.u.detach()), whole(update.v.detach())
        old_VD = whole(matrices[name].detach())[: len(u_VR)].float()
        old_VD = torch.addmm(old_VD, u_VR, v_RD, alpha=update.scale)
        rows[name] = torch.cat([old_VD, rows[name]]) if name in rows else old_VD
    return rows


def save_adapter(ends: TwoEnds, config: LoraConfig | None, base: str, folder: Path) -> dict[str, object]:
    """Write `adapter_config.json` and `adapter_model.safetensors`, read them back, return sizes.

    `config`: None if rows alone were trained, the same of both ends. All ranks must come; the first writes. Raises
    WorkError if a tensor is not finite or did not arrive.
    """
    rows_key = ROWS_ALONE if config is None else ROWS_BESIDE_LORA
    tensors = adapter_tensors(ends, rows_key)
    if not leads():
        return {}
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise WorkError(
                f"the trained tensor {name} is not finite", cure="train with a lower learning rate"
            )
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    rows = ends.model.get_input_embeddings().weight.shape[0]
    keys = {name: PREFIX + module + rows_key for name, module in MODULES.items()}
    counts = {name: len(tensors[key]) for name, key in keys.items() if key in tensors}
    indices = {name: list(range(rows - count, rows)) for name, count in counts.items()}
    form = config or TrainableTokensConfig(task_type="CAUSAL_LM", target_modules=list(indices))
    settings = json.loads(json.dumps(form.to_dict(), default=sorted))
    if config is None:
        settings["token_indices"] = next(iter(indices.values()))
    else:
        settings["trainable_token_indices"] = indices or None
    settings |= {
        "base_model_name_or_path": base,
        "inference_mode": True,
    }
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    stored = load_file(folder / "adapter_model.safetensors")
    for name, value in tensors.items():
        if name not in stored or not torch.equal(stored[name], value):
            raise WorkError(f"the tensor {name} did not reach the disk", where=folder, cure="try again")
    return {
        "adapter_tensors": len(tensors),
        "adapter_bytes": (folder / "adapter_model.safetensors").stat().st_size,
    }
