"""The report: one page, readable offline, that tells what a road has done, and the same as Markdown."""

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from yayan.errors import UserError
from yayan.evaluate import long_sections, measured, sections
from yayan.evaluate.page import Page, markdown
from yayan.evaluate.steps import Step, read_steps
from yayan.stage import InputPath, Stage

TEMPLATE = "report.html.jinja"


@dataclass(frozen=True, kw_only=True)
class EvalReport(Stage):
    """One page that tells what a road has done.

    OUT/report.html holds its pictures and its style in itself and needs no network; OUT/report.md has the same tables.
    """

    folders: list[InputPath]
    """Folders of finished steps, in the order in which they are told."""
    title: str = "What the road has done"
    """Heading of the page."""

    def check(self) -> None:
        if not self.folders:
            raise UserError("no folder is given", cure="name the folders of finished steps: --folders DIR")
        read_steps(self.folders)

    def run(self, work: Path) -> dict[str, object]:
        steps = read_steps(self.folders)
        page = make_page(self.title, steps)
        (work / "report.html").write_text(html(page), encoding="utf-8")
        (work / "report.md").write_text(markdown(page), encoding="utf-8")
        return {"steps": len(steps), "bytes": (work / "report.html").stat().st_size}


def make_page(title: str, steps: list[Step]) -> Page:
    """All sections that the steps have something for."""
    found = [
        sections.road(steps),
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
        sections.limits(steps),
        sections.provenance(steps),
    ]
    subtitle = f"Made by yayan {steps[-1].record['version']}, {steps[-1].record['started'][:10]}"
    return Page(title, subtitle, sections.cards(steps), [section for section in found if section])


def html(page: Page) -> str:
    """The page as HTML; whatever models and files say is escaped."""
    environment = Environment(
        loader=PackageLoader("yayan", "evaluate"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(page=page)
