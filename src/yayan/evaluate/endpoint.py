"""Greedy answers of an OpenAI-compatible server: chats go there as messages, to be put into its own template.

Before anything is asked, a refusal means a wrong question (UserError). Later it is a failure (WorkError), which keeps
the answers that were given. https://platform.openai.com/docs/api-reference
"""

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
from anyio.from_thread import BlockingPortal, start_blocking_portal

from yayan.errors import UserError, WorkError, YayanError
from yayan.evaluate.answerers import Cutter, Prompt, Said, open_cutter

KEY_VARIABLE = "OPENAI_API_KEY"
RETRIES = 5  # by the client, after 0.5 to 8 seconds or what the server asks for; 15 seconds together
LIST_PATIENCE = openai.Timeout(60, connect=10)  # seconds
ANSWER_PATIENCE = openai.Timeout(3600, connect=10)  # a long prompt and its answer on a slow machine
LONGEST_REASON = 300  # characters of what a server says
MOST_NAMES = 10  # that a sentence lists
WRONG_KEY = (401, 403)
NO_LIST = (404, 405, 501)
BUSY = 429
CURES = {
    **dict.fromkeys(WRONG_KEY, f"put its key into {KEY_VARIABLE}"),
    400: "ask for shorter prompts, or another name",
    404: "correct --endpoint (it often ends in /v1) or --endpoint-model",
    BUSY: "wait, or give fewer --slots; the same command goes on",
}
GO_ON = "start it, or correct --endpoint; the same command goes on"


class EndpointAnswerer:
    """Through an endpoint, prompts cut by `cutter`. `portal`: the event loop in which requests wait for answers."""

    def __init__(self, url: str, name: str, cutter: Cutter, portal: BlockingPortal) -> None:
        self.url, self.name, self.portal = url, name, portal
        self.origin = origin_of(url, name)
        self.prompt_ids, self.text_ids, self.text_of = cutter.prompt_ids, cutter.text_ids, cutter.text_of
        settings = settings_of(url) | {"max_retries": RETRIES, "timeout": ANSWER_PATIENCE}
        self.client = openai.AsyncOpenAI(**settings)

    def answer(self, prompt: Prompt, new_tokens: int) -> Said:
        """Raises WorkError where the endpoint refuses, is not there, or does not answer in OpenAI's form."""
        with in_a_sentence(self.url, WorkError):
            text, tokens, reason = self.portal.call(self._ask, prompt.asked, new_tokens)
        if tokens is None:
            tokens = len(self.text_ids(text)) - len(self.text_ids(""))
        return Said(text, tokens, reason == "stop")

    async def _ask(self, asked: Any, new_tokens: int) -> tuple[str, int | None, str | None]:
        """Text, tokens (None if the endpoint does not count them), and why it ends there."""
        settings: dict[str, Any] = {"model": self.name, "max_tokens": new_tokens, "temperature": 0}
        reply: Any
        if isinstance(asked, str):
            reply = await self.client.completions.create(prompt=asked, **settings)
            text = reply.choices[0].text
        else:
            reply = await self.client.chat.completions.create(messages=asked, **settings)
            text = reply.choices[0].message.content
        tokens = reply.usage.completion_tokens if reply.usage else None
        return text or "", tokens, reply.choices[0].finish_reason

    def close(self) -> None:
        with suppress(RuntimeError):  # it is closed
            self.portal.call(self.portal.stop, True)


@contextmanager
def open_endpoint(model: Path, url: str, name: str | None) -> Generator[EndpointAnswerer]:
    """An endpoint that answers in the place of a local model, which cuts the prompts. Errors as `find_name`."""
    found = find_name(url, name)
    with open_cutter(model) as cutter, start_blocking_portal() as portal:
        yield EndpointAnswerer(url, found, cutter, portal)


def origin_of(url: str, name: str) -> dict[str, str]:
    """As results say what answered."""
    return {"engine": "endpoint", "endpoint": url, "endpoint_model": name}


def find_name(url: str, wanted: str | None) -> str:
    """The name that an endpoint is asked for: the one wanted, or the only one that it lists.

    Raises UserError for a URL that is none or holds a secret, a key that is refused, a name that is not listed, several
    names to choose from, or none; WorkError if the endpoint does not answer.
    """
    refuse_bad_url(url)
    settings = settings_of(url) | {"max_retries": 0, "timeout": LIST_PATIENCE}
    with in_a_sentence(url, UserError), openai.OpenAI(**settings) as client:
        try:
            names = [item.id for item in client.models.list().data]
        except openai.APIStatusError as error:
            if wanted is None or error.status_code not in NO_LIST:
                raise
            return wanted  # an endpoint need not have a list
    if wanted in names:
        return str(wanted)
    if wanted is None and len(names) == 1:
        return names[0]
    listed = ", ".join(names[:MOST_NAMES] + ["..."] * (len(names) > MOST_NAMES))
    what = f"there is no model {wanted}" if wanted else f"there are {len(names)} models to choose from"
    raise UserError(what, where=url, cure=f"pass --endpoint-model with one of {listed or 'those it serves'}")


def refuse_bad_url(url: str) -> None:
    """UserError unless it is a plain URL; what it holds beside that would be a secret, which records would tell."""
    try:
        parts = urlsplit(url)
        plain = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        plain = False
    if not plain:
        raise UserError("this is no URL", where="endpoint", cure="give one such as http://127.0.0.1:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        cure = f"put the key into {KEY_VARIABLE}"
        raise UserError("a URL with a password or a query would be written down", where="endpoint", cure=cure)


def settings_of(url: str) -> dict[str, Any]:
    return {"base_url": url, "api_key": os.environ.get(KEY_VARIABLE) or "none"}


@contextmanager
def in_a_sentence(url: str, refusal: type[YayanError]) -> Generator[None]:
    """What goes wrong with a request, as one sentence; `refusal` is raised if the server does not want it."""
    try:
        yield
    except openai.APIConnectionError as error:
        raise WorkError("the endpoint does not answer", where=url, cure=GO_ON) from error
    except openai.APIStatusError as error:
        status = error.status_code
        kind = WorkError if status == BUSY or status >= 500 else refusal
        cure = CURES.get(status, GO_ON if status >= 500 else None)
        what = f"the endpoint refuses with status {status}, {reason_of(error)}"
        raise kind(what, where=url, cure=cure) from error
    except (openai.APIError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise WorkError("this is no answer in OpenAI's form", where=url, cure=CURES[404]) from error


def reason_of(error: openai.APIStatusError) -> str:
    """What the server says of it, in one line, and without the key, which it may repeat."""
    body = error.body
    said = body.get("message") or body.get("detail") if isinstance(body, dict) else body
    line = " ".join(str(said or "without a reason").split())
    key = os.environ.get(KEY_VARIABLE)
    return (line.replace(key, "…") if key else line)[:LONGEST_REASON].rstrip(".:")
