"""The family of the models of a report: which came from which, by which step, and what each is."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yayan.evaluate.family_picture import draw_family
from yayan.evaluate.languages import listed, say
from yayan.evaluate.page import Picture, Section
from yayan.evaluate.steps import Step
from yayan.evaluate.words import gguf_type, megabytes, millions

Kind = Literal["model", "adapter", "gguf", "elsewhere"]
PARENTS = {  # the steps that make models, and the inputs that these are made from
    "grow": ("model",),
    "pretrain": ("model",),
    "sft": ("model",),
    "merge": ("base", "adapter"),
    "stretch": ("model",),
    "gguf": ("model",),
}


@dataclass(frozen=True)
class Member:
    """A model, an adapter or the GGUF files of one step; `parents` are numbers in the list that it stands in."""

    name: str
    kind: Kind
    stage: str
    facts: list[str]
    parents: list[int]


def family(steps: list[Step]) -> Section | None:
    """The models as a picture, and in words."""
    members = members_of(steps)
    if not members:
        return None
    caption = say("Each model stands to the right of those that it was made from; an arrow names the step.")
    picture = Picture(draw_family(members), caption, wide=True)
    points = [
        say("{step}: {clause}.", step=member.name, clause=listed([*origin(member, members), *member.facts]))
        for member in members
    ]
    return Section(say("The family of models"), pictures=[picture], points=points)


def origin(member: Member, members: list[Member]) -> list[str]:
    if not member.parents:
        return [say("made by {stage}", stage=member.stage)] if member.stage else []
    parents = say(" and ").join(members[number].name for number in member.parents)
    return [say("made from {parents} by {stage}", parents=parents, stage=member.stage)]


def members_of(steps: list[Step]) -> list[Member]:
    """What the steps made, in their order, and behind it the models from elsewhere that they made it from."""
    makers = [step for step in steps if step.stage in PARENTS]
    members = [Member(step.name, kind_of(step), step.stage, facts_of(step), []) for step in makers]
    strangers: dict[str, int] = {}
    for step, member in zip(makers, list(members), strict=True):
        for path, digest in parents_of(step):
            number = made_here(step, path, digest, makers)
            if number is None:
                if digest not in strangers:
                    strangers[digest] = len(members)
                    members.append(Member(path.name, "elsewhere", "", [say("from elsewhere")], []))
                number = strangers[digest]
            member.parents.append(number)
    return members


def parents_of(step: Step) -> Iterator[tuple[Path, str]]:
    """Path and content of each model that a step read."""
    for option in PARENTS[step.stage]:
        entry = step.record["inputs"].get(option)
        for item in entry if isinstance(entry, list) else [entry]:
            if item:
                yield Path(item["path"]), item["sha256"]


def made_here(child: Step, path: Path, digest: str, makers: list[Step]) -> int | None:
    """The step that made a content: of several equal ones that of the same name.

    A step may change nothing, so that it makes what it reads: it is not its own parent.
    """
    equal = [number for number, step in enumerate(makers) if step is not child and step.sha256 == digest]
    named = [number for number in equal if makers[number].name == path.name]
    return next(iter(named if named or child.sha256 == digest else equal), None)


def kind_of(step: Step) -> Kind:
    if step.stage == "gguf":
        return "gguf"
    return "adapter" if "adapter_bytes" in step.metrics else "model"


def facts_of(step: Step) -> list[str]:
    """What a step made, as far as its record tells."""
    m, kind = step.metrics, kind_of(step)
    if kind == "gguf":
        return [f"{gguf_type(name)} {megabytes(file['bytes'])}" for name, file in m["files"].items()]
    if kind == "adapter":
        options = step.record["options"]
        what = say("adapter, rank {rank}", rank=options["rank"])
        return [
            say("rows of the ends") if options["train"] == "ends" else what,
            megabytes(m["adapter_bytes"]),
        ]
    facts = []
    if "parameters" in m:
        facts.append(say("{count} parameters", count=millions(m["parameters"])))
    if "rows" in m:
        facts.append(say("{rows:,} rows", rows=m["rows"]))
    if step.stage == "stretch":
        facts.append(say("{positions:,} positions", positions=m["positions"]))
    if "bytes" in m:
        facts.append(megabytes(m["bytes"]))
    return facts + ([say("chat model")] if step.record["template"] else [])
