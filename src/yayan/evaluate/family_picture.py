"""A family as an `<svg>` element: boxes in columns by generation, arrows from the left to the right.

An arrow that passes a column takes a place of its own there, so that it never runs through a box (Sugiyama et al. 1981,
in small: one pass, each place beside the mean of those that lead to it). Lengths are pixels.
"""

import html
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

NAME_SIZE, FACT_SIZE, LABEL_SIZE = 13, 11.5, 11  # of the letters
LINE, PADDING, MARGIN = 16, 9, 4
BETWEEN_ROWS, BETWEEN_COLUMNS = 16, 76  # the name of a step stands between two columns
ARROW = 7
LONGEST_NAME = 26  # characters; the whole name is shown when the pointer rests on the box
WIDE, NARROW = 1.0, 0.58  # widths of a letter, in its size: Chinese, and the mean of others
BOLD = 1.2  # times as wide
STRIPES = {"model": "var(--series-3)", "adapter": "var(--series-2)", "gguf": "var(--series-4)"}


class Relative(Protocol):
    """What is drawn of a member of the family."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def stage(self) -> str: ...
    @property
    def facts(self) -> list[str]: ...
    @property
    def parents(self) -> list[int]: ...


@dataclass(eq=False)
class Place:
    """A box, or where an arrow passes a column (`member` is None); `y` is its middle."""

    member: Relative | None
    before: list["Place"] = field(default_factory=list)
    x: float = 0
    y: float = 0
    width: float = 0

    @property
    def height(self) -> float:
        return 2 * PADDING + LINE * (1 + len(self.member.facts)) if self.member else 0


def draw_family(members: Sequence[Relative]) -> str:
    """The whole picture, in the page's colours."""
    columns = columns_of(members)
    x: float = MARGIN
    for places in columns:
        stack(places)
        width = max((width_of(place.member) for place in places if place.member), default=0)
        for place in places:
            place.x, place.width = x, width
        x += width + BETWEEN_COLUMNS
    everything = [place for places in columns for place in places]
    top = min(place.y - place.height / 2 for place in everything) - MARGIN
    for place in everything:
        place.y -= top
    height = max(place.y + place.height / 2 for place in everything) + MARGIN
    boxes = [place for place in everything if place.member]
    parts = [part for drawn in (arrows, box, label) for place in boxes for part in drawn(place)]
    size = f'width="{x - BETWEEN_COLUMNS + MARGIN:.0f}" height="{height:.0f}"'
    view = f'viewBox="0 0 {x - BETWEEN_COLUMNS + MARGIN:.0f} {height:.0f}"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {view}>', *parts, "</svg>"])


def columns_of(members: Sequence[Relative]) -> list[list[Place]]:
    """A column for each generation, with places for the arrows that pass it."""
    generations = generations_of(members)
    columns: list[list[Place]] = [[] for _ in range(max(generations) + 1)]
    places = [Place(member) for member in members]
    for number, member in enumerate(members):
        columns[generations[number]].append(places[number])
        for parent in member.parents:
            last = places[parent]
            for column in columns[generations[parent] + 1 : generations[number]]:
                passing = Place(None, [last])
                column.append(passing)
                last = passing
            places[number].before.append(last)
    return columns


def generations_of(members: Sequence[Relative]) -> list[int]:
    """One more than the latest parent's; who has no parents stands just before the first child."""
    found = [0] * len(members)
    for _ in members:  # as many rounds as the longest line can have
        found = [1 + max((found[number] for number in member.parents), default=-1) for member in members]
    for number, member in enumerate(members):
        children = [found[child] for child, other in enumerate(members) if number in other.parents]
        if children and not member.parents:
            found[number] = min(children) - 1
    return found


