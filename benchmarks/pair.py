"""What does a draft give in the torch engine where both models were trained, on one tokenizer?

Question  Characters a second of plain decoding and with the draft, greedy and drawn, in bfloat16, one answer at a time.
Peer      Our own plain decoding of the same model, in turns.
Limit     What the share of guesses taken gives on paper, (1 - a^(k+1)) / (1 - a) tokens for one pass over k + 1 tokens
          and k guesses, at the measured times of a pass and of a guess.
Command   python benchmarks/pair.py --base BASE --text TEXT --heldout TEXT --out OUT [--times 8 --layers 2 --minutes 10]
          python benchmarks/pair.py --heldout TEXT --out OUT --target MODEL --draft MODEL

No large trained model lies here, and none can be trained from nothing on two cores. The target is BASE, --times as wide
(Net2Net, arXiv 1511.05641: every neuron is there so many times, and what a matrix took from it is divided among its
copies by chance): it says what BASE has learned to say, and holds memory for as long as a model of its size does. The
draft is BASE's first --layers layers with its two ends, trained on --text by `yayan pretrain --train full` for as many
steps as fit into --minutes; bits per byte of both are told. Where we expect to lose: drawn tokens of a model that is
unsure.
--small is the smallest form, to see that it runs.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import torch
from processes import parser_of, refuse_busy_machine, step_ends, yayan

from yayan.corpus.read import documents
from yayan.engine.lengths import DraftLengths
from yayan.engine.sampling import Sampling
from yayan.engine.torch import TorchEngine
from yayan.model.folder import TOKENIZER_FILES, copy_files, read_config, write_json
from yayan.weights.stream import TensorSource, TensorSpec, TensorWriter, open_tensors

PROMPT_TOKENS, HELDOUT_BYTES = 64, 30_000
TRIAL_STEPS = 3
BATCH, RATE, SEED = 8, 1e-3, 1
UNEVEN = 0.5  # standard deviation of a copy's share, of its mean


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--base", type=Path, help="a trained model of the LLaMA family with untied ends")
    parser.add_argument("--text", type=Path, nargs="+", help="to train the draft on")
    parser.add_argument(
        "--heldout", type=Path, nargs="+", required=True, help="whose beginnings are gone on with"
    )
    parser.add_argument("--target", type=Path, help="a trained model instead of BASE made wide")
    parser.add_argument("--draft", type=Path, help="its draft")
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    refuse_busy_machine(options.most_load)
    if options.small:
        options.times, options.minutes, options.tokens, options.prompts, options.turns = 2, 0.2, 16, 2, 1
    options.out.mkdir(parents=True, exist_ok=True)
    if options.target is None:
        options.target, options.draft = make_pair(options)
    found = {f"temperature {t:g}": compare(options, t) for t in options.temperatures}
    print(json.dumps(found, indent=2))
    (options.out / "pair.json").write_text(json.dumps(found, indent=2))


def make_pair(options: argparse.Namespace) -> tuple[Path, Path]:
    """The target and the trained draft."""
    target, begun = options.out / f"wide-{options.times}", options.out / f"cut-{options.layers}"
    if not (target / "config.json").exists():
        widen(options.base, target, options.times)
    if not (begun / "config.json").exists():
        cut(options.base, begun, options.layers)
    shards = options.out / "shards"
    yayan("pack", "--tokenizer", options.base, "--corpus", *options.text, "--out", shards)
    trial = train(begun, shards, TRIAL_STEPS, options.out)
    ends = step_ends(trial)
    steps = max(round(60 * options.minutes / (ends[-1] - ends[-2])), 1)
    draft = train(begun, shards, steps, options.out)
    bits = {name: bits_of(model, options, name) for name, model in (("target", target), ("draft", draft))}
    print(f"draft: {steps} steps of {BATCH} x 512 tokens; bits per byte: {bits}", flush=True)
    return target, draft


def cut(base: Path, out: Path, layers: int) -> None:
    """The first layers of BASE, between its ends."""
    source = open_tensors(base)
    kept = [name for name in source.names() if layer_of(name) < layers]
    write_model(base, out, {name: source.read(name) for name in kept}, num_hidden_layers=layers)


def layer_of(name: str) -> int:
    """Of a tensor; -1 outside the layers."""
    found = re.search(r"layers\.(\d+)\.", name)
    return int(found[1]) if found else -1


def widen(base: Path, out: Path, times: int) -> None:
    """BASE with every neuron `times` times; it computes the same."""
    source, config = open_tensors(base), read_config(base)
    random = torch.Generator().manual_seed(SEED)
    tensors = {name: widened(source, name, times, random) for name in source.names()}
    grown = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    write_model(base, out, tensors, **{name: config[name] * times for name in grown})


def write_model(base: Path, out: Path, tensors: Mapping[str, torch.Tensor], **sizes: int) -> None:
    """A model folder with BASE's small files."""
    out.mkdir(parents=True, exist_ok=True)
    plan = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    with TensorWriter(out, plan) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    copy_files(base, out, TOKENIZER_FILES)
    write_json(out / "config.json", {**read_config(base), **sizes})


