"""Model and tokenizer folders of a few kilobytes, made in a moment, with odd sizes on purpose."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import LlamaConfig, LlamaForCausalLM

from yayan.corpus.shards import Shards

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "b", "c", "d", "e", "你", "好", "世", "界", "▁a", "bc"]
MERGES = [("▁", "a"), ("b", "c")]


def make_tokenizer(folder: Path, new: Sequence[str] = (), *, pieces: Sequence[str] = PIECES) -> int:
    """Write a BPE with byte fallback whose last tokens are `new` (`<pad>` among them is padding); its size."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [*pieces, *new]
    ids = {token: id_ for id_, token in enumerate(tokens)}
    bpe = models.BPE(vocab=ids, merges=MERGES, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    special = ["<unk>", "<s>", "</s>"] + (["<pad>"] if "<pad>" in new else [])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    if "<pad>" in new:
        settings["pad_token"] = "<pad>"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(tokens)


def make_model(
    folder: Path,
    *,
    rows: int,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **config: int,
) -> None:
    """Write a LLaMA with grouped queries and random weights through `transformers`."""
    sizes = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=rows, tie_word_embeddings=tied, **(sizes | config)))
    model.to(dtype).save_pretrained(folder)


def make_base(
    folder: Path, *, padding: int = 0, tied: bool = False, dtype: torch.dtype = torch.float32
) -> int:
    """Write a model with its tokenizer; `padding` rows have no token. The tokenizer's size is returned."""
    size = make_tokenizer(folder)
    make_model(folder, rows=size + padding, tied=tied, dtype=dtype)
    return size


def make_shards(lengths: list[int], mask: np.ndarray | None = None, tokenizer: str = "t") -> Shards:
    """Shards whose token i of all has the id i, so that an id tells where it stands."""
    ids = np.arange(sum(lengths), dtype=np.uint32)
    starts = np.cumsum(lengths) - lengths
    learned = np.ones(len(ids), bool) if mask is None else mask == 1
    learned[starts] = False
    index = {"tokenizer": tokenizer, "targets": int(learned.sum())}
    return Shards(Path("shards"), index, ids, mask, np.array(lengths, np.int64))
