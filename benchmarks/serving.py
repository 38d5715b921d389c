"""How fast are several clients served, and what does the front cost?

Question  Tokens per second and seconds to the first token with 1, 4 and 16 clients at once; failures in many requests.
Peer      llama.cpp's own server in the same state, without our front, in turns with it.
Limit     One client at llama.cpp: what batching adds to that is the engine's, what the front takes away is ours.
Command   python benchmarks/serving.py --model MODEL-F16.gguf [MODEL-Q8_0.gguf] --out OUT

Each request streams --tokens tokens of a text of its own (token 2, with which Llama's texts end, is forbidden).
Both servers run in a process of their own. Where we expect to lose: short answers of a small model, of which the front
takes its share. Median of --rounds, after one round that does not count.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx2
from processes import parser_of, refuse_busy_machine

CLIENTS = (1, 4, 16)
DIRECT = """
import sys, time
from pathlib import Path
from yayan.engine.llamacpp import open_model
with open_model(Path(sys.argv[1]), parallel=16, context=int(sys.argv[2]), threads=int(sys.argv[3])) as engine:
    print('{"url": "%s", "model": "%s"}' % (engine.url, engine.name), flush=True)
    sys.stdin.read()
"""


@dataclass
class Round:
    """What so many clients saw together."""

    tokens_per_second: float
    first_token_seconds: float
    failures: int


def main() -> None:
    options = read_arguments()
    refuse_busy_machine(options.most_load)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [row for model in options.model for row in compare(model, options)]
    (options.out / "serving.json").write_text(json.dumps(rows, indent=1))


def read_arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--model", type=Path, nargs="+", required=True)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000, help="of the count of failures")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def compare(model: Path, options: argparse.Namespace) -> list[dict[str, object]]:
    """The rows of one model, printed as they come."""
    place = [str(model), str(options.context), str(options.threads)]
    serve = ["serve", place[0], "--context", place[1], "--threads", place[2], "--port", "0", "--json"]
    front = [sys.executable, "-m", "yayan", *serve, "--parallel", "16"]
    rows: list[dict[str, object]] = []
    with running(front) as ours, running([sys.executable, "-c", DIRECT, *place]) as theirs:
        sides = {"front": ours, "llama.cpp": theirs}
        for clients in CLIENTS:
            rounds: dict[str, list[Round]] = {name: [] for name in sides}
            for number in range(options.rounds + 1):
                for name, server in sides.items():
                    found = measure(server, clients, clients, options.tokens)
                    if number:
                        rounds[name].append(found)
            for name, found_rounds in rounds.items():
                rows.append(row_of(model, name, clients, found_rounds))
        many = measure(ours, 16, options.requests, 16)
        rows.append({"model": model.name, "requests": options.requests, "failures": many.failures})
        print(f"{model.name}: {many.failures} of {options.requests} requests failed", flush=True)
    return rows


def row_of(model: Path, name: str, clients: int, rounds: list[Round]) -> dict[str, object]:
    """Medians, printed."""
    speed = median(item.tokens_per_second for item in rounds)
    first = median(item.first_token_seconds for item in rounds)
    failures = sum(item.failures for item in rounds)
    print(
        f"{model.name}: {name}, {clients} clients: {speed:.1f} tokens/s, first after {first:.3f} s",
        flush=True,
    )
    told = {"tokens_per_second": speed, "first_token_seconds": first, "failures": failures}
    return {"model": model.name, "side": name, "clients": clients, **told}


@contextmanager
def running(command: list[str]) -> Iterator[dict[str, str]]:
    """A server, and what it says of itself."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def measure(server: dict[str, str], clients: int, requests: int, tokens: int) -> Round:
    """Send the requests, so many at once."""
    begun = time.monotonic()
    with ThreadPoolExecutor(clients) as threads:
        found = list(threads.map(lambda number: request(server, number, tokens), range(requests)))
    seconds = time.monotonic() - begun
    firsts = [first for first, _ in found if first is not None]
    generated = sum(count for _, count in found)
    return Round(
        generated / seconds, median(firsts or [float("nan")]), sum(count != tokens for _, count in found)
    )


def request(server: dict[str, str], number: int, tokens: int) -> tuple[float | None, int]:
    """Seconds to the first token, and tokens that came; (None, 0) for one that failed."""
    body = {
        "model": server["model"],
        "prompt": f"Chapter {number}. Once upon a time there was",
        "max_tokens": tokens,
        "logit_bias": {"2": -100},
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begun, first, generated = time.monotonic(), None, 0
    try:
        with httpx2.stream("POST", f"{server['url']}/v1/completions", json=body, timeout=600) as answer:
            for line in answer.iter_lines():
                first = first or time.monotonic() - begun
                if '"usage":' in line:  # a text that says so has its quotes escaped
                    generated = json.loads(line.removeprefix("data: "))["usage"]["completion_tokens"]
    except (httpx2.HTTPError, ValueError, KeyError):
        return None, 0
    return first, generated


if __name__ == "__main__":
    main()
