"""The proof of a merged model: sampled rows computed again, and what it predicts against base and adapters by PEFT."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from warnings import catch_warnings

import torch

from yayan.errors import WorkError
from yayan.weights.adapter import Adapter
from yayan.weights.stream import TensorSource, open_tensors

SAMPLED_ROWS = 8
NORM_EPS = 64  # roundings that a float32 norm of a row may be off by
SAMPLED_TOKENS = 64
LARGEST_BYTES = (
    1 << 30
)  # of a model in float32; with a larger one nothing is computed, so that merging stays small
# Largest difference of natural log-probabilities. A float32 sum differs by the order of its terms; what the rounding of
# a narrower format changes is told, not judged.
TOLERANCE = 1e-3


@torch.no_grad()
def largest_difference(base: Path, adapters: Sequence[Path], merged: Path) -> float | None:
    """Largest |difference of log-probabilities| between a merged folder and base with adapters, over random tokens.

    All in float32, the adapters loaded by plain PEFT, one after the other. None where a model is too large to be
    computed with here. Raises WorkError if float32 weights predict something else.
    """
    specs = open_tensors(merged).specs.values()
    if 4 * sum(spec.elements for spec in specs) > LARGEST_BYTES:
        return None
    from peft import PeftModel  # both take seconds, for which the merge of a large model need not wait

    from yayan.model.load import load_model, quiet_transformers

    ours = load_model(merged)
    rows = ours.get_input_embeddings().num_embeddings
    ids_1T = torch.randint(rows, (1, SAMPLED_TOKENS), generator=torch.Generator().manual_seed(0))
    ours_TV = ours(ids_1T).logits[0].log_softmax(-1)
    theirs = load_model(base)
    # An adapter may have been trained at length
    theirs.get_decoder().rotary_emb = ours.get_decoder().rotary_emb
    del ours
    with quiet_transformers(), catch_warnings(action="ignore"):
        if rows > theirs.get_input_embeddings().num_embeddings:
            theirs.resize_token_embeddings(rows, mean_resizing=False)
        for adapter in adapters:
            theirs = PeftModel.from_pretrained(theirs, adapter).merge_and_unload()
    theirs_TV = theirs.eval()(ids_1T).logits[0].log_softmax(-1)
    worst = (ours_TV - theirs_TV).abs().max().item()
    exact = all(spec.dtype == torch.float32 for spec in specs)
    if exact and not worst <= TOLERANCE:
        what = f"the merged model predicts something else than base and adapter, by {worst:.3g}"
        raise WorkError(what, where=merged, cure="this is a defect of yayan, please report it")
    return float(f"{worst:.3g}")


def recompute_rows(
    base: TensorSource, adapters: Sequence[Adapter], merged: TensorSource, names: Iterable[str]
) -> tuple[int, float]:
    """Recompute rows of the named tensors in float64 from the inputs and compare them with what is on the disk.

    The rows are drawn from a seeded generator, half of them among trained token rows where there are any. Returns how
    many rows were compared and the largest deviation, relative to its bound: one rounding to the tensor's dtype and the
    float32 error of a sum of r products. Raises WorkError if the deviation exceeds the bound.
    """
    generator = torch.Generator().manual_seed(0)
    count, largest = 0, 0.0
    for name in names:
        ids = torch.randint(merged.shape(name)[0], (SAMPLED_ROWS,), generator=generator)
        for adapter in adapters:
            if name in adapter.rows and len(trained := adapter.rows[name][1]):
                picks = torch.randint(len(trained), (SAMPLED_ROWS,), generator=generator)
                ids = torch.cat([ids, trained[picks]])
        wanted, bound = expected_rows(name, ids, base, adapters)
        limits = torch.finfo(merged.dtype(name))
        bound += wanted.abs() * limits.eps + limits.smallest_normal
        error = ((merged.read_rows(name, ids).double() - wanted).abs() / bound).max().item()
        if not error <= 1:
            what = "the merged weights on the disk are not those of base and adapters"
            raise WorkError(what, where=name, cure="check the disk and run the command again")
        count, largest = count + len(ids), max(largest, error)
    return count, largest


def expected_rows(
    name: str, ids: torch.Tensor, base: TensorSource, adapters: Sequence[Adapter]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows `ids` of the merged tensor in float64, and what float32 arithmetic may add to their error."""
    whole = next(((item.tensors, item.whole[name]) for item in adapters if name in item.whole), (base, name))
    wanted = whole[0].read_rows(whole[1], ids).double()
    bound = wanted.abs() * torch.finfo(torch.float32).eps
    for adapter in adapters:
        if name in adapter.pairs:
            a_RI, b_OR, scale = adapter.pair(name)
            a_RI, b_KR = a_RI.double(), b_OR[ids].double()
            wanted += scale * (b_KR @ a_RI)
            magnitude = abs(scale) * (b_KR.abs() @ a_RI.abs()) + wanted.abs()
            bound += magnitude * (a_RI.shape[0] + 2) * torch.finfo(torch.float32).eps
            if (lengths_O := adapter.lengths(name)) is not None:
                factor_K1 = (lengths_O[ids].double() / torch.linalg.norm(wanted, dim=1))[:, None]
                wanted *= factor_K1
                bound *= factor_K1.abs()
                bound += wanted.abs() * NORM_EPS * torch.finfo(torch.float32).eps
        if name in adapter.rows:
            key, trained = adapter.rows[name]
            values = adapter.tensors.read(key)
            places = {row: place for place, row in enumerate(trained.tolist())}
            for k, row in enumerate(ids.tolist()):
                if row in places:
                    wanted[k] = values[places[row]].double()
    return wanted, bound
