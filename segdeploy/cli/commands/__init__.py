"""The commands: one public file each, found by listing the folder (a leading underscore is no command)."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import click


class CommandModule(Protocol):
    """What a file in `commands/` defines. The user types its name: `train.py` is `segdeploy train`.

    Its docstring is one line, which `segdeploy --help` shows. The commands are listed by ORDER, those of one ORDER by
    name. Nothing heavy is imported outside the function of the command.
    """

    ORDER: int
    COMMAND: click.Command


class Listed(NamedTuple):
    """A command as `segdeploy --help` lists it."""

    order: int
    name: str
    summary: str


_HEAD = re.compile(r'"""([^\n]+)"""\n(?:.*\n)?ORDER = (\d+)[^\n]*\n', re.DOTALL)


def names() -> list[str]:
    """Every command, by name; imports none of them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load(name: str) -> CommandModule:
    """The file of a command."""
    return cast("CommandModule", importlib.import_module(f"{__name__}.{name}"))


def listed() -> list[Listed]:
    """Every command, in the order in which a network meets them; imports none of them.

    Their lines are read from their files: to make the options of all commands takes longer than all the rest of --help.
    """
    return sorted(_listed())


def _listed() -> Iterator[Listed]:
    for folder in __path__:
        for file in Path(folder).glob("[!_]*.py"):
            head = _HEAD.match(file.read_text(encoding="utf-8"))
            if head is None:
                raise ImportError(f"{file} has no docstring of one line, or no ORDER.")
            yield Listed(int(head.group(2)), file.stem, head.group(1))
