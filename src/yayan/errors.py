"""The two ways in which a command ends badly, each said in one sentence: what, where, what to do."""


class YayanError(Exception):
    """A sentence for the user: `what (where): cure.`"""

    exit_code: int

    def __init__(self, what: str, *, where: object = None, cure: str | None = None) -> None:
        place = f" ({where})" if where is not None else ""
        remedy = f": {cure}" if cure else ""
        sentence = f"{what}{place}{remedy}"
        super().__init__(sentence if sentence.endswith(("?", ".")) else sentence + ".")


class UserError(YayanError):
    """The question was wrong: nothing was written, and the same command will fail again."""

    exit_code = 2


class WorkError(YayanError):
    """The work failed: the question may be right, and the same command goes on where it stopped."""

    exit_code = 1


def refuse_less_than_one(**numbers: int | None) -> None:
    """UserError for an option that counts something and is below 1; None leaves it open."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise UserError(f"{name} is {number}", where=name, cure="give at least 1")


def refuse_flags_below(*flags: tuple[str, float | None, float]) -> None:
    """UserError for a flag (its name, its value, the least that means something) that is below; None leaves it open."""
    for name, value, least in flags:
        if value is not None and not value >= least:
            raise UserError(f"--{name} {value} means nothing", cure=f"give at least {least}")
