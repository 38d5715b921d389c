"""LoRA on the body by PEFT, and the adapter folder: PEFT's own format, so that plain `peft` loads what we train.

The rows of the ends are stored in PEFT's encoding of trained token rows (the rows' values, their indices in
`adapter_config.json`), not as whole matrices in `modules_to_save`: 8,000 new rows are 8,000 rows.
"""

import json
import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, TrainableTokensConfig, inject_adapter_in_model

from yayan.errors import WorkError
from yayan.model.ends import EMBEDDING, HEAD, TwoEnds
from yayan.model.lora import LoraLinear
from yayan.model.sharding import put, whole
from yayan.model.size import PROJECTIONS
from yayan.ranks import leads
from yayan.weights.stream import TensorSpec, TensorWriter, open_tensors

STEM = "adapter_model"
BLOCK_BYTES = 16 << 20  # of the rows that are made at once
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


@dataclass(frozen=True)
class Stored:
    """A tensor of an adapter. `blocks` makes its rows, some at a time, float32, on the CPU; all ranks must ask."""

    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[torch.Tensor]]


def adapter_tensors(ends: TwoEnds, rows_key: str = ROWS_BESIDE_LORA) -> dict[str, Stored]:
    """The adapter's tensors under PEFT's names."""
    found = {
        PREFIX + stored_name(name): Stored(tuple(value.shape), partial(in_one_block, value))
        for name, value in lora_parameters(ends).items()
    }
    rows, width = ends.trained_rows(), ends.embedding.shape[1]
    for module, place in MODULES.items():
        count = len(rows.get(module, ())) + (len(ends.updates[module].u) if module in ends.updates else 0)
        if count:
            found[PREFIX + place + rows_key] = Stored((count, width), partial(moved_rows, ends, module))
    return found


def in_one_block(value: torch.Tensor) -> Iterator[torch.Tensor]:
    yield whole(value.detach()).cpu()


def moved_rows(ends: TwoEnds, module: str) -> Iterator[torch.Tensor]:
    """The last rows of an end, from the first on that moved: old ones with their update."""
    end = ends.model.get_input_embeddings() if module == EMBEDDING else ends.model.get_output_embeddings()
    if update := ends.updates.get(module):
        old_VD, u_VR, v_RD = (whole(x.detach()) for x in (end.weight, update.u, update.v))
        each = max(BLOCK_BYTES // v_RD[0].nbytes, 1)
        for old_BD, u_BR in zip(old_VD[: len(u_VR)].split(each), u_VR.split(each), strict=True):
            yield torch.addmm(old_BD.float(), u_BR, v_RD, alpha=update.scale).cpu()
    if module in (rows := ends.trained_rows()):
        yield whole(rows[module].detach()).cpu()


def save_adapter(ends: TwoEnds, config: LoraConfig | None, base: str, folder: Path) -> dict[str, object]:
    """Write `adapter_config.json` and `adapter_model.safetensors`, read them back, return sizes.

    `config`: None if rows alone were trained, the same of both ends. All ranks must come; the first writes. Raises
    WorkError if a tensor is not finite or did not arrive.
    """
    rows_key = ROWS_ALONE if config is None else ROWS_BESIDE_LORA
    tensors = adapter_tensors(ends, rows_key)
    plan = {name: TensorSpec(stored.shape, torch.float32) for name, stored in tensors.items()}
    with TensorWriter(folder, plan, sys.maxsize, STEM) if leads() else nullcontext() as writer:
        for name, stored in tensors.items():
            blocks = finite(name, stored.blocks())
            if writer:
                writer.add_rows(name, blocks)
            else:
                deque(blocks, maxlen=0)
    refuse_lost(tensors, folder)
    if not leads():
        return {}
    rows = ends.model.get_input_embeddings().weight.shape[0]
    keys = {name: PREFIX + module + rows_key for name, module in MODULES.items()}
    counts = {name: tensors[key].shape[0] for name, key in keys.items() if key in tensors}
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
    return {
        "adapter_tensors": len(tensors),
        "adapter_bytes": (folder / f"{STEM}.safetensors").stat().st_size,
    }


def finite(name: str, blocks: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The blocks. Raises WorkError for one that is not finite."""
    for block in blocks:
        if not torch.isfinite(block).all():
            cure = "train with a lower learning rate"
            raise WorkError(f"the trained tensor {name} is not finite", cure=cure)
        yield block


def refuse_lost(tensors: Mapping[str, Stored], folder: Path) -> None:
    """WorkError unless the file holds these very tensors; all ranks must come, the first looks."""
    source = open_tensors(folder, STEM) if leads() else None
    for name, stored in tensors.items():
        first = 0
        for block in stored.blocks():
            if source and not torch.equal(source.read(name)[first : first + len(block)], block):
                what = f"the tensor {name} did not reach the disk"
                raise WorkError(what, where=folder, cure="try again")
            first += len(block)
