"""The two ends of a language model, where language adaptation happens: input embedding and output head, ours.

Shapes: B sequences, T positions, D width, V rows of an end, R trained rows, N target positions.

The trained rows are the last R of each end: the new tokens' (`new`), all (`all`), or none (`none`). They are parameters
of their own in float32; the frozen rows stay in the model's matrix, in its dtype, without gradient or optimiser state.
With `low-rank` the new ones are trained so, and the frozen ones move by an update of low rank (`low_rank.py`).
The body in between is the `transformers` model's, reached through its public interface (`inputs_embeds`).
"""

from collections.abc import Collection
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from yayan import ranks
from yayan.errors import UserError
from yayan.model.attention import Attention, documents_of, use_attention
from yayan.model.buffers import Buffers
from yayan.model.folder import INPUT_END, OUTPUT_END
from yayan.model.loss import IGNORED, linear_cross_entropy
from yayan.model.low_rank import LowRankUpdate

EMBEDDING, HEAD = "embed_tokens", "lm_head"  # as PEFT names the two modules
Rows = Literal["all", "low-rank", "new", "none"]


def first_trained_row(rows: Rows, vocab_size: int, old_rows: int | None) -> int:
    """Index of the first trained row. `old_rows`: how many rows the model had before it was grown, if known."""
    if rows == "none":
        return vocab_size
    if rows == "all":
        return 0
    if rows == "low-rank":
        return vocab_size if old_rows is None else old_rows
    if old_rows is None:
        cure = "train --rows all or none, or grow the model with `yayan grow`"
        raise UserError("which rows are new is not known, the model was not grown", where="rows", cure=cure)
    return old_rows


