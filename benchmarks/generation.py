"""How many tokens a second does the torch engine make, and what do guidance, batches and guesses ahead cost and give?

Question  decode: tokens a second, one answer, greedy. batch: a file of prompts together against one by one. guidance:
          the time of a token with two branches against one. speculation: tokens a second with a draft against plain.
          conversation: milliseconds to the first token of each turn, going on with the last answer.
Peer      `transformers`' generate at its defaults (dtype auto, SDPA, dynamic cache), same folder, same prompts, same
          number of tokens; of batch, guidance and speculation: our own plain decoding; of conversation: all anew.
Limit     decode: the weights' bytes over this machine's rate of reading memory. speculation: what the share of guesses
          taken gives on paper, (1 - a^(k+1)) / (1 - a) tokens for one pass over k + 1 tokens and k guesses.
          conversation: the first turn, which has nothing before it.
Command   python benchmarks/generation.py --out OUT [--model MODEL]
          [--question decode batch guidance speculation conversation]

decode, batch and conversation use MODEL (default: the 21 M base model of ../shared). guidance and speculation use
random weights of --width and --layers with 32,000 rows, made in OUT, which hold memory for as long as a trained model
would. Their draft is scripted: a random model of a fourth of the width and a third of the layers computes each guess,
and the guess is then replaced, with the probability a, by the token that the model will choose, else by another. Both
sides take turns; a figure is that of the fastest of --turns. Where we expect to lose: a in the column 0 %, where
guesses are all wrong.
--small is the smallest form, to see that it runs.
"""

import json
import random
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from processes import parser_of, refuse_busy_machine
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from yayan.engine.distribution import Chooser
from yayan.engine.lengths import DraftLengths
from yayan.engine.network import Branches, Network
from yayan.engine.sampling import Sampling
from yayan.engine.speculative import Choice, Guess, ModelDraft, decode_plainly, decode_speculatively
from yayan.engine.torch import TorchEngine

ROWS = 32_000
SHARES = (0.0, 0.5, 0.7, 0.9)
BASE = Path(__file__).resolve().parents[2] / "shared/base/en-base-21m"
GREEDY = Sampling(temperature=0, max_tokens=4096)
QUESTIONS = ("decode", "batch", "guidance", "speculation", "conversation")
TURNS, ASKED = 5, 64  # of a conversation, and new tokens of each besides the last answer


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model", type=Path, default=BASE)
    parser.add_argument("--question", nargs="+", choices=QUESTIONS, default=QUESTIONS)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    refuse_busy_machine(options.most_load)
    if options.small:
        small = {"width": 128, "layers": 3, "tokens": 16, "prompts": 6, "turns": 1}
        options = Namespace(**{**vars(options), **small})
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, {options.tokens} tokens, the fastest of {options.turns} turns")
    for question in options.question:
        answer = {
            "decode": decode,
            "batch": batch,
            "guidance": guidance,
            "speculation": speculation,
            "conversation": conversation,
        }[question]
        found = answer(options)
        print(json.dumps({question: found}, indent=2))
        (options.out / f"{question}.json").write_text(json.dumps(found, indent=2))


def fastest(turns: int, **works: Callable[[], object]) -> dict[str, float]:
    """Seconds of each work, which take turns after one to warm up."""
    best: dict[str, float] = {}
    for turn in range(turns + 1):
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            if turn:
                best[name] = min(best.get(name, float("inf")), time.perf_counter() - begun)
    return best


