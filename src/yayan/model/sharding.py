"""A model that lies in slices over the ranks: FSDP2, filled from its files without being whole anywhere.

Each parameter is cut along its first dimension. A layer's parameters are gathered for its forward and its backward
pass; those of the two ends and the last norm for the whole of a step. https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from yayan import ranks
from yayan.model.ends import TwoEnds
from yayan.model.folder import INPUT_END, OUTPUT_END
from yayan.model.load import quiet_transformers, refuse_misfits
from yayan.weights.stream import open_tensors

BASE_LAYER = ".base_layer"  # what PEFT puts between a projection's name and its weight


def empty_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a folder without its values: parameters on the meta device, buffers computed.

    Raises UserError, as `load_model` does, if the folder's tensors are others than the model has.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with quiet_transformers(), init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.tie_weights()
    wanted = {name: tuple(value.shape) for name, value in model.named_parameters()}
    twice = {OUTPUT_END} if config.tie_word_embeddings else set()
    found = {name: spec.shape for name, spec in open_tensors(folder).specs.items() if name not in twice}
    both = wanted.keys() & found.keys()
    report = {
        "missing_keys": wanted.keys() - found.keys(),
        "unexpected_keys": found.keys() - wanted.keys(),
        "mismatched_keys": [
            (name, found[name], wanted[name]) for name in both if found[name] != wanted[name]
        ],
    }
    refuse_misfits(report, folder)
    return model.eval()


def shard(ends: TwoEnds, folder: Path, device: torch.device) -> None:
    """Cut the parameters of a model made by `empty_model` and read each rank's slices from the folder.

    What the folder does not have (LoRA pairs) is left unset. Afterwards parameters are DTensors, and `hidden`, `logits`
    and `loss` of the ends must be called by all ranks alike.
    """
    mesh = init_device_mesh(device.type, (ranks.ranks(),))
    for layer in ends.model.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    without_rows = {rows for rows in (ends.embedding, ends.head) if rows is not None and not len(rows)}
    fully_shard(ends, mesh=mesh, ignored_params=ends.hollow_parameters() | without_rows)
    for method in ("hidden", "logits", "loss"):
        register_fsdp_forward_method(ends, method)
    buffers = {name: value.clone() for name, value in ends.named_buffers()}
    ends.to_empty(device=device)
    ends.hollow()
    for name, value in ends.named_buffers():
        value.copy_(buffers[name])
    read_slices(ends, folder)


@torch.no_grad()
def read_slices(ends: TwoEnds, folder: Path) -> None:
    """Fill this rank's slices; only their pages of the mapped files are read."""
    tensors = open_tensors(folder)
    for name, parameter in ends.named_parameters():
        stored, first = place_of(name, ends)
        if stored in tensors.specs and isinstance(parameter, DTensor):
            local = parameter.to_local()
            start = first + start_of_slice(parameter)
            local.copy_(tensors.read(stored)[start : start + len(local)])


def place_of(name: str, ends: TwoEnds) -> tuple[str, int]:
    """Where a parameter of the ends stands: the tensor's name in the folder, and its first row there."""
    if name == "embedding":
        return INPUT_END, ends.first
    if name == "head":
        return OUTPUT_END, ends.first_head
    return name.removeprefix("model.").replace(BASE_LAYER, ""), 0


def start_of_slice(parameter: DTensor) -> int:
    """The first row of this rank: FSDP2 cuts as `torch.chunk` does."""
    rows = parameter.shape[0]
    each = -(-rows // ranks.ranks())
    return min(ranks.rank() * each, rows)


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor of all ranks' slices; all must ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def put(parameter: torch.Tensor, value: torch.Tensor) -> None:
    """Set a parameter, of which a rank keeps its slice."""
    if isinstance(parameter, DTensor):
        local = parameter.to_local()
        start = start_of_slice(parameter)
        local.copy_(value[start : start + len(local)])
    else:
        parameter.copy_(value)


@contextmanager
def resharded(ends: TwoEnds) -> Iterator[None]:
    """Give back what a forward pass without a backward one has gathered."""
    try:
        yield
    finally:
        if isinstance(ends, FSDPModule):
            ends.reshard()
