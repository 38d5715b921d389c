"""The proof that llama.cpp cuts, prompts and computes from a GGUF file what the model folder does."""

import random
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from yayan.engine.llama_c import Network
from yayan.engine.llamacpp import LlamaCpp, Message
from yayan.errors import WorkError
from yayan.model.folder import read_config
from yayan.template import encode_prompt
from yayan.tokenizer import Tokenizer, load_tokenizer
from yayan.weights.gguf_ids import ids_of, opened_vocabulary
from yayan.weights.gguf_tokens import only_nfc
from yayan.weights.quantize import FileType
from yayan.weights.stream import open_tensors

PROBED_TEXTS = 10_000
PROBED_POSITIONS, PROBED_CONTEXT = 100, 256
PROBED_TOKENS = 10  # the most likely ones at a position
# Largest difference of natural log-probabilities among them. Seen: F32 3e-4; F16 2e-2, since llama.cpp then rounds the
# activations, too. What the other types lose is told, not judged.
TOLERANCE = {"F32": 1e-3, "F16": 0.1}
LARGEST_REFERENCE_BYTES = 4 << 30  # of a model in float32; beyond, only the tokenizer is compared
HARD_TEXTS = (
    "Hello world",
    "  two  spaces,\ttabs\n\n\nand lines \r\n",
    " leading and trailing ",
    "def f(x):\n    if x:\n        return {'a': [1, 2.5e-3]}\n",
    "雅言：诗、书、执礼，皆雅言也。",
    "子曰：“学而时习之，不亦说乎？”　全角　空格",
    "中文English混排123，標點。",
    "<s>[INST] not a special token [/INST]</s><unk><pad><0x0A>",
    "naïve café Ærøskøbing Ελληνικά русский עברית العربية हिन्दी ไทย 한국어 日本語",
    "emoji 🙂👩‍👩‍👧‍👦🇨🇳, rare 𠮷𪚥, private \ue000, zero\u200bwidth, e\u0301",
    "▁ U+2581 ▁▁",
)
CHATS = (
    [{"role": "user", "content": "你好！ Who are you?"}],
    [
        {"role": "user", "content": " 1 + 1 = ?\n"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "为什么？"},
    ],
)


class Proof:
    """What a model folder itself makes of texts, chats and prompts, to hold GGUF files against it."""

    def __init__(self, model: Path) -> None:
        self.tokenizer = load_tokenizer(model)
        self.context = min(PROBED_CONTEXT, int(read_config(model)["max_position_embeddings"]))
        self.texts = probing_texts(self.tokenizer)
        if only_nfc(self.tokenizer):
            what = "llama.cpp does not bring texts into NFC as this tokenizer does: others are cut otherwise there"
            print(f"  {what}", file=sys.stderr, flush=True)
            self.texts = [unicodedata.normalize("NFC", text) for text in self.texts]
        self.ids, self.positions = probing_positions(self.tokenizer, self.context)
        self.logprobs_NV: torch.Tensor | None = None
        source = open_tensors(model)
        if 4 * sum(spec.elements for spec in source.specs.values()) <= LARGEST_REFERENCE_BYTES:
            self.logprobs_NV = logprobs_at(model, self.ids, self.positions)

    def compare(self, path: Path, kind: FileType) -> dict[str, object]:
        """Open a file in llama.cpp and compare. Raises WorkError if it differs; returns what was compared."""
        self._compare_texts(path)
        chats = CHATS if self.tokenizer.template is not None else ()
        if chats:
            self._compare_chats(path, chats)
        found: dict[str, object] = {
            "texts_with_equal_tokens": len(self.texts),
            "chats_with_equal_prompts": len(chats),
        }
        if self.logprobs_NV is None:
            return found | {"positions_compared": 0}
        return found | self._compare_logprobs(self.logprobs_NV, path, kind)

    def _compare_chats(self, path: Path, chats: Sequence[list[Message]]) -> None:
        # All positions of a 7B are 4 GB of cache
        with LlamaCpp(path, threads=1, context=self.context) as engine:
            for chat in chats:
                if engine.prompt_ids(chat) != encode_prompt(self.tokenizer, chat):
                    raise WorkError("llama.cpp makes another prompt of a chat than the model", where=path)

    def _compare_texts(self, path: Path) -> None:
        with opened_vocabulary(path) as vocabulary:
            for text, ids in zip(self.texts, self.tokenizer.encode_batch(self.texts), strict=True):
                if ids_of(vocabulary, text) != ids:
                    raise WorkError(f"llama.cpp cuts {text!r} into other tokens than the model", where=path)

    def _compare_logprobs(self, ours_NV: torch.Tensor, path: Path, kind: FileType) -> dict[str, object]:
        with Network(path, positions=self.context, threads=1) as network:
            logits_TV = torch.from_numpy(np.concatenate([part.copy() for part in network.logits(self.ids)]))
        theirs_NV = logits_TV[self.positions].log_softmax(-1)
        likely = theirs_NV.topk(min(PROBED_TOKENS, theirs_NV.shape[-1])).indices
        worst = (theirs_NV - ours_NV).gather(-1, likely).abs().max().item()
        if not worst <= TOLERANCE.get(kind, float("inf")):
            what = f"llama.cpp computes other log-probabilities than the model, they differ by {worst:.3g}"
            raise WorkError(what, where=path)
        return {
            "positions_compared": len(self.positions),
            "largest_difference_of_logprobs": float(f"{worst:.3g}"),
            "positions_with_same_first_token": int((theirs_NV.argmax(-1) == ours_NV.argmax(-1)).sum()),
        }


def probing_texts(tokenizer: Tokenizer) -> list[str]:
    """Hard texts, and random tokens put together, so that new tokens meet each other and the old ones."""
    rng = random.Random(0)
    broken = "\N{REPLACEMENT CHARACTER}"  # what a byte that is no character by itself decodes to
    whole = [i for i in range(tokenizer.size) if broken not in tokenizer.decode([i])]
    joined = [tokenizer.decode(rng.choices(whole, k=rng.randint(1, 12))) for _ in range(PROBED_TEXTS)]
    return [*HARD_TEXTS, *joined]


def probing_positions(tokenizer: Tokenizer, context: int) -> tuple[list[int], list[int]]:
    """Ids of the hard texts one after another behind BOS, and some of their positions, in order."""
    ids = (tokenizer.begin + [i for text in HARD_TEXTS for i in tokenizer.encode(text)])[:context]
    return ids, sorted(random.Random(0).sample(range(len(ids)), min(PROBED_POSITIONS, len(ids))))


@torch.no_grad()
def logprobs_at(model: Path, ids: list[int], positions: list[int]) -> torch.Tensor:
    """Natural log-probabilities [N, V] of what follows each of N positions, in float32, by `transformers`."""
    from yayan.model.load import load_model  # seconds, for which files of large models need not wait

    return load_model(model)(torch.tensor([ids])).logits[0, positions].log_softmax(-1)
