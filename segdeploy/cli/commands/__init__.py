"""The commands: one public file each, found by listing the folder (a leading underscore is no command)."""

import importlib
import keyword
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import click


class CommandModule(Protocol):
    """What a file in `commands/` defines. The user types its name: `train.py` is `segdeploy train`.

    A word of Python's own has an underscore behind it: `import_.py` is `segdeploy import`.

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
    modules = (module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return sorted(_typed(name) for name in modules)


def _typed(module: str) -> str:
    """What the user types for a file."""
    word = module.removesuffix("_")
    return word if keyword.iskeyword(word) else module


def load(name: str) -> CommandModule:
    """The file of a command."""
    module = f"{name}_" if keyword.iskeyword(name) else name
    return cast("CommandModule", importlib.import_module(f"{__name__}.{module}"))


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
            yield Listed(int(head.group(2)), _typed(file.stem), head.group(1))
