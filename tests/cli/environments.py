"""Virtual environments that hold what `pip install 'segdeploy[EXTRA,...]'` brings, and nothing else.

What is installed for the tests is linked into them, distribution by distribution: an environment takes a moment, and
the packages are real. A package that only the test environment has cannot be imported there. `make environments-check`
has pip fill them instead, with constraints.txt.
"""

import collections
import importlib.metadata
import os
import subprocess
import tomllib
import venv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import segdeploy

PACKAGE = Path(segdeploy.__file__).parent
PROJECT: Mapping[str, Any] = tomllib.loads(PACKAGE.with_name("pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: Mapping[str, Sequence[str]] = {
    name: needs for name, needs in PROJECT["optional-dependencies"].items() if name != "dev"
}


def python_with(extras: Iterable[str], folder: Path) -> Path:
    """The Python of a new environment in `folder`. Raise PackageNotFoundError where an extra is not installed here."""
    if "pip" in os.environ.get("SEGDEPLOY_REQUIRE", "").split(","):
        return python_from_pip(extras, folder)
    asked = [*PROJECT["dependencies"], *(need for extra in extras for need in EXTRAS[extra])]
    found = distributions(asked)
    venv.EnvBuilder(symlinks=True).create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / PACKAGE.name).symlink_to(PACKAGE)
    link(found, packages)
    return folder / "bin" / "python"


def python_from_pip(extras: Iterable[str], folder: Path) -> Path:
    """The Python of a new environment that pip fills from this checkout."""
    venv.EnvBuilder(symlinks=True, with_pip=True).create(folder)
    python, project = folder / "bin" / "python", PACKAGE.parent
    asked = ["-c", str(project / "constraints.txt"), f"{project}[{','.join(extras)}]"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *asked], check=True)
    return python


def distributions(asked: Iterable[str]) -> list[importlib.metadata.Distribution]:
    """Those that were asked for and all that they need, as pip would choose them for this Python."""
    from packaging.requirements import Requirement

    found: dict[str, importlib.metadata.Distribution] = {}
    left, seen = [(Requirement(text), "") for text in asked], set[tuple[str, str]]()
    while left:
        need, extra = left.pop()
        if need.marker is not None and not need.marker.evaluate({"extra": extra}):
            continue
        for wanted in {"", *need.extras}:
            if (need.name, wanted) in seen:
                continue
            seen.add((need.name, wanted))
            found[need.name] = importlib.metadata.distribution(need.name)
            left += [(Requirement(text), wanted) for text in found[need.name].requires or ()]
    return list(found.values())


def link(found: Sequence[importlib.metadata.Distribution], packages: Path) -> None:
    """Link each distribution's folders; a folder that several of them fill is made, and its contents are linked."""
    owners = collections.defaultdict[tuple[str, ...], set[str]](set)
    files = {each.name: [file.parts for file in each.files or () if file.parts[0] != ".."] for each in found}
    for name, listed in files.items():
        for parts in listed:
            for depth in range(1, len(parts) + 1):
                owners[parts[:depth]].add(name)
    for each in found:
        for parts in files[each.name]:
            own = next(
                depth for depth in range(1, len(parts) + 1) if len(owners[parts[:depth]]) == 1 or depth == len(parts)
            )
            target = packages.joinpath(*parts[:own])
            if not target.is_symlink():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(Path(str(each.locate_file(Path(*parts[:own])))))