class TwoEnds(nn.Module):
    """A causal language model with its ends taken in hand: `loss(ids, targets, positions)`.

    `first`: the first trained row of the embedding, and of the head unless `first_head` is given. Tied ends share one
    parameter, so one number. `embedding` [R, D] and `head` [R, D] (None when tied) are float32. The wrapped model's own
    matrix is not changed; where all rows are trained only its shape stays. The embedding's gradient is sparse (in one
    process, untied): it has the rows of the tokens that were read, of which a batch has few. The rows before
    the first trained one move where `move_old_rows` says so.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        first: int,
        first_head: int | None = None,
        attention: Attention = "auto",
    ) -> None:
        super().__init__()
        self.model = model
        self.free_memory = Buffers()
        self.sparse = ranks.ranks() == 1  # FSDP cannot share out a sparse gradient
        self.first, self.first_head = first, first if first_head is None else first_head
        old_embedding = model.get_input_embeddings().weight
        old_head = model.get_output_embeddings().weight
        old_embedding.requires_grad_(False)
        old_head.requires_grad_(False)
        self.tied = old_head is old_embedding
        if self.tied and self.first_head != self.first:
            raise UserError("this model's two ends are one matrix", where="head_rows", cure="leave it out")
        use_attention(model, attention)
        self.embedding = take_rows(old_embedding, self.first)
        self.embedding.register_post_accumulate_grad_hook(coalesce)
        self.head = None if self.tied else take_rows(old_head, self.first_head)
        self.old_rows = nn.ModuleDict()
        self.hollow()

    def move_old_rows(self, rank: int, scale: float, ends: Collection[str] = (EMBEDDING, HEAD)) -> None:
        """Let the frozen rows of these ends move by `scale` times an update of this rank; tied ends share theirs."""
        matrix = self.model.get_input_embeddings().weight
        for name, first in ((EMBEDDING, self.first), (HEAD, self.first_head)):
            if name in ends and not (self.tied and name == HEAD):
                update = LowRankUpdate(first, rank, matrix.shape[1], scale)
                self.old_rows[name] = update.to(matrix.device)

    @property
    def updates(self) -> dict[str, LowRankUpdate]:
        """Module name -> the update of its frozen rows, where they move."""
        return {name: value for name, value in self.old_rows.items() if isinstance(value, LowRankUpdate)}

    def trained_rows(self) -> dict[str, nn.Parameter]:
        """Module name -> rows, as PEFT names them; nothing where no row is trained."""
        rows = {EMBEDDING: self.embedding}
        if self.head is not None:
            rows[HEAD] = self.head
        return {name: value for name, value in rows.items() if len(value)}

    def embed(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Token ids -> x_BTD in the body's dtype."""
        frozen_VD = self.model.get_input_embeddings().weight[: self.first]
        dtype = self.model.get_input_embeddings().weight.dtype
        if self.first == 0:
            return F.embedding(ids_BT, self.embedding, sparse=self.sparse).to(dtype)
        old_BT = ids_BT.clamp(max=self.first - 1)
        x_BTD = F.embedding(old_BT, frozen_VD)
        if update := self.updates.get(EMBEDDING):
            x_BTD = x_BTD + update.of(old_BT, dtype)
        if len(self.embedding) == 0:
            return x_BTD
        new_BTD = F.embedding((ids_BT - self.first).clamp(min=0), self.embedding, sparse=self.sparse).to(
            dtype
        )
        return torch.where((ids_BT >= self.first)[..., None], new_BTD, x_BTD)

    def hidden(self, ids_BT: torch.Tensor, positions_BT: torch.Tensor | None = None) -> torch.Tensor:
        """h_BTD after the last norm. Where positions restart at 0, attention does not cross (documents)."""
        return self._hidden(ids_BT, positions_BT)

    def _hidden(self, ids_BT: torch.Tensor, positions_BT: torch.Tensor | None) -> torch.Tensor:
        # `loss` and `hidden` are entered from outside, which is where FSDP gathers the parameters
        documents = None if positions_BT is None else documents_of(positions_BT)
        out = self.model.get_decoder()(
            inputs_embeds=self.embed(ids_BT), position_ids=positions_BT, use_cache=False, documents=documents
        )
        return out.last_hidden_state

    def head_pieces(self) -> list[torch.Tensor]:
        """The head's rows in order: frozen, trained."""
        frozen_VD = self.model.get_output_embeddings().weight[: self.first_head]
        return [frozen_VD, self.embedding if self.head is None else self.head]

    def head_update(self, h_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(p_NR, u_VR), of which p u^T is added to the logits of the head's frozen rows, where they move."""
        update = self.updates.get(EMBEDDING if self.tied else HEAD)
        return None if update is None else (update.project(h_ND), update.u)

    def logits(self, h_ND: torch.Tensor) -> torch.Tensor:
        """h_ND -> logits_NV over the whole vocabulary (for evaluation, a few positions at a time)."""
        parts = [h_ND @ piece.to(h_ND.dtype).T for piece in self.head_pieces()]
        if moved := self.head_update(h_ND):
            p_NR, u_VR = moved
            parts[0] += p_NR @ u_VR.to(h_ND.dtype).T
        return torch.cat(parts, dim=-1)

    def loss(
        self, ids_BT: torch.Tensor, targets_BT: torch.Tensor, positions_BT: torch.Tensor, scale: float = 1.0
    ) -> torch.Tensor:
        """`scale` times the sum of nats over the positions whose target is not IGNORED; to be differentiated as it is.

        `scale`: 1 / the number of targets of the optimiser step.
        """
        h_BTD = self._hidden(ids_BT, positions_BT)
        if torch.is_autocast_enabled(h_BTD.device.type):  # which leaves the residual stream wide
            h_BTD = h_BTD.to(torch.get_autocast_dtype(h_BTD.device.type))
        counts_BT = targets_BT != IGNORED
        h_ND, targets_N = h_BTD[counts_BT], targets_BT[counts_BT]
        return linear_cross_entropy(
            h_ND,
            self.head_pieces(),
            targets_N,
            scale,
            buffers=self.free_memory,
            update=self.head_update(h_ND),
            sums=[None, self.head_sum()],
        )

    def head_sum(self) -> torch.Tensor | None:
        """The head's gradient of earlier batches of the step; the next one's is added to it as it is made."""
        gradient = self.head_pieces()[1].grad
        if gradient is None or gradient.is_sparse or ranks.ranks() > 1 or not torch.is_grad_enabled():
            return None
        return gradient

    def drop_gradients(self) -> None:
        """Set the trained rows' gradients to None; the next ones are made in their memory."""
        for rows in self.trained_rows().values():
            if ranks.ranks() == 1 and rows.grad is not None and not rows.grad.is_sparse:
                self.free_memory.give(rows.grad)
            rows.grad = None

    def matrices(self) -> dict[str, torch.Tensor]:
        """The wholly trained model's parameters by their names in a model folder."""
        head = self.embedding if self.head is None else self.head  # a file may hold a tied matrix twice
        return dict(self.model.named_parameters()) | {INPUT_END: self.embedding, OUTPUT_END: head}

    def hollow_parameters(self) -> set[nn.Parameter]:
        """The wrapped model's own ends where all rows are trained."""
        ends = [(self.model.get_input_embeddings(), self.first)]
        if self.head is not None:
            ends.append((self.model.get_output_embeddings(), self.first_head))
        return {module.weight for module, first in ends if first == 0}

    def hollow(self) -> None:
        """Keep only their shape."""
        for value in self.hollow_parameters():
            value.data = value.data[:1].clone().expand_as(value)


def coalesce(rows: torch.Tensor) -> None:
    """Let a sparse gradient have each row once, however many batches it is the sum of."""
    if rows.grad is not None and rows.grad.is_sparse:
        rows.grad = rows.grad.coalesce()


def take_rows(weight: nn.Parameter, first: int) -> nn.Parameter:
    """The rows from `first` on as a parameter of their own, float32."""
    return nn.Parameter(weight[first:].detach().float().clone())
