"""A tiny LLaMA with a real SentencePiece tokenizer and a chat template: what GGUF files are made from."""

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from yayan.template import LLAMA2_TEMPLATE
from yayan.tokenizer import convert_sentencepiece, read_sentencepiece

TEXTS = [
    "Once upon a time there was a small house by the river, and in the house lived an old man.",
    "The river was wide and slow; every morning the old man went down to it with his net.",
    "def area(width, height):\n    return width * height  # 1234567890",
    "雅言是标准的语言，人们用它诵读诗书，也用它行礼。",
    "从前，河边有一座小房子，房子里住着一位老人。每天早上，老人带着渔网到河边去。",
    "河水又宽又慢，老人说：“今天的鱼比昨天的多。”",
]
TOKENS = 500
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # wide, so that the tokens' probabilities differ by orders of magnitude
}


@cache
def sentencepiece_bytes() -> bytes:
    """A BPE with byte fallback as Llama 2's: no text is rewritten; <unk> <s> </s> <pad> come first."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=TOKENS,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        pad_id=3,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def make_chat_model(
    folder: Path,
    *,
    template: str | None = LLAMA2_TEMPLATE,
    padding: int = 0,
    seed: int = 0,
    family: str = "llama",
    **config: Any,
) -> Path:
    """Write a random model whose last `padding` rows have no token; without a template it is a base model."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {"vocab_size": TOKENS + padding, **SIZES, **config}
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(family, bos_token_id=1, eos_token_id=2, **sizes)
        )
        for name, weight in model.named_parameters():
            if name.endswith(
                ("norm.weight", ".bias")
            ):  # transformers begins with ones and zeros, which hide mistakes
                torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(sentencepiece_bytes())
    convert_sentencepiece(read_sentencepiece(folder)).save(str(folder / "tokenizer.json"))
    specials = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **specials}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder
