"""Checkpoints: parameters, optimiser state and the place in the data, whole or not at all, without pickle.

A checkpoint is a folder `step-00000120` with `tensors.safetensors` and `state.json`. It is written under another name
and renamed; the newest is kept, older ones are removed after that.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_checkpoint(
    folder: Path,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    state: dict,
) -> None:
    """Write `folder/step-N` (N = state["step"]) and remove older ones."""
    tensors = {}
    for name, value in parameters.items():
        tensors[f"parameter/{name}"] = value.detach().contiguous()
        for moment, moment_value in optimizer.state.get(value, {}).items():
            tensors[f"{moment}/{name}"] = moment_value.contiguous()
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
    for older in folder.glob("step-*"):
        if older != final:
            shutil.rmtree(older)


def latest_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob("step-*"), default=None)


def load_checkpoint(
    checkpoint: Path,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> dict:
    """Put parameters and optimiser back, bit for bit; returns the state that was saved with them."""
    tensors = load_file(checkpoint / "tensors.safetensors")
    for name, value in parameters.items():
        value.data.copy_(tensors[f"parameter/{name}"])
        moments = {key: tensors[f"{key}/{name}"] for key in MOMENTS if f"{key}/{name}" in tensors}
        if moments:
            optimizer.state[value] = moments
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
