"""Write docs/cli.md from the command's own help; a test holds the two together."""

from pathlib import Path

import click
from click.testing import CliRunner

from segdeploy.cli import cli, commands

PAGE = Path(__file__).parent / "cli.md"


def page() -> str:
    """Every command's --help, in the order of the names."""
    names = ["", *commands.names()]
    return "# The command line\n\nWritten by `make docs` from `--help`.\n" + "".join(map(_section, names))


def _section(name: str) -> str:
    arguments = [name, "--help"] if name else ["--help"]
    title = f"segdeploy {name}".strip()
    shown = CliRunner().invoke(cli, arguments, prog_name="segdeploy", terminal_width=100)
    if shown.exit_code:
        raise click.ClickException(shown.output)
    return f"\n## {title}\n\n```\n{shown.output.rstrip()}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
