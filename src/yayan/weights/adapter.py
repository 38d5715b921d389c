"""An adapter folder in PEFT's format: which tensors of a base it changes, by low-rank pairs or by whole token rows.

The tensors are named `base_model.model.MODULE.` followed by `lora_A.weight` [r, in] and `lora_B.weight` [out, r] (LoRA,
https://arxiv.org/abs/2106.09685; rank-stabilised: https://arxiv.org/abs/2312.03732), with `lora_magnitude_vector` [out]
as well (DoRA, https://arxiv.org/abs/2402.09353: the length that each row of the sum is brought to), or by
`token_adapter.trainable_tokens_delta` [rows, d]: in spite of its name the values of the rows, whose ids stand in the
configuration under `trainable_token_indices`. An adapter of token rows alone has a type of its own, with
`trainable_tokens_delta` right behind the module and `token_indices` for all modules. Modules that were trained whole
(`modules_to_save`) stand as they are, `weight` [rows, d], and may have more rows than the base.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from yayan.errors import UserError
from yayan.model.folder import INPUT_END, OUTPUT_END, read_json
from yayan.weights.stream import TensorSource, TensorSpec, open_tensors

PREFIX = "base_model.model."
LORA_A, LORA_B, LENGTHS = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
WHOLE = ".weight"
TOKEN_ROWS, TOKEN_ROWS_ALONE = ".token_adapter.trainable_tokens_delta", ".trainable_tokens_delta"

# Options of LoRA under which the merged weight is another one than W + s B A, or more than that.
NOT_PLAIN = (
    "alpha_pattern",
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
)
# Initialisations that leave the base as it is; others (pissa, olora, loftq ...) train against a changed one.
PLAIN_INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class Adapter:
    """What one adapter does to the tensors of a base, by the base's names."""

    folder: Path
    tensors: TensorSource
    alpha: float
    rank_stabilised: bool
    pairs: dict[str, str]  # tensor of the base -> what the names of its A and B begin with
    with_lengths: bool  # each pair has lengths as well (DoRA)
    rows: dict[
        str, tuple[str, torch.Tensor]
    ]  # tensor of the base -> name of the values, ids of the rows (int64)
    whole: dict[str, str]  # tensor of the base -> name of what takes its place
    weight: float = 1.0  # how much of the pairs is added

    @property
    def targets(self) -> set[str]:
        return {*self.pairs, *self.rows, *self.whole}

    def grown(self, base: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
        """The base's tensors with the shapes that they have behind this adapter."""
        shapes = {target: self.tensors.shape(key) for target, key in self.whole.items()}
        return {name: TensorSpec(shapes.get(name, spec.shape), spec.dtype) for name, spec in base.items()}

    def pair(self, name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        """A [r, in], B [out, r] (as stored) and the scale s of W + s B A for a tensor of the base."""
        a_RI = self.tensors.read(self.pairs[name] + LORA_A)
        b_OR = self.tensors.read(self.pairs[name] + LORA_B)
        rank = a_RI.shape[0]
        scale = self.alpha / (math.sqrt(rank) if self.rank_stabilised else rank)
        return a_RI, b_OR, scale * self.weight

    def lengths(self, name: str) -> torch.Tensor | None:
        """The length [out] that each row of W + s B A is brought to; None: the one it has."""
        return self.tensors.read(self.pairs[name] + LENGTHS) if self.with_lengths else None


def read_adapter(folder: Path, base: Mapping[str, TensorSpec], *, tied: bool, weight: float = 1.0) -> Adapter:
    """An adapter that fits a base with these tensors; only names and shapes are read.

    Raises UserError if it is no plain LoRA adapter, if a tensor in it has no use, or if one does not fit the base.
    """
    config = read_json(folder / "adapter_config.json")
    refuse_other_kinds(config, folder)
    tensors = open_tensors(folder, "adapter_model")
    pairs: dict[str, str] = {}
    rows: dict[str, tuple[str, torch.Tensor]] = {}
    whole: dict[str, str] = {}
    for key in tensors.names():
        module, kind = split_key(key, folder, config.get("modules_to_save") or [])
        target = f"{module}.weight"
        if kind in (TOKEN_ROWS, TOKEN_ROWS_ALONE):
            rows[target] = key, row_ids(config, module, folder)
        elif kind == WHOLE:
            whole[target] = key
        else:
            pairs[target] = PREFIX + module
    if tied and OUTPUT_END not in base and is_twice({end: key for end, (key, _) in rows.items()}, tensors):
        del rows[OUTPUT_END]
    if tied and OUTPUT_END not in base and is_twice(whole, tensors):
        del whole[OUTPUT_END]
    if tied and OUTPUT_END in base and INPUT_END in rows:
        rows[OUTPUT_END] = rows[INPUT_END]  # the file holds both names of the one matrix
    if tied and OUTPUT_END in base and INPUT_END in whole:
        whole[OUTPUT_END] = whole[INPUT_END]
    alpha, rank_stabilised = float(config.get("lora_alpha", 8)), bool(config.get("use_rslora"))
    adapter = Adapter(
        folder, tensors, alpha, rank_stabilised, pairs, bool(config.get("use_dora")), rows, whole, weight
    )
    refuse_misfits(adapter, base, tied)
    if weight != 1 and (rows or whole or adapter.with_lengths):
        what = f"a weight of {weight} for an adapter that gives values, not differences"
        raise UserError(what, where=folder, cure="give 1, or an adapter of LoRA pairs alone")
    return adapter


def brought_positions(folder: Path) -> dict | None:
    """The configuration beside an adapter, if it tells positions that it was trained with."""
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json")
    return config if config.get("rope_scaling") or config.get("rope_parameters") else None


def is_twice(keys: Mapping[str, str], tensors: TensorSource) -> bool:
    """Whether both ends have the same values: PEFT writes those of a tied matrix twice."""
    ends = (INPUT_END, OUTPUT_END)
    return keys.keys() >= set(ends) and torch.equal(*(tensors.read(keys[end]) for end in ends))


def refuse_other_kinds(config: dict, folder: Path) -> None:
    """UserError for what is not W + s B A and rows."""
    where = folder / "adapter_config.json"
    cure = "merge it with the library that trained it"
    if config.get("peft_type") == "TRAINABLE_TOKENS":
        return
    if config.get("peft_type") != "LORA":
        raise UserError(f"an adapter of type {config.get('peft_type')} is not merged", where=where, cure=cure)
    odd = [name for name in NOT_PLAIN if config.get(name)]
    if config.get("bias", "none") != "none":
        odd.append("bias")
    if config.get("init_lora_weights", True) not in PLAIN_INITIALISATIONS:
        odd.append("init_lora_weights")
    if odd:
        raise UserError(f"LoRA with {odd[0]} = {config[odd[0]]} is not merged", where=where, cure=cure)


def split_key(key: str, folder: Path, saved: Sequence[str]) -> tuple[str, str]:
    """`base_model.model.MODULE.KIND` to MODULE and KIND; UserError for another key. `saved`: modules trained whole."""
    for kind in (LORA_A, LORA_B, LENGTHS, TOKEN_ROWS, TOKEN_ROWS_ALONE):
        if key.startswith(PREFIX) and key.endswith(kind):
            return key.removeprefix(PREFIX).removesuffix(kind), kind
    module = key.removeprefix(PREFIX).removesuffix(WHOLE)
    if (
        key.startswith(PREFIX)
        and key.endswith(WHOLE)
        and any(f".{module}".endswith(f".{name}") for name in saved)
    ):
        return module, WHOLE
    cure = "only LoRA pairs, token rows, and modules_to_save are merged"
    raise UserError(f"the adapter's tensor {key} is of an unknown kind", where=folder, cure=cure)


def row_ids(config: dict, module: str, folder: Path) -> torch.Tensor:
    """Ids of the trained rows of a module; a plain list is that of the input embedding."""
    indices = config.get("trainable_token_indices") or {}
    if config["peft_type"] == "TRAINABLE_TOKENS":
        indices = {module: config.get("token_indices")}
    if isinstance(indices, list):
        indices = {"embed_tokens": indices}
    for name, ids in indices.items():
        if f".{module}".endswith(f".{name}"):
            if not isinstance(ids, list) or not all(isinstance(id_, int) for id_ in ids):
                break
            return torch.tensor(ids, dtype=torch.int64)
    what = f"the adapter has rows of {module} but its token indices do not say which"
    raise UserError(what, where=folder / "adapter_config.json", cure="save the adapter again")


def refuse_misfits(adapter: Adapter, base: Mapping[str, TensorSpec], tied: bool) -> None:
    """UserError if a tensor of the adapter has no counterpart in the base, or another shape."""
    folder, shapes = adapter.folder, {name: spec.shape for name, spec in adapter.tensors.specs.items()}
    if not adapter.targets:
        raise UserError("the adapter holds no tensors", where=folder, cure="train it first")
    cure = "give the base that it was trained on"
    for target in sorted(adapter.targets):
        if target not in base:
            what = f"the adapter changes {target}, which the base does not have"
            raise UserError(what, where=folder, cure=cure)
    for target, stem in adapter.pairs.items():
        if target in adapter.rows or (tied and target == OUTPUT_END):
            raise UserError(f"LoRA on {target} is not merged with tied or row-trained ends", where=folder)
        a, b = shapes.get(stem + LORA_A, ()), shapes.get(stem + LORA_B, ())
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or (b[0], a[1]) != base[target].shape:
            what = f"the LoRA pair {b} x {a} does not fit {target} {base[target].shape}"
            raise UserError(what, where=folder, cure=cure)
        lengths = shapes.get(stem + LENGTHS)
        if lengths != ((b[0],) if adapter.with_lengths else None):
            what = f"the adapter's lengths {lengths} do not fit its pair for {target} and use_dora"
            raise UserError(what, where=folder, cure="save the adapter again")
    refuse_whole_misfits(adapter, base, tied)
    for target, (key, ids) in adapter.rows.items():
        height, width = base[target].shape
        if shapes[key] != (len(ids), width):
            what = f"rows of shape {shapes[key]} do not fit {len(ids)} ids of {target} {base[target].shape}"
            raise UserError(what, where=folder, cure=cure)
        if len(ids) and (int(ids.max()) >= height or int(ids.min()) < 0):
            what = f"the adapter has rows up to id {int(ids.max())}, {target} of the base has {height} rows"
            raise UserError(what, where=folder, cure=f"{cure} (the grown one)")


def refuse_whole_misfits(adapter: Adapter, base: Mapping[str, TensorSpec], tied: bool) -> None:
    """UserError unless what takes a tensor's place has its width, and the ends the same rows as each other."""
    cure = "give the base that it was trained on"
    for target, key in adapter.whole.items():
        shape, old = adapter.tensors.shape(key), base[target].shape
        if target in adapter.rows or target in adapter.pairs:
            raise UserError(f"{target} is trained twice, whole and in part", where=adapter.folder)
        grows = target in (INPUT_END, OUTPUT_END) and shape[1:] == old[1:] and shape[0] >= old[0]
        if shape != old and not grows:
            what = f"the whole {target} {shape} does not fit {old}"
            raise UserError(what, where=adapter.folder, cure=cure)
    after = adapter.grown(base)
    heights = {name: after[name].shape[0] for name in (INPUT_END, OUTPUT_END) if name in after}
    if len(set(heights.values())) > 1:
        what = f"the two ends have {heights[INPUT_END]} and {heights[OUTPUT_END]} rows behind this adapter"
        raise UserError(what, where=adapter.folder, cure="train and save both")
