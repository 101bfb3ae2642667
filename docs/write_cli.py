"""Write docs/cli.md from the command's own help; a test holds the two together."""

from pathlib import Path

import click
from click.testing import CliRunner

from segdeploy.cli import cli, commands

PAGE = Path(__file__).parent / "cli.md"


def page() -> str:
    """Every command's --help, in the order of the names."""
    named = [(), *(words for name in commands.names() for words in _words(name))]
    return "# The command line\n\nWritten by `make docs` from `--help`.\n" + "".join(map(_section, named))


def _words(name: str) -> list[tuple[str, ...]]:
    """A command, and what it groups."""
    command = commands.load(name).COMMAND
    grouped = sorted(command.commands) if isinstance(command, click.Group) else []
    return [(name,), *((name, inner) for inner in grouped)]


def _section(words: tuple[str, ...]) -> str:
    title = " ".join(["segdeploy", *words])
    shown = CliRunner().invoke(cli, [*words, "--help"], prog_name="segdeploy", terminal_width=100)
    if shown.exit_code:
        raise click.ClickException(shown.output)
    return f"\n## {title}\n\n```\n{shown.output.rstrip()}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
