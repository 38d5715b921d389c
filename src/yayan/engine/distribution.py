"""Logits to a probability distribution to a token, in the order and by the rules of `transformers`' own processors.

Shapes: V rows of the output head. Logits are float32, as the head gave them (guided, where there is guidance).
"""

from collections.abc import Sequence

import torch

from yayan.engine.sampling import Sampling

Ids = Sequence[int]


def guide(logits_V: torch.Tensor, negative_V: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance (arXiv:2306.17806): u + scale (c - u), c and u the two log-probabilities."""
    c, u = logits_V.log_softmax(-1), negative_V.log_softmax(-1)
    return scale * (c - u) + u


def changes_logits(sampling: Sampling) -> bool:
    """Whether the likeliest token may be another than the model's."""
    penalties = sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
    return bool(sampling.logit_bias) or sampling.repetition_penalty != 1 or penalties


def penalise(logits_V: torch.Tensor, prompt: Ids, answer: Ids, sampling: Sampling) -> torch.Tensor:
    """Logits after bias, then repetition penalty (arXiv:1909.05858), then OpenAI's two penalties of the answer."""
    if not changes_logits(sampling):
        return logits_V
    logits_V = logits_V.clone()
    device = logits_V.device
    if sampling.logit_bias:
        ids = torch.tensor(list(sampling.logit_bias), device=device)
        logits_V[ids] += torch.tensor(list(sampling.logit_bias.values()), device=device, dtype=logits_V.dtype)
    if sampling.repetition_penalty != 1:
        seen = torch.tensor([*prompt, *answer], device=device)
        found = logits_V[seen]
        penalty = sampling.repetition_penalty
        logits_V[seen] = torch.where(found < 0, found * penalty, found / penalty)
    if answer and (sampling.presence_penalty or sampling.frequency_penalty):
        ids, counts = torch.tensor(answer, device=device).unique(return_counts=True)
        logits_V[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    return logits_V


def probabilities(logits_V: torch.Tensor, prompt: Ids, answer: Ids, sampling: Sampling) -> torch.Tensor:
    """The distribution p_V that the next token is drawn from, float32; all on one token where nothing is drawn."""
    logits_V = penalise(logits_V, prompt, answer, sampling)
    if sampling.greedy:
        p_V = torch.zeros_like(logits_V)
        p_V[logits_V.argmax()] = 1
        return p_V
    if sampling.temperature != 1:
        logits_V = logits_V / sampling.temperature
    if 0 < sampling.top_k < len(logits_V):
        least = logits_V.topk(sampling.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < least, -torch.inf)
    if sampling.top_p < 1:
        logits_V = keep_nucleus(logits_V, sampling.top_p)
    p_V = logits_V.softmax(-1)
    if sampling.min_p > 0:
        p_V = p_V.masked_fill(p_V < sampling.min_p * p_V.max(), 0)
        p_V = p_V / p_V.sum()
    return p_V


def keep_nucleus(logits_V: torch.Tensor, top_p: float) -> torch.Tensor:
    """Top-p (arXiv:1904.09751): -inf for all but the fewest tokens that reach it, at least one."""
    ordered, ids = logits_V.sort()
    outside = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
    outside[-1] = False
    return logits_V.index_fill(0, ids[outside], -torch.inf)


class Chooser:
    """Chooses the tokens of one answer: the options, the prompt, and a source of random numbers of its own."""

    def __init__(self, sampling: Sampling, prompt: Ids, device: torch.device) -> None:
        self.sampling, self.prompt = sampling, prompt
        self.argmax = sampling.greedy and not changes_logits(sampling)
        self.random = torch.Generator(device)
        if sampling.seed is None:
            self.random.seed()
        else:
            self.random.manual_seed(sampling.seed)

    @torch.inference_mode()
    def probabilities(self, logits_V: torch.Tensor, answer: Ids) -> torch.Tensor:
        return probabilities(logits_V, self.prompt, answer, self.sampling)

    @torch.inference_mode()
    def choose(self, logits_V: torch.Tensor, answer: Ids) -> int:
        """The next token after `answer`."""
        if self.sampling.greedy:
            return int(penalise(logits_V, self.prompt, answer, self.sampling).argmax())
        return self.draw(self.probabilities(logits_V, answer))

    @torch.inference_mode()
    def draw(self, p_V: torch.Tensor) -> int:
        return int(torch.multinomial(p_V, 1, generator=self.random))

    def uniform(self) -> float:
        """A number from [0, 1)."""
        return torch.rand((), generator=self.random, dtype=torch.float64, device=self.random.device).item()


@torch.inference_mode()
def top_logprobs(logits_V: torch.Tensor, token: int, count: int) -> tuple[float, dict[int, float]]:
    """Natural log-probability of a token, and those of the `count` likeliest, before bias, penalties and cuts."""
    logprobs_V = logits_V.log_softmax(-1)
    values, ids = logprobs_V.topk(count)
    return logprobs_V[token].item(), dict(zip(ids.tolist(), values.tolist(), strict=True))
