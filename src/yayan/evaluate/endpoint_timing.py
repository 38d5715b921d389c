"""Milliseconds a token of an OpenAI-compatible server, as its client sees them: streamed, one answer at a time.

Reading takes until the first piece of an answer is there, so that the way there and one token are in it. Each prompt
begins with another token, since servers keep what they read. Tokens are counted by the server where it tells.
"""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import openai

from yayan.errors import UserError, WorkError
from yayan.evaluate.answerers import open_cutter
from yayan.evaluate.endpoint import ANSWER_PATIENCE, in_a_sentence, settings_of
from yayan.evaluate.timing import Timing
from yayan.progress import Progress

FEWEST_TOKENS = 2  # of an answer, between which there is time


def measure_endpoint(
    url: str, name: str, prompts: Sequence[str], *, chat: bool, answer_tokens: int
) -> Timing:
    """Time a server on each prompt in turn; the first one, before which a model may have to be loaded, does not count.

    `chat`: each is sent as a message, else as a text to go on with. Raises UserError or WorkError as an evaluation
    through an endpoint does.
    """
    asked: dict[str, Any] = {"model": name, "max_tokens": answer_tokens, "temperature": 0}
    asked |= {"stream": True, "stream_options": {"include_usage": True}}
    times = []
    with (
        openai.OpenAI(**settings_of(url), max_retries=0, timeout=ANSWER_PATIENCE) as client,
        Progress("eval speed", total=len(prompts), unit="answers") as bar,
    ):
        for prompt in prompts:
            with in_a_sentence(url, UserError):
                times.append(time_once(client, asked, prompt, chat=chat))
            bar.advance()
    prompt_ms, answer_ms = [prompt for prompt, _ in times[1:]], [answer for _, answer in times[1:]]
    return Timing(urlsplit(url).netloc, prompt_ms, answer_ms, None, None)


def time_once(
    client: openai.OpenAI, asked: dict[str, Any], prompt: str, *, chat: bool
) -> tuple[float, float]:
    """Milliseconds a token of the prompt, and of the answer behind its first piece."""
    events: Any
    begun = perf_counter()
    if chat:
        events = client.chat.completions.create(messages=[{"role": "user", "content": prompt}], **asked)
    else:
        events = client.completions.create(prompt=prompt, **asked)
    at, usage = [], None
    for event in events:
        usage = event.usage or usage
        if event.choices and text_of(event.choices[0]):
            at.append(perf_counter())
    if usage is None:
        raise WorkError(
            "the endpoint does not count tokens", where=str(client.base_url), cure="serve by another program"
        )
    read, answered = usage.prompt_tokens, usage.completion_tokens
    if min(len(at), answered) < FEWEST_TOKENS:
        what = f"the endpoint ended an answer behind {answered} tokens, which leaves nothing to time"
        raise WorkError(what, where=str(client.base_url), cure="give another --text")
    return 1000 * (at[0] - begun) / read, 1000 * (at[-1] - at[0]) / (answered - 1)


def text_of(choice: Any) -> str:
    """What a piece of an answer says, or thinks."""
    said = getattr(choice, "delta", choice)
    return (
        getattr(said, "content", None)
        or getattr(said, "reasoning_content", None)
        or getattr(said, "text", None)
        or ""
    )


def different_prompts(model: Path, texts: Sequence[str], tokens: int, count: int) -> list[str]:
    """So many texts of so many tokens of the model, each beginning elsewhere in the given ones."""
    with open_cutter(model) as cutter:
        begin = len(cutter.text_ids(""))
        ids = [token for text in texts for token in cutter.text_ids(text)[begin:]]
        ids *= (tokens + count) // len(ids) + 1
        step = max((len(ids) - tokens) // count, 1)
        return [cutter.text_of(ids[at : at + tokens]) for at in range(0, step * count, step)]
