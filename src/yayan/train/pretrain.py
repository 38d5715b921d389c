"""Continued pre-training: every token of every document is a target."""

from dataclasses import dataclass

from yayan.train.training import Training


@dataclass(frozen=True, kw_only=True)
class Pretrain(Training):
    """Train on documents: an adapter (LoRA on the body, rows of the two ends), or the whole model."""
