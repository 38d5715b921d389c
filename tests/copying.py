"""A tiny LLaMA that is taught to do one thing, on texts of up to 80 tokens: to repeat a number that stands before.

Two layers suffice for that (Olsson et al. 2022, arXiv:2209.11895). The RoPE base is small on purpose: distances that
were not trained are then unlike any that were, and the model fails on longer texts.
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from tests.conftest import quietly
from yayan.evaluate.haystack import DIGITS, FACTS, Fact
from yayan.stage import execute
from yayan.tokenizer import Tokenizer, load_tokenizer
from yayan.vocab.grow import Grow
from yayan.vocab.learn import Vocab

TRAINED_LENGTH = 80  # tokens
POSITIONS = 512
SHAPE = {"hidden": 64, "layers": 2, "heads": 4, "feed_forward": 128, "positions": POSITIONS, "tied": 1}
ROPE_BASE = 100.0
WORDS = ["bako", "luri", "meto", "sina", "dovu", "pela", "quro", "fiba", "nomi", "zeta", "garu", "wiko"]
BATCH, WARM_UP = 32, 30
REPEATS, FACT_STEPS = 250, 600  # steps on repeated random tokens, then at most so many on facts
ENOUGH = 30  # steps running in which all answers are right
LEARNING_RATE = 4e-3
LONGEST_HAY = 12  # sentences of 4 tokens
ANSWER = DIGITS + 2  # tokens: the space before the number and the full stop behind it


def sentence(generator: random.Random) -> str:
    return f" {' '.join(generator.choices(WORDS, k=3))}."


def hay(sentences: int, seed: int = 0) -> str:
    """Sentences of words that nobody knows."""
    generator = random.Random(seed)
    return "".join(sentence(generator) for _ in range(sentences))


def draw_fact(generator: random.Random) -> Fact:
    wording = FACTS["en"]
    return Fact(
        wording, generator.choice(wording.places), generator.randrange(10 ** (DIGITS - 1), 10**DIGITS)
    )


def form_model(folder: Path) -> Path:
    """A tokenizer in which each word is a piece, and a model of random weights for it."""
    folder.mkdir(parents=True)
    generator = random.Random(1)
    lines = [hay(3, seed) for seed in range(200)]
    for _ in range(200):
        fact = draw_fact(generator)
        lines += [fact.sentence, fact.ask(chat=False).strip() + f" {fact.number}."]
    (folder / "words.txt").write_text("\n\n".join(lines), encoding="utf-8")
    execute(Vocab(out=folder / "vocab", corpus=[folder / "words.txt"], size=600), quietly)
    execute(Grow(out=folder / "model", tokenizer=folder / "vocab", shape=SHAPE), quietly)
    path = folder / "model" / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"]["rope_theta"] = ROPE_BASE
    path.write_text(json.dumps(config))
    return folder / "model"


def repeats(generator: random.Random, ids: Sequence[int], bos: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens twice over, and where the targets stand: all of the second half but its first."""
    count = generator.randint(8, min(TRAINED_LENGTH // 2 - 1, len(ids)))
    halves = [generator.sample(ids, count) for _ in range(BATCH)]
    mask = [False] * (count + 2) + [True] * (count - 1)
    return torch.tensor([[bos, *half, *half] for half in halves]), torch.tensor([mask] * BATCH)


def facts(generator: random.Random, tokenizer: Tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts with a fact in them and its beginning behind, answered; the answers are the targets."""
    assert tokenizer.bos_id is not None
    rows = []
    for _ in range(BATCH):
        fact = draw_fact(generator)
        body = [sentence(generator) for _ in range(generator.randint(0, LONGEST_HAY))]
        body.insert(generator.randint(0, len(body)), fact.sentence)
        text = "".join(body) + f"{fact.ask(chat=False)} {fact.number}."
        rows.append([tokenizer.bos_id, *tokenizer.encode(text)])
    length = max(map(len, rows))
    masks = [[len(row) - ANSWER <= place < len(row) for place in range(length)] for row in rows]
    padded = [row + [tokenizer.eos_id] * (length - len(row)) for row in rows]
    return torch.tensor(padded), torch.tensor(masks)


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = random.Random(seed)
    words = hay(40) + "".join(f" The secret number of {place} is" for place in FACTS["en"].places)
    used = sorted(set(tokenizer.encode(f"{words}\n 0123456789")))
    for _ in range(REPEATS):
        yield repeats(generator, used, tokenizer.bos_id or 0)
    for _ in range(FACT_STEPS):
        yield facts(generator, tokenizer)


def train(folder: Path, seed: int = 0) -> None:
    """Train until the answers are right for many steps running."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))
    right = 0
    for step, (ids_BT, mask_BT) in enumerate(batches(load_tokenizer(folder), seed)):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP) * (0.2 if right else 1.0)
        logits_NV = model(input_ids=ids_BT).logits[:, :-1][mask_BT[:, 1:]]
        targets_N = ids_BT[:, 1:][mask_BT[:, 1:]]
        loss = torch.nn.functional.cross_entropy(logits_NV, targets_N)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step >= REPEATS:
            right = right + 1 if (logits_NV.argmax(-1) == targets_N).float().mean() > 0.995 else 0
            if right == ENOUGH:
                break
    assert right == ENOUGH, "it was not learnt"
    model.save_pretrained(folder)
