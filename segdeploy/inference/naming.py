"""What the files made of an image are called, whatever lies beside it; and which images come too late for a name."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from segdeploy.errors import InvalidRequestError
from segdeploy.inference.report import Failure
from segdeploy.inference.sources import Source
from segdeploy.paths import shown

STEM, FULL = "stem", "full"


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where the files of one kind go, and how their names end."""

    folder: Path
    suffix: str

    def file(self, target: PurePath) -> Path:
        return self.folder / f"{target}{self.suffix}"


def require(names: str) -> str:
    """Raise InvalidRequestError where it is neither `stem` nor `full`."""
    if names not in {STEM, FULL}:
        raise InvalidRequestError(f"there are no names {names!r}.", f"Choose {STEM} or {FULL}.")
    return names


def target(source: Source, names: str) -> PurePath:
    """The files of an image below the folder of their kind, without the kind's ending.

    `a/x.jpg` gives `a/x`, or `a/x.jpg` where names are full.
    """
    return PurePath(source.relative if names == FULL else source.stem)


def divided(
    sources: Sequence[Source], places: Sequence[Place], names: str
) -> tuple[list[tuple[Source, PurePath]], list[Failure]]:
    """The images with their targets; and those that would take the name of an earlier one, each with its reason."""
    kept, failures = [], []
    files: dict[Path, Source] = {}
    folders: dict[Path, Source] = {}
    for source in sources:
        wanted = target(source, names)
        taken = next(_taken(wanted, places, files, folders), None)
        if taken is not None:
            failures.append(_failure(source, *taken, places[0], names))
            continue
        kept.append((source, wanted))
        for place in places:
            files[place.file(wanted)] = source
            for folder in _folders(place, wanted):
                folders.setdefault(folder, source)
    return kept, failures


def _taken(
    wanted: PurePath, places: Sequence[Place], files: dict[Path, Source], folders: dict[Path, Source]
) -> Iterator[tuple[Path, Source]]:
    """Names that another image has: of a file, or of a folder where there would be a file, or the other way round."""
    for place in places:
        file = place.file(wanted)
        for owners, names in ((files, [file, *_folders(place, wanted)]), (folders, [file])):
            yield from ((name, owners[name]) for name in names if name in owners)


def _folders(place: Place, wanted: PurePath) -> list[Path]:
    """Those that the file of a target lies in, below the folder of its kind."""
    return [place.folder / parent for parent in wanted.parents if parent.name]


def _failure(source: Source, name: Path, other: Source, place: Place, names: str) -> Failure:
    remedy = "give it a run of its own, with another --out"
    if names == STEM and source.relative != other.relative:
        remedy = f"--names full gives each its own, such as {place.file(target(source, FULL))}"
    what = f"{shown(source.path)} would take the name {shown(name)} from {shown(other.path)}"
    return Failure(str(source.path), f"{what}: {remedy}.")
