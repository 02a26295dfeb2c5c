"""docs/cli.md, made from the tables of options: `python -m joey.cli.docs > docs/cli.md`."""

from joey.cli import VERBS, load
from joey.cli.options import help_text
from joey.cli.output import write


def page():
    """The whole page."""
    parts = [
        "# The command line",
        "",
        "Made from the program by `python -m joey.cli.docs > docs/cli.md`; a test keeps it current.",
        "",
        "Options carry Docker's names and meanings where Docker has them. What Joey cannot do yet is refused by name,",
        "never ignored. Results go to standard output, everything else to standard error: `joey: WHERE: WHAT`, and if",
        "there is a remedy a line that begins `try:`. `joey run`, `exec`, `attach` and `explain` exit with the",
        "program's code, or 125 when joey failed, 126 when the program cannot be executed, 127 when there is none;",
        "other commands with 1 when something failed and 2 when the command line was wrong.",
        "",
    ]
    for verb in VERBS:
        parts += [f"## joey {verb}", "", "```", help_text(load(verb)).rstrip(), "```", ""]
    return "\n".join(parts)


if __name__ == "__main__":
    write(1, page().encode())
