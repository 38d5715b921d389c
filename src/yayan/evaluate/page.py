"""The parts that a report is made of, and the report as Markdown."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """Rows of cells that are ready to be read; `numeric` columns stand to the right."""

    columns: list[str]
    rows: list[list[str]]
    numeric: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Picture:
    """An `<svg>` element and what it shows, in words."""

    svg: str
    caption: str
    wide: bool = False  # as large as it is drawn, whatever the width of the page


@dataclass(frozen=True)
class Talk:
    """A question and its answer; `note` says what it took."""

    question: str
    answer: str
    note: str


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, in this order."""

    title: str
    text: str = ""
    table: Table | None = None
    pictures: list[Picture] = field(default_factory=list)
    talks: list[Talk] = field(default_factory=list)
    points: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Card:
    """A headline figure."""

    figure: str
    meaning: str


@dataclass(frozen=True)
class Page:
    """A whole report in one language (`en`, `zh`)."""

    language: str
    title: str
    subtitle: str
    cards: list[Card]
    sections: list[Section]


def markdown(page: Page) -> str:
    """The page as GitHub's Markdown, without its pictures; where there is nothing else, what they show in words."""
    parts = [f"# {page.title}", page.subtitle]
    parts += ["\n".join(f"- **{escape(card.figure)}** {escape(card.meaning)}" for card in page.cards)]
    for section in page.sections:
        parts.append(f"## {section.title}")
        if section.text:
            parts.append(escape(section.text))
        if section.table:
            parts.append(markdown_table(section.table))
        parts += [
            f"{quote(talk.question)}\n\n{escape(talk.answer)}\n\n*{talk.note}*" for talk in section.talks
        ]
        points = section.points
        if not (section.text or section.table or section.talks or points):
            points = [picture.caption for picture in section.pictures]
        if points:
            parts.append("\n".join(f"- {escape(point)}" for point in points))
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(table: Table) -> str:
    rules = ["---:" if number in table.numeric else "---" for number in range(len(table.columns))]
    rows = [[escape(cell).replace("\n", " ").replace("|", "\\|") for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [table.columns, rules, *rows])


def quote(text: str) -> str:
    return "\n".join(f"> {escape(line)}" for line in text.splitlines())


def escape(text: str) -> str:
    """Text of models and files must not become markup."""
    for sign in "\\`*_<>#[]":
        text = text.replace(sign, "\\" + sign)
    return text
