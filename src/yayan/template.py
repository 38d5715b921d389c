"""The one chat template: messages -> text, and -> token ids with the mask of what is learned.

A training example is what the served model sees, token for token: the prompt of every assistant turn, rendered and
tokenised by itself as a server does, must be a prefix of the whole. Where a template or a text breaks that, the chat
is refused; nothing is masked by guess.

Text in a message must not turn into control tokens. LLAMA2_TEMPLATE itself takes `</s>` and its like apart (`< /s>`),
so that every engine that renders it does the same; under any other template such a chat is refused.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from yayan.errors import UserError
from yayan.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, str]]  # {"role": "system" | "user" | "assistant", "content": text}, ...

DEFAULT_SYSTEM = "You are a helpful assistant. 你是一个乐于助人的助手。"
SYSTEM_PROMPTS = {
    "default": DEFAULT_SYSTEM,
    "long": DEFAULT_SYSTEM + "请你提供专业、有逻辑、内容真实、有价值的详细回复。",
}

# Llama 2's format as Chinese-LLaMA-Alpaca-2 writes it. A chat without a system message gets the default one, since
# that is what is trained; an empty system message gives none.
LLAMA2_TEMPLATE = """\
{%- macro plain(text) -%}
{%- set text = text | replace('<s>', '< s>') | replace('</s>', '< /s>') -%}
{{- text | replace('<unk>', '< unk>') | replace('<pad>', '< pad>') -}}
{%- endmacro -%}
{%- if messages[0]['role'] == 'system' -%}
{%- set system = messages[0]['content'] -%}
{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system = '@SYSTEM@' -%}
{%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}
{{- bos_token + '[INST] ' -}}
{%- if loop.first and system -%}
{{- '<<SYS>>\\n' + plain(system) + '\\n<</SYS>>\\n\\n' -}}
{%- endif -%}
{{- plain(message['content']) + ' [/INST]' -}}
{%- elif message['role'] == 'assistant' -%}
{{- ' ' + plain(message['content']) + eos_token -}}
{%- else -%}
{{- raise_exception('only the first message may be of the role ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
""".replace("@SYSTEM@", DEFAULT_SYSTEM)


def render(messages: Messages, template: str, *, bos: str, eos: str, add_generation_prompt: bool) -> str:
    """Messages -> text, by the rules of `transformers` and llama.cpp (trim_blocks, lstrip_blocks, a sandbox).

    `bos`, `eos`: the special tokens' text. Raises UserError if the template is broken or refuses the messages.
    """
    try:
        return _compile(template).render(
            messages=messages, bos_token=bos, eos_token=eos, add_generation_prompt=add_generation_prompt
        )
    except Exception as error:  # a template is a program of others, and fails in every way
        raise UserError(f"the chat template does not render this chat, {error}") from error


def encode_prompt(tokenizer: Tokenizer, messages: Messages, template: str | None = None) -> list[int]:
    """Token ids that a served model sees before it answers: special tokens of the template parsed, none added.

    `template`: instead of the tokenizer's own. Raises UserError if there is none, if it does not render the messages,
    or if one of them would smuggle in a special token.
    """
    reader = _Reader(tokenizer, template)
    text = reader.render(messages, add_generation_prompt=True)
    ids = tokenizer.encode_with_specials(text)
    reader.refuse_smuggled(messages, ids, add_generation_prompt=True)
    return ids


def encode_chat(
    tokenizer: Tokenizer, messages: Messages, template: str | None = None
) -> tuple[list[int], list[int]]:
    """A chat -> its ids and its mask of the same length: 1 = a target, the assistant's tokens and their end token.

    `template`: instead of the tokenizer's own. Raises UserError as `encode_prompt` does; if the template is not
    prefix-preserving on this chat, in text or in tokens; if an answer does not end with one special token.
    """
    (result,) = encode_chats(tokenizer, [messages], template)
    if isinstance(result, UserError):
        raise result
    return result


def encode_chats(
    tokenizer: Tokenizer, chats: Sequence[Messages], template: str | None = None
) -> list[tuple[list[int], list[int]] | UserError]:
    """`encode_chat` of many chats, tokenised together; the error of a chat stands in its place."""
    reader = _Reader(tokenizer, template)
    found: list[list[str] | UserError] = []
    for messages in chats:
        try:
            found.append(reader.stages(messages))
        except UserError as error:
            found.append(error)
    texts = [text for item in found if not isinstance(item, UserError) for text in item]
    encoded = iter(tokenizer.encode_batch_with_specials(texts))
    results: list[tuple[list[int], list[int]] | UserError] = []
    for messages, item in zip(chats, found, strict=True):
        if isinstance(item, UserError):
            results.append(item)
            continue
        try:
            results.append(reader.masked(messages, [next(encoded) for _ in item]))
        except UserError as error:
            results.append(error)
    return results


class _Reader:
    """A template and a tokenizer: what a chat becomes in them."""

    def __init__(self, tokenizer: Tokenizer, template: str | None) -> None:
        chosen = template or tokenizer.template
        if chosen is None:
            raise UserError("the tokenizer has no chat template", cure="give one")
        self.tokenizer, self.template = tokenizer, chosen
        self.bos = "" if tokenizer.bos_id is None else tokenizer.token(tokenizer.bos_id)
        self.eos = tokenizer.token(tokenizer.eos_id)
        self.specials, self.special_text = _special_tokens(tokenizer)

    def render(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        ends = {"bos": self.bos, "eos": self.eos}
        return render(messages, self.template, **ends, add_generation_prompt=add_generation_prompt)

    def stages(self, messages: Messages) -> list[str]:
        """Texts: the whole; then for each answer its prompt and, but for a last one, all up to its end."""
        texts = [self.render(messages, add_generation_prompt=False)]
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                texts.append(self.render(messages[:turn], add_generation_prompt=True))
                if turn + 1 < len(messages):
                    texts.append(self.render(messages[: turn + 1], add_generation_prompt=False))
        return texts

    def masked(self, messages: Messages, encoded: list[list[int]]) -> tuple[list[int], list[int]]:
        """Ids and mask of a chat from the ids of its `stages`."""
        ids, *parts = encoded
        self.refuse_smuggled(messages, ids, add_generation_prompt=False)
        mask = [0] * len(ids)
        following = iter(parts)
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = next(following)
            answered = next(following) if turn + 1 < len(messages) else ids
            if ids[: len(prompt)] != prompt or ids[: len(answered)] != answered:
                what = (
                    f"the chat template writes message {turn + 1} or what stands before it otherwise later on"
                )
                raise UserError(what, cure="train with a template that only ever adds to the end")
            ends = [i for i in range(len(prompt), len(answered)) if ids[i] in self.specials]
            rest = ids[ends[0] + 1 : len(answered)] if ends else []
            if len(ends) != 1 or (rest and self.tokenizer.decode(rest).strip()):
                what = "the chat template does not write an answer as its text and one special token that ends it"
                raise UserError(what, cure="use another one")
            mask[len(prompt) : ends[0] + 1] = [1] * (ends[0] + 1 - len(prompt))
        return ids, mask

    def refuse_smuggled(self, messages: Messages, ids: list[int], *, add_generation_prompt: bool) -> None:
        """UserError unless the special tokens are those of the template alone: the same with harmless contents."""
        found = (self.special_text.search(message["content"]) for message in messages)
        held = next((match for match in found if match), None)
        if held is None:
            return
        plain = [{**message, "content": message["content"] and "x"} for message in messages]
        text = self.render(plain, add_generation_prompt=add_generation_prompt)
        harmless = self.tokenizer.encode_with_specials(text)
        if [i for i in ids if i in self.specials] != [i for i in harmless if i in self.specials]:
            raise UserError(f"a message holds the special token {held[0]}", cure="write it otherwise")


@lru_cache(maxsize=8)
def _compile(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    return environment.from_string(template)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


@lru_cache(maxsize=8)
def _special_tokens(tokenizer: Tokenizer) -> tuple[frozenset[int], re.Pattern[str]]:
    """Ids of the special tokens, and what finds the text of one. (A list of hundreds costs 0.1 ms to make.)"""
    added = tokenizer.fast.get_added_tokens_decoder()
    texts = sorted((token.content for token in added.values() if token.special), key=len, reverse=True)
    ids = frozenset(number for number, token in added.items() if token.special)
    return ids, re.compile("|".join(map(re.escape, texts)) if texts else r"(?!)")