def widened(source: TensorSource, name: str, times: int, random: torch.Generator) -> torch.Tensor:
    """One tensor: rows and norms are repeated, and what is read of a neuron is divided among its copies."""
    tensor = source.read(name).float()
    if tensor.ndim == 1:
        return tensor.repeat(times)
    if "embed_tokens" in name:
        return tensor.repeat(1, times)
    rows = tensor if "lm_head" in name else tensor.repeat(times, 1)
    noise = torch.randn(times, *rows.shape, generator=random)
    shares = (1 + UNEVEN * (noise - noise.mean(0))) / times  # sum to one over the copies
    return (shares * rows).permute(1, 0, 2).flatten(1).contiguous()


def train(model: Path, shards: Path, steps: int, out: Path) -> Path:
    """The whole draft, for so many steps."""
    folder = out / f"{model.name}-{steps}"
    words: list[object] = ["--model", model, "--shards", shards, "--train", "full", "--dtype", "bfloat16"]
    words += ["--batch-size", BATCH, "--steps", steps, "--seed", SEED]
    for rate in ("--learning-rate", "--rows-learning-rate"):
        words += [rate, RATE]
    yayan("pretrain", *words, "--out", folder)
    return folder


def bits_of(model: Path, options: argparse.Namespace, name: str) -> float:
    """Bits per byte over all held-out texts."""
    out = options.out / f"bits-{name}"
    texts = [word for i, path in enumerate(options.heldout) for word in (f"--text.text-{i}", path)]
    yayan("eval", "bits", "--model", model, *texts, "--limit", HELDOUT_BYTES, "--out", out)
    rows = json.loads((out / "results.json").read_text())["texts"].values()
    return round(
        sum(row["bits_per_byte"] * row["bytes"] for row in rows) / sum(row["bytes"] for row in rows), 3
    )


class Counted(DraftLengths):
    """Counts the guesses that were taken, and those that could have been: behind a wrong one none can."""

    def __init__(self) -> None:
        super().__init__()
        self.taken, self.tried = 0, 0

    def learn(self, wanted: int, guesses: int, taken: int, guess_seconds: float, pass_seconds: float) -> None:
        super().learn(wanted, guesses, taken, guess_seconds, pass_seconds)
        self.taken, self.tried = self.taken + taken, self.tried + min(taken + 1, guesses)


def compare(options: argparse.Namespace, temperature: float) -> dict[str, object]:
    """Both ways on all prompts, one after another."""
    with (
        TorchEngine(options.target, dtype="bfloat16") as plain,
        TorchEngine(options.target, dtype="bfloat16", draft=options.draft) as helped,
    ):
        plain.ends = helped.ends = frozenset()
        helped.lengths = Counted()
        prompts = [ids for path in options.heldout for ids in beginnings(plain, path, options)]
        sampling = Sampling(temperature=temperature, max_tokens=options.tokens)
        best: dict[TorchEngine, float] = {}
        answers: dict[TorchEngine, list[list[int]]] = {}
        for turn in range(options.turns + 1):  # the first to warm up
            for engine in (plain, helped):
                begun = time.perf_counter()
                answers[engine] = [answer(engine, ids, sampling) for ids in prompts]
                characters = sum(len(plain.tokenizer.decode(ids)) for ids in answers[engine])
                if turn:
                    rate = characters / (time.perf_counter() - begun)
                    best[engine] = max(best.get(engine, 0.0), rate)
    if temperature == 0 and answers[plain] != answers[helped]:
        sys.exit("the draft changed the answers")
    lengths = helped.lengths
    assert isinstance(lengths, Counted)
    lengths.share = lengths.taken / lengths.tried  # of the whole, not of late
    count = max(range(1, 9), key=lengths.tokens_per_second)
    paper = lengths.tokens_per_second(count) / lengths.tokens_per_second(0)
    return {
        "prompts": len(prompts),
        "plain_characters_per_second": round(best[plain], 1),
        "characters_per_second": round(best[helped], 1),
        "ratio": round(best[helped] / best[plain], 2),
        "on_paper": round(max(paper, 1.0), 2),
        "on_paper_guesses": count if paper > 1 else 0,
        "guesses_taken": round(lengths.share, 2),
        "tokens_a_round": round(1 + lengths.taken / lengths.rounds, 2),
        "milliseconds_of_a_guess": round(1000 * lengths.guess_seconds, 2),
        "milliseconds_of_a_pass": {n: round(1000 * s, 2) for n, s in sorted(lengths.pass_seconds.items())},
    }


def beginnings(engine: TorchEngine, path: Path, options: argparse.Namespace) -> Iterator[list[int]]:
    """Of the first documents that are long enough."""
    encoded = (engine.text_ids(document.text) for document in documents([path]))
    enough = (ids[:PROMPT_TOKENS] for ids in encoded if len(ids) >= PROMPT_TOKENS)
    return islice(enough, options.prompts // len(options.heldout))


def answer(engine: TorchEngine, prompt: list[int], sampling: Sampling) -> list[int]:
    engine.forget()
    return [token for piece in engine.generate(prompt, sampling) for token in piece.ids]


if __name__ == "__main__":
    main()
