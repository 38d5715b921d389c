"""The forms of OpenAI's requests, strictly: what is not known or has another type is refused, nothing is guessed."""

from abc import abstractmethod
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from yayan.engine.sampling import Sampling
from yayan.serve.door import Refusal

MOST_CHOICES = 64  # of one request
MOST_STOPS = 16
Bias = dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], float]
Ids = Annotated[list[int], Field(fail_fast=True, min_length=1)]
Texts = Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MOST_CHOICES)]
IdLists = Annotated[list[Ids], Field(fail_fast=True, min_length=1, max_length=MOST_CHOICES)]


class Form(BaseModel):
    """What all forms share: exact types, no unknown field, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Part(Form):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(Form):
    """One message of a chat; `developer` is OpenAI's newer name of `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(fail_fast=True, min_length=1)]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """Role and text."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(Form):
    """Whether the last event tells the usage."""

    include_usage: bool = False


class GenerationForm(Form):
    """What chats and completions share. `top_k` to `negative_prompt` are not in OpenAI's API."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    seed: int | None = None
    logit_bias: Bias | None = None
    user: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None

    def sampling(self, defaults: Sampling) -> Sampling:
        """The options of one answer, those left out (or null) as `defaults` says. Raises UserError."""
        given = {name: getattr(self, name) for name in SAMPLING_NAMES if getattr(self, name) is not None}
        if isinstance(self.stop, str):
            given["stop"] = (self.stop,)
        elif self.stop is not None:
            given["stop"] = tuple(self.stop)
        if self.logit_bias is not None:
            given["logit_bias"] = {int(token): bias for token, bias in self.logit_bias.items()}
        sampling = replace(defaults, **given, **self.own())
        sampling.check()
        return sampling

    @abstractmethod
    def own(self) -> dict[str, Any]:
        """What the form calls otherwise than `Sampling`."""

    @property
    def tells_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


SAMPLING_NAMES = (
    *("max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed"),
    *("top_k", "min_p", "repetition_penalty", "guidance_scale", "negative_prompt"),
)


class ChatForm(GenerationForm):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    def own(self) -> dict[str, Any]:
        given: dict[str, Any] = {}
        if self.max_completion_tokens is not None:
            given["max_tokens"] = self.max_completion_tokens
        if self.logprobs:
            given["logprobs"] = self.top_logprobs or 0
        elif self.top_logprobs is not None:
            raise Refusal("top_logprobs without logprobs: true", param="top_logprobs")
        return given

    def prompts(self) -> list[Any]:
        """The one chat, as plain messages. Raises Refusal where nothing is asked."""
        if self.messages[-1].role != "user":
            raise Refusal("the last message must be the user's", param="messages")
        return [[message.plain() for message in self.messages]]


class CompletionForm(GenerationForm):
    """POST /v1/completions."""

    prompt: str | Texts | Ids | IdLists
    logprobs: int | None = None

    def own(self) -> dict[str, Any]:
        return {} if self.logprobs is None else {"logprobs": self.logprobs}

    def prompts(self) -> list[Any]:
        """Texts or lists of ids."""
        return several(self.prompt)


class EmbeddingForm(Form):
    """POST /v1/embeddings."""

    model: str
    input: Annotated[str, Field(min_length=1)] | Texts | Ids | IdLists
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None

    def inputs(self) -> list[Any]:
        """Texts or lists of ids."""
        return several(self.input)


def several(given: str | list[Any]) -> list[Any]:
    """A text, or a list of ids, is one of several."""
    if isinstance(given, str) or isinstance(given[0], int):
        return [given]
    return given
