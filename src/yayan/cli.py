"""`yayan VERB`: the table of verbs. Only the module of the verb asked for is imported."""

import difflib
import importlib
import json
import signal
import sys
from dataclasses import fields
from typing import Any, NoReturn

from cyclopts import App, CycloptsError, Parameter

from yayan import __version__, ranks
from yayan.errors import UserError, YayanError
from yayan.stage import Command, Stage, execute

VERBS = {
    "run": ("yayan.road:Run", "Walk a whole road from a recipe."),
    "check": ("yayan.check:Check", "Say whether things fit together and what a recipe will take."),
    "vocab": ("yayan.vocab.learn:Vocab", "Learn a vocabulary: continue a base tokenizer, or begin one."),
    "grow": ("yayan.vocab.grow:Grow", "Give a model the rows of a larger tokenizer, or form a new model."),
    "pack": ("yayan.corpus.pack:Pack", "Tokenise documents or chats into shards."),
    "pretrain": ("yayan.train.pretrain:Pretrain", "Train on documents: an adapter, or the whole model."),
    "sft": ("yayan.train.sft:Sft", "Tune on chats, with loss on the assistant's tokens only."),
    "merge": ("yayan.weights.merge:Merge", "Merge adapters into their base, tensor by tensor."),
    "stretch": ("yayan.weights.stretch:Stretch", "Give a model more positions, without training."),
    "gguf": ("yayan.weights.gguf:Gguf", "Write GGUF files for llama.cpp, quantised or not."),
    "chat": ("yayan.serve.terminal:Chat", "Talk to a model in the terminal."),
    "serve": ("yayan.serve.server:Serve", "Serve a model to OpenAI clients."),
    "eval tokens": ("yayan.evaluate.tokens:EvalTokens", "How tokenizers cut texts, and their dead ids."),
    "eval bits": ("yayan.evaluate.bits:EvalBits", "Bits per byte of held-out texts."),
    "eval ceval": ("yayan.evaluate.choices:EvalCeval", "Accuracy on four-choice questions in C-Eval's form."),
    "eval longbench": ("yayan.evaluate.longbench:EvalLongbench", "LongBench: long texts, answered greedily."),
    "eval needle": ("yayan.evaluate.needle:EvalNeedle", "Is a fact planted in a long text found again?"),
    "eval cmmlu": (
        "yayan.evaluate.choices:EvalCmmlu",
        "Accuracy on CMMLU, four-choice questions in Chinese.",
    ),
    "eval mmlu": ("yayan.evaluate.choices:EvalMmlu", "Accuracy on MMLU, four-choice questions in English."),
    "eval compare": ("yayan.evaluate.compare:EvalCompare", "Two models on the same four-choice questions."),
    "eval samples": ("yayan.evaluate.samples:EvalSamples", "Greedy answers to given prompts."),
    "eval quant": ("yayan.evaluate.quant:EvalQuant", "What quantising a model costs and saves."),
    "eval speed": (
        "yayan.evaluate.speed:EvalSpeed",
        "Milliseconds a token, memory, and what a draft model adds.",
    ),
    "eval report": ("yayan.evaluate.report:EvalReport", "One page that tells what a road has done."),
}
EVAL_HELP = "Measure a model or a tokenizer."
INTERRUPTED = 130
LARGEST_NUMBER = 1 << 63


def make_app() -> App:
    """The one parser of flags and of recipe keys."""
    settings: dict[str, Any] = {
        "default_parameter": Parameter(negative_iterable=(), consume_multiple=True),
        "result_action": "return_value",
        "help_format": "plaintext",
    }
    title = "yayan (雅言): teach an open language model a new language."
    app = App(name="yayan", help=title, version=__version__, **settings)
    groups = {"": app}
    for verb, (target, clause) in VERBS.items():
        group, _, name = verb.rpartition(" ")
        if group not in groups:
            groups[group] = App(name=group, help=EVAL_HELP, **settings)
            app.command(groups[group])
        groups[group].command(target, name=name, help=clause)
    return app


def parse(tokens: list[str]) -> Command | Stage | None:
    """Tokens of a command line to the verb's dataclass; None where help was printed instead.

    Raises UserError for an unknown verb or option (naming the nearest), a missing or an ill-typed value.
    """
    refuse_unknown_verb(tokens)
    try:
        command = make_app()(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise UserError(" ".join(str(error).split())) from error
    if command is not None:
        refuse_impossible_numbers(command)
    return command


def refuse_unknown_verb(tokens: list[str]) -> None:
    """Name the nearest verb ourselves: cyclopts would import every verb's module to say the same."""
    known = {verb.partition(" ")[0] for verb in VERBS}
    if not tokens or tokens[0].startswith("-") or tokens[0] in known:
        return
    near = difflib.get_close_matches(tokens[0], known, n=1)
    cure = f"did you mean {near[0]}?" if near else f"the verbs are {', '.join(sorted(known))}"
    raise UserError("there is no such verb", where=tokens[0], cure=cure)


def refuse_impossible_numbers(command: Command | Stage) -> None:
    """UserError for what no option can mean: a number that is not finite, or that 64 bits do not hold."""
    for option in fields(command):
        value = getattr(command, option.name)
        several = value.values() if isinstance(value, dict) else value
        for item in several if isinstance(value, dict | list) else [value]:
            if isinstance(item, float | int) and not abs(item) < LARGEST_NUMBER:
                raise UserError(f"{option.name} is {item}", where=option.name, cure="give a smaller number")


def command_of(verb: str) -> type[Command] | type[Stage]:
    """The dataclass of a verb; imports its module."""
    module, _, name = VERBS[verb][0].partition(":")
    return getattr(importlib.import_module(module), name)


def act(command: Command | Stage) -> None:
    """Carry out a parsed verb; of several ranks all do a stage, and walk a road, and the first alone all else."""
    if isinstance(command, Stage):
        record = execute(command)
        if not ranks.leads():
            return
        if command.json:
            print(json.dumps(record, ensure_ascii=False))
        else:
            command.tell(record)
    elif command.together or ranks.leads():
        command.run()


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point: exit code 0 done, 1 the work failed, 2 the question was wrong, 130 interrupted."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in tokens
    tokens = [token for token in tokens if token != "--debug"]
    signal.signal(signal.SIGTERM, interrupt)
    try:
        command = parse(tokens)
        if command is not None:
            act(command)
        ranks.leave()
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on where it stopped.", INTERRUPTED)
    except YayanError as error:
        if debug:
            raise
        fail(str(error), error.exit_code)
    except BrokenPipeError:
        fail("the reader of the output is gone.", 1)
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split())
        fail(f"{type(error).__name__}: {text} (--debug shows where).", 1)
    sys.exit(0)


def interrupt(*_: object) -> NoReturn:
    """SIGTERM ends a run as Ctrl-C does (also where a shell started it in the background, which ignores SIGINT)."""
    raise KeyboardInterrupt


def fail(sentence: str, exit_code: int) -> NoReturn:
    print(f"yayan: {sentence}", file=sys.stderr)
    sys.exit(exit_code)
