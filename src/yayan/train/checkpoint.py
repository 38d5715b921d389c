"""Checkpoints: parameters, optimiser state and the place in the data, whole or not at all, without pickle.

A checkpoint is a folder `step-00000120` with `tensors.safetensors` and `state.json`. It is written under another name
and renamed; older ones than the newest few are removed after that. `best.safetensors` beside them holds parameters
alone, those that measured best.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Parameters = Mapping[str, torch.nn.Parameter]
BEST_NAME = "best.safetensors"


def save_checkpoint(
    folder: Path,
    parameters: Parameters,
    optimizers: Sequence[torch.optim.Optimizer],
    state: dict,
    keep: int = 1,
) -> None:
    """Write `folder/step-N` (N = state["step"]) and remove all but the newest `keep`."""
    tensors = {f"parameter/{name}": value.detach().contiguous() for name, value in parameters.items()}
    for name, value in parameters.items():
        for optimizer in optimizers:
            for key, moment in optimizer.state.get(value, {}).items():
                tensors[f"{key}/{name}"] = moment.contiguous()
    final = folder / f"step-{state['step']:08d}"
    new = folder / "new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_file(tensors, new / "tensors.safetensors")
    (new / "state.json").write_text(json.dumps(state), encoding="utf-8")
    for name in ("tensors.safetensors", "state.json"):
        with (new / name).open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(final, ignore_errors=True)
    new.rename(final)
    for older in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(older)


def latest_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob("step-*"), default=None)


def load_checkpoint(
    checkpoint: Path, parameters: Parameters, optimizers: Sequence[torch.optim.Optimizer]
) -> dict:
    """Put parameters and optimisers back, bit for bit; returns the state that was saved with them."""
    tensors = load_file(checkpoint / "tensors.safetensors")
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        if kind != "parameter":
            moments.setdefault(name, {})[kind] = value
    owner = {id(v): o for o in optimizers for group in o.param_groups for v in group["params"]}
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[f"parameter/{name}"])
        if name in moments:
            owner[id(parameter)].state[parameter] = moments[name]
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def save_best(folder: Path, parameters: Parameters) -> None:
    """Keep these parameters as the best ones so far."""
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"{BEST_NAME}.new"
    save_file({name: value.detach().contiguous() for name, value in parameters.items()}, new)
    new.replace(folder / BEST_NAME)


def load_best(folder: Path, parameters: Parameters) -> None:
    """Put the best parameters into place."""
    for name, value in load_file(folder / BEST_NAME).items():
        parameters[name].data.copy_(value)