def random_ids(count: int, seed: int, rows: int) -> list[int]:
    return torch.randint(5, rows, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def decode(options: Namespace) -> dict[str, Any]:
    """Tokens a second of one answer, ours and generate's."""
    network = Network(options.model)
    prompt = random_ids(32, 0, network.rows)
    peer = AutoModelForCausalLM.from_pretrained(options.model, local_files_only=True)
    ids = torch.tensor([prompt])
    length = {
        "max_new_tokens": options.tokens,
        "min_new_tokens": options.tokens,
        "do_sample": False,
        "pad_token_id": 0,
    }
    seconds = fastest(
        options.turns,
        ours=lambda: answer_of(plainly(network, prompt, options.tokens)),
        generate=lambda: peer.generate(ids, attention_mask=torch.ones_like(ids), **length),
    )
    weights = sum(value.numel() * value.element_size() for value in peer.parameters())
    weights -= peer.get_input_embeddings().weight.nbytes
    return {
        "dtype": str(network.dtype),
        "peer_dtype": str(peer.dtype),
        **{f"{name}_tokens_per_second": round(options.tokens / value, 1) for name, value in seconds.items()},
        "ratio": round(seconds["generate"] / seconds["ours"], 2),
        "limit_tokens_per_second": round(reading_rate() / weights, 1),
    }


def reading_rate() -> float:
    """Bytes a second that the machine reads, from a sum over 256 MB."""
    numbers = torch.ones(1 << 26)
    return numbers.nbytes / fastest(3, read=lambda: numbers.sum())["read"]


def plainly(network: Network, prompt: Sequence[int], tokens: int, scale: float = 1.0) -> Iterator[Choice]:
    chooser = Chooser(GREEDY, prompt, network.device)
    return decode_plainly(Branches(network, prompt, (), scale), chooser, tokens)


def answer_of(choices: Iterator[Choice]) -> list[int]:
    return [token for token, _ in choices]


def batch(options: Namespace) -> dict[str, Any]:
    """A file of prompts of 8 to 64 tokens, together and one by one, each answered to the full length."""
    return {dtype: batch_in(dtype, options) for dtype in ("float32", "bfloat16")}


def batch_in(dtype: str, options: Namespace) -> dict[str, Any]:
    source = random.Random(0)
    sampling = Sampling(temperature=0, max_tokens=options.tokens)
    together: dict[int, list[int]] = {}
    alone: dict[int, list[int]] = {}
    with TorchEngine(options.model, dtype=dtype) as engine:
        engine.ends = frozenset()
        prompts = [random_ids(source.randint(8, 64), i, engine.network.rows) for i in range(options.prompts)]

        def many() -> None:
            together.update((i, item.ids) for i, item in engine.generate_many(prompts, sampling))

        def one_by_one() -> None:
            for number, prompt in enumerate(prompts):
                alone[number] = [i for piece in engine.generate(prompt, sampling) for i in piece.ids]

        seconds = fastest(1, together=many, one_by_one=one_by_one)
    total = options.prompts * options.tokens
    return {
        **{f"{name}_tokens_per_second": round(total / value, 1) for name, value in seconds.items()},
        "ratio": round(seconds["one_by_one"] / seconds["together"], 2),
        "same_answers": sum(together[i] == alone[i] for i in alone),
        "answers": len(alone),
    }


def random_model(options: Namespace, name: str, width: int, layers: int) -> Path:
    """A model of random weights in bfloat16, without a tokenizer, made once."""
    folder = options.out / f"{name}-{width}x{layers}"
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        heads = max(width // 64, 1)
        config = LlamaConfig(
            vocab_size=ROWS,
            hidden_size=width,
            intermediate_size=(width * 8 // 3 + 255) // 256 * 256,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            initializer_range=0.05,
        )
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def guidance(options: Namespace) -> dict[str, Any]:
    """The time of a token with two branches against one."""
    return {dtype: guidance_in(dtype, options) for dtype in ("bfloat16", "float32")}


def guidance_in(dtype: str, options: Namespace) -> dict[str, Any]:
    network = Network(random_model(options, "model", options.width, options.layers), dtype)
    prompt = random_ids(32, 0, ROWS)
    seconds = fastest(
        options.turns,
        plain=lambda: answer_of(plainly(network, prompt, options.tokens)),
        guided=lambda: answer_of(plainly(network, prompt, options.tokens, 1.5)),
    )
    return {
        "plain_tokens_per_second": round(options.tokens / seconds["plain"], 1),
        "guided_over_plain_seconds": round(seconds["guided"] / seconds["plain"], 2),
    }


class ScriptedDraft:
    """Computes what a draft would, and then knows the answer with the probability `share`."""

    def __init__(self, draft: ModelDraft, prompt: Sequence[int], answer: Sequence[int], share: float) -> None:
        self.draft, self.known, self.share = draft, [*prompt, *answer], share
        self.random = random.Random(0)

    def guess(self, ids: Sequence[int], answer: Sequence[int], count: int) -> list[Guess]:
        self.draft.guess(ids, answer, count)
        told = self.known[len(ids) : len(ids) + count]
        return [Guess(token if self.random.random() < self.share else (token + 1) % ROWS) for token in told]


def speculation(options: Namespace) -> dict[str, Any]:
    """Tokens a second with a scripted draft, by the share of its guesses that are right."""
    network = Network(random_model(options, "model", options.width, options.layers), "bfloat16")
    shape = (max(options.width // 4, 64), max(options.layers // 3, 1))
    small = Network(random_model(options, "draft", *shape), "bfloat16")
    prompt = random_ids(32, 0, ROWS)
    wanted = answer_of(plainly(network, prompt, options.tokens))
    found: dict[str, Any] = {"draft": f"{shape[0]}x{shape[1]}, scripted"}
    for share in SHARES:
        lengths = DraftLengths()

        def ahead(share: float = share, lengths: DraftLengths = lengths) -> None:
            chooser = Chooser(GREEDY, prompt, network.device)
            draft = ScriptedDraft(ModelDraft(Branches(small, prompt), chooser), prompt, wanted, share)
            branches = Branches(network, prompt)
            choices = decode_speculatively(branches, chooser, options.tokens, draft, lengths)
            assert answer_of(choices) == wanted, "speculation changed the answer"

        seconds = fastest(
            options.turns, plain=lambda: answer_of(plainly(network, prompt, options.tokens)), ahead=ahead
        )
        best = max(range(1, 9), key=lengths.tokens_per_second)
        paper = lengths.tokens_per_second(best) / lengths.tokens_per_second(0)
        found[f"{share:.0%} right"] = {
            "plain_tokens_per_second": round(options.tokens / seconds["plain"], 1),
            "ratio": round(seconds["plain"] / seconds["ahead"], 2),
            "on_paper": round(max(paper, 1.0), 2),
            "on_paper_guesses": best if paper > 1 else 0,
            "share_seen": round(lengths.share, 2),
        }
    return found


def conversation(options: Namespace) -> dict[str, Any]:
    """Milliseconds to the first token of each turn, going on with the last answer and anew."""
    best: dict[str, dict[str, float]] = {}
    with TorchEngine(options.model) as engine:
        engine.ends = frozenset()
        for _ in range(options.turns + 1):
            for name in ("going_on", "anew"):
                engine.forget()
                for turn, tokens, seconds in hold(engine, options.tokens, anew=name == "anew"):
                    told = best.setdefault(f"turn {turn}, {tokens} tokens", {})
                    told[name] = min(told.get(name, float("inf")), round(1000 * seconds, 2))
    return best


def hold(engine: TorchEngine, tokens: int, *, anew: bool) -> Iterator[tuple[int, int, float]]:
    """Number, length of the prompt and seconds to the first token of each turn; answers have `tokens` tokens."""
    prompt: list[int] = []
    for turn in range(1, TURNS + 1):
        prompt += random_ids(ASKED, turn, engine.network.rows)
        if anew:
            engine.forget()
        begun = time.perf_counter()
        list(engine.generate(prompt, Sampling(temperature=0, max_tokens=1)))
        yield turn, len(prompt), time.perf_counter() - begun
        whole = engine.generate(prompt, Sampling(temperature=0, max_tokens=tokens))
        prompt += [token for piece in whole for token in piece.ids]


if __name__ == "__main__":
    main()
