"""Checkpoints: parameters, optimiser state and the place in the data, whole or not at all, without pickle.

A checkpoint is a folder `step-00000120` with `state.json` and the tensors of each rank, `rank-00000.safetensors`. It is
written under another name and renamed; older ones than the newest few are removed after that. `best` beside them holds
parameters alone, those that measured best. The files say where their slices begin in the way that torch's distributed
checkpoints read (torch.distributed.checkpoint.HuggingFaceStorageReader), so that any number of ranks can go on; torch's
own writer of this form holds a second copy of all tensors while it writes.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from yayan import ranks
from yayan.model.sharding import start_of_slice

Parameters = Mapping[str, torch.nn.Parameter]
BEST_NAME, STATE_NAME = "best", "state.json"


def save_checkpoint(
    folder: Path,
    parameters: Parameters,
    optimizers: Sequence[torch.optim.Optimizer],
    state: dict,
    keep: int = 1,
) -> None:
    """Write `folder/step-N` (N = state["step"]) and remove all but the newest `keep`. All ranks must come."""
    moments = {name: moment for name, _, moment in moments_of(parameters, optimizers)}
    write_folder(folder / f"step-{state['step']:08d}", stored(parameters) | moments, state)
    if ranks.leads():
        for older in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(older)


def latest_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob("step-*"), default=None)


def load_checkpoint(
    checkpoint: Path, parameters: Parameters, optimizers: Sequence[torch.optim.Optimizer]
) -> dict:
    """Put parameters and optimisers back, bit for bit; returns the state that was saved with them."""
    start_moments(optimizers)
    moments = {name: moment for name, _, moment in moments_of(parameters, optimizers)}
    read_folder(checkpoint, stored(parameters) | moments)
    return json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))


def save_best(folder: Path, parameters: Parameters) -> None:
    """Keep these parameters as the best ones so far. All ranks must come."""
    write_folder(folder / BEST_NAME, stored(parameters), {})


def load_best(folder: Path, parameters: Parameters) -> None:
    """Put the best parameters into place."""
    read_folder(folder / BEST_NAME, stored(parameters))


def stored(parameters: Parameters) -> dict[str, torch.Tensor]:
    return {f"parameter/{name}": value.detach() for name, value in parameters.items()}


def moments_of(
    parameters: Parameters, optimizers: Sequence[torch.optim.Optimizer]
) -> Iterator[tuple[str, torch.nn.Parameter, torch.Tensor]]:
    """What the optimisers keep of each parameter, by a name."""
    for name, value in parameters.items():
        for optimizer in optimizers:
            for key, moment in optimizer.state.get(value, {}).items():
                yield f"{key}/{name}", value, moment


def start_moments(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Let the optimisers make what they keep, by a step that changes nothing."""
    for optimizer in optimizers:
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
            for value in group["params"]:
                value.grad = torch.zeros_like(value)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def write_folder(final: Path, tensors: Mapping[str, torch.Tensor], state: dict) -> None:
    """Each rank writes its slices, the first one the rest; then the folder gets its name."""
    new = final.with_name("new")
    if ranks.leads():
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
    ranks.wait()
    write_slices(new / f"rank-{ranks.rank():05d}.safetensors", tensors)
    ranks.wait()
    if ranks.leads():
        (new / STATE_NAME).write_text(json.dumps(state), encoding="utf-8")
        sync(new / STATE_NAME)
        shutil.rmtree(final, ignore_errors=True)
        new.rename(final)
    ranks.wait()


def write_slices(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """This rank's part of the tensors, and in the header where it begins in them."""
    local, places = {}, {}
    for name, value in tensors.items():
        if isinstance(value, DTensor):
            part, first = value.to_local(), start_of_slice(value)
        elif ranks.leads():
            part, first = value, 0
        else:
            continue
        if part.numel():
            local[name] = part.contiguous()
            places[name] = {"saved_offsets": [first, *[0] * (part.ndim - 1)][: part.ndim]}
    save_file(local, path, metadata={"format": "pt", "DCP_SHARDING_INFO": json.dumps(places)})
    sync(path)


def read_folder(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Fill the tensors, or this rank's slices of them, from the slices of as many ranks as there were."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(
            tensors, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=ranks.ranks() == 1
        )


def sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
