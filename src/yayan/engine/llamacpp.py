"""llama.cpp's server in this process, on a GGUF file or on a model folder, and a client of it.

It speaks HTTP even to ourselves: what is tested is then what is served, and a request ends when its reader leaves.
"""

import json
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import xllamacpp
from gguf import GGMLQuantizationType

from yayan.engine.adapters import add_adapters, templates_of
from yayan.engine.choose import KvCache, refuse_base_model
from yayan.engine.gguf import find_gguf, stretched_once
from yayan.engine.sampling import Sampling, llamacpp_options
from yayan.errors import UserError, WorkError
from yayan.model.folder import Context, choose_context
from yayan.weights.ggml import Header, read_header
from yayan.weights.gguf_vocabulary import Vocabulary, read_vocabulary

Message = dict[str, str]

LOCAL_HOST = "127.0.0.1"
MAX_TOKENS = 512
TEMPERATURE = 0.2
DRAFT_TOKENS = 3  # llama.cpp's own
LARGEST_CONTEXT = (1 << 31) - 1  # of all conversations together
QUIET, TALKATIVE = -1, 3  # llama.cpp's levels of logging
F32_CACHE = 0  # ggml's number of the type
CACHES: Mapping[KvCache, tuple[GGMLQuantizationType, float]] = {  # and bytes of a number
    "16bit": (GGMLQuantizationType.F16, 2),
    "8bit": (GGMLQuantizationType.Q8_0, 34 / 32),
    "4bit": (GGMLQuantizationType.Q4_0, 18 / 32),
}
CACHE_BLOCK = 32  # numbers of a quantised block, which lie in one head
# Quantised values need the kernel; it is off by up to 2e-3 in log-probabilities, even with a float32 cache.
NO_FLASH_ATTENTION, FLASH_ATTENTION = 0, 1
EVENT, LAST_EVENT = b"data: ", b"data: [DONE]"


class RefusedError(WorkError):
    """llama.cpp's refusal of a request, with its status and its body as they came."""

    def __init__(self, path: str, status: int, content: bytes) -> None:
        super().__init__(f"llama.cpp refuses, {json.loads(content)['error']['message']}", where=path)
        self.status, self.content = status, content


