"""The one chat template: messages -> text, and -> token ids with the mask of what is learned.

A training example is what the served model sees, token for token: the prompt of every assistant turn, rendered and
tokenised by itself as a server does, must be a prefix of the whole. Where a template or a text breaks that, the chat
is refused; nothing is masked by guess.

Text in a message must not turn into control tokens. LLAMA2_TEMPLATE itself takes `</s>` and its like apart (`< /s>`),
so that every engine that renders it does the same; under any other template such a chat is refused.
"""

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
    return _encode(tokenizer, messages, template, add_generation_prompt=True)


def encode_chat(
    tokenizer: Tokenizer, messages: Messages, template: str | None = None
) -> tuple[list[int], list[int]]:
    """A chat -> its ids and its mask of the same length: 1 = a target, the assistant's tokens and their end token.

    `template`: instead of the tokenizer's own. Raises UserError as `encode_prompt` does; if the template is not
    prefix-preserving on this chat, in text or in tokens; if an answer does not end with one special token.
    """
    ids = _encode(tokenizer, messages, template, add_generation_prompt=False)
    specials = _special_tokens(tokenizer)
    mask = [0] * len(ids)
    for turn in range(len(messages)):
        if messages[turn]["role"] != "assistant":
            continue
        prompt = _encode(tokenizer, messages[:turn], template, add_generation_prompt=True)
        answered = ids
        if turn + 1 < len(messages):
            answered = _encode(tokenizer, messages[: turn + 1], template, add_generation_prompt=False)
        if ids[: len(prompt)] != prompt or ids[: len(answered)] != answered:
            what = f"the chat template writes message {turn + 1} or what stands before it otherwise later on"
            raise UserError(what, cure="train with a template that only ever adds to the end")
        ends = [i for i in range(len(prompt), len(answered)) if ids[i] in specials]
        if len(ends) != 1 or tokenizer.decode(ids[ends[0] + 1 : len(answered)]).strip():
            what = "the chat template does not write an answer as its text and one special token that ends it"
            raise UserError(what, cure="use another one")
        mask[len(prompt) : ends[0] + 1] = [1] * (ends[0] + 1 - len(prompt))
    return ids, mask


@lru_cache(maxsize=8)
def _compile(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    return environment.from_string(template)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _encode(
    tokenizer: Tokenizer, messages: Messages, template: str | None, *, add_generation_prompt: bool
) -> list[int]:
    """Render and tokenise. Special tokens come from the template alone: the same ones as with harmless contents."""
    chosen = template or tokenizer.template
    if chosen is None:
        raise UserError("the tokenizer has no chat template", cure="give one")
    bos = "" if tokenizer.bos_id is None else tokenizer.token(tokenizer.bos_id)
    eos = tokenizer.token(tokenizer.eos_id)

    def encode(turns: Messages) -> list[int]:
        text = render(turns, chosen, bos=bos, eos=eos, add_generation_prompt=add_generation_prompt)
        return tokenizer.encode_with_specials(text)

    ids = encode(messages)
    specials = _special_tokens(tokenizer)
    held = [text for text in specials.values() if any(text in message["content"] for message in messages)]
    if held:
        harmless = encode([{**message, "content": message["content"] and "x"} for message in messages])
        if [i for i in ids if i in specials] != [i for i in harmless if i in specials]:
            raise UserError(f"a message holds the special token {held[0]}", cure="write it otherwise")
    return ids


@lru_cache(maxsize=8)
def _special_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """Text of each special token. (A new list from the native library costs 0.1 ms where there are hundreds.)"""
    added = tokenizer.fast.get_added_tokens_decoder()
    return {token_id: token.content for token_id, token in added.items() if token.special}
