"""The report: one page, readable offline, that tells what a road has done, and the same as Markdown.

All of it is said twice, in English and in Chinese.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from yayan.errors import UserError
from yayan.evaluate import limits, long_sections, measured, sections
from yayan.evaluate.family import family
from yayan.evaluate.languages import LANGUAGES, say, speaking
from yayan.evaluate.page import Page, Section, markdown
from yayan.evaluate.steps import Step, read_steps
from yayan.stage import InputPath, Stage

TEMPLATE = "report.html.jinja"
MARKDOWN_NAMES = {"en": "report.md", "zh": "report_zh.md"}
IDS = re.compile(r"""(\bid="|\burl\(#|\bhref="#)""")


@dataclass(frozen=True, kw_only=True)
class EvalReport(Stage):
    """One page that tells what a road has done.

    OUT/report.html holds English and Chinese, its pictures and its style in itself and needs no network; OUT/report.md
    and OUT/report_zh.md have the same tables.
    """

    folders: list[InputPath]
    """Folders of finished steps, which are told in the order in which they began."""
    title: str = "What the road has done"
    """Heading of the page."""

    def check(self) -> None:
        if not self.folders:
            raise UserError("no folder is given", cure="name the folders of finished steps: --folders DIR")
        read_steps(self.folders)

    def run(self, work: Path) -> dict[str, object]:
        steps = read_steps(self.folders)
        pages = [make_page(self.title, steps, language) for language in LANGUAGES]
        (work / "report.html").write_text(html(pages), encoding="utf-8")
        for page in pages:
            (work / MARKDOWN_NAMES[page.language]).write_text(markdown(page), encoding="utf-8")
        return {"steps": len(steps), "bytes": (work / "report.html").stat().st_size}


def make_page(title: str, steps: list[Step], language: str) -> Page:
    """The page in one language, with the title as it is given (but the default one is translated)."""
    with speaking(language):
        version, date = steps[-1].record["version"], steps[-1].record["started"][:10]
        subtitle = say("Made by yayan {version}, {date}", version=version, date=date)
        return Page(language, say(title), subtitle, sections.cards(steps), make_sections(steps))


def make_sections(steps: list[Step]) -> list[Section]:
    """All sections that the steps have something for."""
    found = [
        sections.road(steps),
        family(steps),
        sections.languages(steps),
        sections.vocabulary(steps),
        sections.tokens(steps),
        sections.training(steps),
        sections.choices(steps),
        *long_sections.longbench(steps),
        *long_sections.needles(steps),
        sections.quantisation(steps),
        measured.positions(steps),
        measured.quantised(steps),
        measured.speeds(steps),
        sections.samples(steps),
        limits.limits(steps),
        limits.provenance(steps),
    ]
    return [section for section in found if section]


def html(pages: list[Page]) -> str:
    """One page of all languages as HTML; whatever models and files say is escaped."""
    environment = Environment(
        loader=PackageLoader("yayan", "evaluate"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["with_ids"] = with_ids
    return environment.get_template(TEMPLATE).render(pages=pages, languages=LANGUAGES)


def with_ids(svg: str, prefix: str) -> str:
    """A picture whose ids are those of no other: in a browser a clip in a hidden part would clip nothing."""
    return IDS.sub(rf"\g<1>{prefix}-", svg)