class LlamaCpp:
    """A running server. `with LlamaCpp(path) as engine: engine.stream(messages)`; closing it frees port and memory.

    `context` tokens for each of `parallel` conversations (default: as many as the model was trained for); `port` 0
    takes a free one; `threads` default to the physical cores; `exact` computes attention as exactly as llama.cpp can;
    `kv_cache`: bits of a number of keys and values; `draft`: a smaller model that proposes `draft_tokens` tokens at a
    time, which the model itself accepts or not (arXiv:2302.01318); `adapters`: folders of LoRA pairs by name, each of
    which changes those requests alone that `asked_of` names it in.
    Raises UserError for a bad file, context, host or port, WorkError if llama.cpp cannot load the model.
    """

    def __init__(
        self,
        gguf: Path,
        *,
        name: str | None = None,
        host: str = LOCAL_HOST,
        port: int = 0,
        context: int | None = None,
        threads: int | None = None,
        parallel: int = 1,
        api_key: str | None = None,
        exact: bool = False,
        kv_cache: KvCache = "16bit",
        draft: Path | None = None,
        draft_tokens: int = DRAFT_TOKENS,
        adapters: Mapping[str, Path] | None = None,
    ) -> None:
        self.gguf, self.header = gguf, read_header(gguf)
        self.context = choose_context(self.header.context, context, gguf)
        if parallel * self.context > LARGEST_CONTEXT:
            what = f"{parallel} conversations of {self.context} tokens are more than llama.cpp can count"
            raise UserError(what, where="parallel", cure="ask for fewer")
        self.name, self.adapters = name or gguf.stem, dict(adapters or {})
        self.templates = templates_of(self.name, self.header.template, self.adapters)
        """Of each name that can be asked: the model's, and those of its adapters."""
        self._key = api_key
        refuse_busy_port(host, port)
        settings = quiet_settings(gguf)
        settings.model_alias = {self.name}
        settings.hostnames, settings.port = [host], port
        settings.n_parallel, settings.n_ctx = parallel, parallel * self.context
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads or -1
        kind, size = CACHES[kv_cache]
        settings.cache_type_k = settings.cache_type_v = F32_CACHE if exact else kind.value
        self.cache_bytes = int(parallel * self.context * self.header.cache_width * (4 if exact else size))
        """Of keys and values."""
        if exact:
            settings.flash_attn_type = NO_FLASH_ATTENTION
        elif kv_cache != "16bit":
            refuse_other_heads(self.header, kv_cache)
            settings.flash_attn_type = FLASH_ATTENTION
        if draft is not None:
            refuse_other_vocabulary(gguf, draft)
            speculate(settings, draft, draft_tokens, threads)
        if api_key:
            settings.api_keys = [api_key]
        else:
            settings.cors_origins = "http://localhost"  # no web page elsewhere may use a server without a key
        if self.header.template is None:
            settings.chat_template = next(filter(None, self.templates.values()), "")
        with tempfile.TemporaryDirectory() as work:
            add_adapters(settings, gguf, self.adapters, Path(work))
            try:
                self._server: xllamacpp.Server | None = xllamacpp.Server(settings)
            except RuntimeError as error:
                what = f"llama.cpp cannot load this model (architecture {self.header.architecture})"
                cure = "free some memory or ask for a smaller context; --debug shows its reasons"
                raise WorkError(what, where=gguf, cure=cure) from error
        self._server.handle_metrics()  # its loop runs when this returns; closed before that, it would never end
        self.url: str = self._server.listening_address

    def close(self) -> None:
        """Stop serving: answers under way are cut off, the port and the memory become free."""
        if self._server is not None:
            hang_up(urlsplit(self.url).port)
            self._server = None

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _request(self, path: str, body: dict[str, Any]) -> Iterator[HTTPResponse]:
        """POST a JSON body; leaving the block ends the request, finished or not."""
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        address = urlsplit(self.url)
        with closing(HTTPConnection(address.hostname or LOCAL_HOST, address.port)) as connection:
            try:
                connection.request("POST", path, json.dumps(body), headers)
                response = connection.getresponse()
                if response.status != 200:
                    raise RefusedError(path, response.status, response.read())
                yield response
            except (OSError, HTTPException) as error:
                raise WorkError("llama.cpp's server does not answer", where=self.url) from error

    def refuse_base_model(self) -> None:
        """Raises UserError if the model has no chat template: llama.cpp would make one up without a word."""
        refuse_base_model(self.header.template, self.name)

    def asked_of(self, name: str) -> dict[str, Any]:
        """What a request to the model or to one of its adapters says of that."""
        if not self.adapters:
            return {}
        scales = [{"id": i, "scale": float(name == adapter)} for i, adapter in enumerate(self.adapters)]
        return {"lora": scales}

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON answer of an endpoint to a JSON body. Raises WorkError with the server's reason."""
        with self._request(path, body) as response:
            return json.loads(response.read())

    def stream(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        max_tokens: int = MAX_TOKENS,
        temperature: float = TEMPERATURE,
        seed: int | None = None,
    ) -> Generator[str]:
        """The answer to a chat, piece by piece; closing the iterator stops the model.

        With `sampling` its options are used, and none of the others. Raises UserError for a base model or options that
        mean nothing, WorkError if the chat exceeds the context.
        """
        self.refuse_base_model()
        asked: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
        if seed is not None:
            asked["seed"] = seed
        if sampling is not None:
            asked = llamacpp_options(sampling)
        with closing(self.events("/v1/chat/completions", {"messages": list(messages), **asked})) as events:
            for event in events:
                yield event["choices"][0]["delta"].get("content") or ""

    def events(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any]]:
        """The events of an endpoint that streams; closing the iterator ends the request. Raises WorkError as `ask`."""
        with self._request(path, body | {"stream": True}) as response:
            for line in response:
                if line.startswith(EVENT) and line.strip() != LAST_EVENT:
                    event = json.loads(line.removeprefix(EVENT))
                    if "error" in event:
                        raise WorkError(f"llama.cpp stopped, {event['error']['message']}", where=self.name)
                    yield event

    def tokenize(self, text: str) -> list[int]:
        """Ids as llama.cpp cuts a plain text: nothing is added, and special tokens in it are text."""
        return self.ask("/tokenize", {"content": text, "parse_special": False})["tokens"]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """What the model sees of a chat before it answers."""
        prompt = self.ask("/apply-template", {"messages": list(messages)})["prompt"]
        return self.ask("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})[
            "tokens"
        ]

    def next_logprobs(self, ids: Sequence[int], top: int) -> dict[int, float]:
        """The `top` most likely tokens after `ids` (taken as they are) and their natural log-probabilities.

        The model is made to take EOS, which does not change the probabilities that are told: after a token that is part
        of a character the server would tell none.
        """
        take_eos = {"logit_bias": [[self.header.eos, 1000.0]], "temperature": 0}
        body = {"prompt": list(ids), "n_predict": 1, "n_probs": top, "cache_prompt": False, **take_eos}
        answer = self.ask("/completion", body)["completion_probabilities"][0]["top_logprobs"]
        return {item["id"]: item["logprob"] for item in answer}