def stack(places: list[Place]) -> None:
    """Put a column's places below each other, each near the mean of the places before it."""
    wanted = {
        place: sum(other.y for other in place.before) / len(place.before) for place in places if place.before
    }
    lowest = max(wanted.values(), default=0)
    order = {place: (wanted.get(place, lowest), place.member is not None) for place in places}
    places.sort(key=lambda place: order[place])
    bottom = -float("inf")
    for place in places:
        place.y = max(order[place][0], bottom + BETWEEN_ROWS + place.height / 2)
        bottom = place.y + place.height / 2
    known = list(wanted) or places
    shift = sum(order[place][0] - place.y for place in known) / max(len(known), 1)
    for place in places:
        place.y += shift


def width_of(member: Relative) -> float:
    lines = [(shorten(member.name), NAME_SIZE * BOLD), *((fact, FACT_SIZE) for fact in member.facts)]
    return max(size * letters(text) for text, size in lines) + 2 * PADDING + 4


def letters(text: str) -> float:
    """The width of a text, in the size of its letters."""
    return sum(WIDE if unicodedata.east_asian_width(letter) in "WF" else NARROW for letter in text)


def shorten(name: str) -> str:
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half + 1 :]}"


def arrows(place: Place) -> Iterator[str]:
    """The arrows that lead to a box, bent in the spaces between the columns alone."""
    soft = "fill: none; stroke: var(--soft); stroke-width: 1.3"
    for end in place.before:
        line = [f"{place.x - ARROW:.1f} {place.y:.1f}"]
        target, source = place, end
        while True:
            right, middle = source.x + source.width, (source.x + source.width + target.x) / 2
            line.append(
                f"C{middle:.1f} {target.y:.1f} {middle:.1f} {source.y:.1f} {right:.1f} {source.y:.1f}"
            )
            if source.member:
                break
            line.append(f"L{source.x:.1f} {source.y:.1f}")
            target, source = source, source.before[0]
        yield f'<path d="M{" ".join(line)}" style="{soft}"/>'
    if place.before:
        x, y = place.x, place.y
        yield f'<path d="M{x:.1f} {y:.1f} l{-ARROW} -4 v8 z" style="fill: var(--soft)"/>'


def label(place: Place) -> Iterator[str]:
    """The step that leads to a box, on its arrows; what lies behind it is kept away from its letters."""
    if place.member and place.before:
        style = f"font-size: {LABEL_SIZE}px; fill: var(--soft); stroke: var(--paper); stroke-width: 4px"
        style += "; paint-order: stroke; text-anchor: end"
        at = f'x="{place.x - ARROW - 3:.1f}" y="{place.y - 7:.1f}"'
        yield f'<text {at} style="{style}">{html.escape(place.member.stage)}</text>'


def box(place: Place) -> Iterator[str]:
    """A member's box: its name, and what it is."""
    member, top = place.member, place.y - place.height / 2
    if not member:
        return
    style = "fill: var(--card); stroke: var(--soft); stroke-width: 1"
    style += "" if member.kind in STRIPES else "; stroke-dasharray: 4 3"
    shape = f'y="{top:.1f}" height="{place.height:.1f}"'
    yield f"<g><title>{html.escape(member.name)}</title>"
    yield f'<rect x="{place.x:.1f}" width="{place.width:.1f}" {shape} rx="5" style="{style}"/>'
    if member.kind in STRIPES:
        stripe = f"fill: {STRIPES[member.kind]}"
        yield f'<rect x="{place.x + 0.5:.1f}" width="4" {shape} rx="2" style="{stripe}"/>'
    for number, text in enumerate([shorten(member.name), *member.facts]):
        size, colour, weight = (FACT_SIZE, "var(--soft)", 400) if number else (NAME_SIZE, "currentColor", 600)
        style = f"font-size: {size}px; fill: {colour}; font-weight: {weight}"
        at = f'x="{place.x + PADDING + 4:.1f}" y="{top + PADDING + 11 + LINE * number:.1f}"'
        yield f'<text {at} style="{style}">{html.escape(text)}</text>'
    yield "</g>"