def quiet_settings(gguf: Path) -> xllamacpp.CommonParams:
    """Settings that do not depend on the question: no chatter, no trial run, nobody sees the prompts of others."""
    settings = xllamacpp.CommonParams()
    settings.model.path = str(gguf)
    settings.verbosity = TALKATIVE if "--debug" in sys.argv else QUIET
    settings.warmup = False
    settings.fit_params = False  # else a context that does not fit would be made smaller without a word
    settings.cache_ram_mib = 0  # else up to 8 GiB of old prompts
    settings.endpoint_slots = False
    settings.endpoint_metrics = True
    return settings


def refuse_other_heads(header: Header, kv_cache: KvCache) -> None:
    """UserError unless a quantised block holds numbers of one head."""
    if header.head_width % CACHE_BLOCK:
        what = f"its heads have {header.head_width} numbers, which make no blocks of {CACHE_BLOCK}"
        raise UserError(what, where=f"kv-cache {kv_cache}", cure="keep the cache in 16bit")


def speculate(settings: xllamacpp.CommonParams, draft: Path, tokens: int, threads: int | None) -> None:
    """Let a smaller model propose."""
    kind = xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE
    settings.speculative.types = [kind]
    proposing = settings.speculative.draft
    proposing.mparams.path, proposing.n_max = str(draft), tokens
    proposing.cpuparams.n_threads = proposing.cpuparams_batch.n_threads = threads or -1


def refuse_other_vocabulary(gguf: Path, draft: Path) -> None:
    """Raises UserError unless two files have the same tokens at the same ids; rows without a token do not count."""
    own, other = read_vocabulary(gguf), read_vocabulary(draft)
    if named_tokens(own) != named_tokens(other) or own.special_ids != other.special_ids:
        cure = "take one with the same tokenizer"
        raise UserError("the draft has another vocabulary than the model", where=draft, cure=cure)


def named_tokens(vocabulary: Vocabulary) -> list[tuple[int, str]]:
    return [(i, token) for i, token in enumerate(vocabulary.tokens) if token != f"[PAD{i}]"]


def refuse_busy_port(host: str, port: int) -> None:
    """Raises UserError if nobody can listen there."""
    if not 0 <= port < 1 << 16:
        raise UserError(f"{port} is no port", cure="choose one from 1 to 65535 with --port")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        what = f"nobody can listen on {host} port {port}: {reason.lower()}"
        raise UserError(what, cure="choose another with --port or --host") from error


def hang_up(port: int | None) -> None:
    """Shut the sockets that serve this port in this process: llama.cpp would wait until the last client leaves."""
    for _ in range(2):  # the second time for a client that came while the first ones were sent away
        for descriptor in [int(item.name) for item in Path("/dev/fd").iterdir()]:
            with suppress(OSError):
                if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                    with socket.socket(fileno=os.dup(descriptor)) as end:
                        if end.family in (socket.AF_INET, socket.AF_INET6) and end.getsockname()[1] == port:
                            end.shutdown(socket.SHUT_RDWR)


def open_model(model: Path, *, context: Context = None, **settings: Any) -> LlamaCpp:
    """Open a GGUF file, a folder that holds one, or a model folder, with the settings of `LlamaCpp`.

    A model folder is written as an F16 GGUF into the cache first, once for each content; with the context "auto" it is
    stretched to the first step beyond its trained length, for all requests alike.
    """
    name = model.resolve().name.removesuffix(".gguf")
    if context == "auto":
        gguf = stretched_once(model)
        print(f"  context {read_header(gguf).context}: all requests are stretched alike", file=sys.stderr)
        return LlamaCpp(gguf, **{"name": name, **settings})
    return LlamaCpp(find_gguf(model), **{"name": name, "context": context, **settings})
