"""What the files made of an image are called, whatever lies beside it; and which images come too late for a name."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

import numpy as np

from segdeploy.errors import InvalidRequestError
from segdeploy.inference.report import Failure
from segdeploy.inference.source_list import Source, SourceList
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


@dataclasses.dataclass(frozen=True, slots=True)
class TooLate:
    """An image whose name an earlier one has."""

    source: Source
    failure: Failure


def divided(sources: SourceList, places: Sequence[Place], names: str) -> tuple[SourceList, list[TooLate]]:
    """The images that are done; and those that would take the name of an earlier one, each with its reason."""
    if not _may_clash(sources, places, names):
        return sources, []
    kept, too_late = SourceList(), list[TooLate]()
    owners, folders = _Owners(), _Owners()  # of targets, and of the folders that they lie in
    for source in sources:
        wanted = target(source, names)
        taken = next(_taken(wanted, places, owners, folders), None)
        if taken is not None:
            too_late.append(TooLate(source, _failure(source, *taken, places[0], names)))
            continue
        kept.append(source)
        owners[str(wanted)] = source
        for parent in _folders(wanted):
            folders.setdefault(parent, source)
    return kept, too_late


def _may_clash(sources: SourceList, places: Sequence[Place], names: str) -> bool:
    """Whether two names have one hash, or a file that of a folder: eight bytes an image tell that nothing clashes."""
    folders = set[str]()
    hashes = np.empty(len(sources), np.int64)
    for index, source in enumerate(sources):
        wanted = target(source, names)
        hashes[index] = hash(str(wanted))
        folders.update(_folders(wanted))
    files = [
        hash(name.removesuffix(place.suffix)) for name in folders for place in places if name.endswith(place.suffix)
    ]
    return len(np.unique(hashes)) < len(hashes) or bool(np.isin(files, hashes).any())


_Owners = dict[str, Source]  # by path below the folder of any kind


def _taken(
    wanted: PurePath, places: Sequence[Place], owners: _Owners, folders: _Owners
) -> Iterator[tuple[Path, Source]]:
    """Names that another image has: of a file, or of a folder where there would be a file, or the other way round."""
    for place in places:
        file = f"{wanted}{place.suffix}"
        if (owner := owners.get(str(wanted)) or folders.get(file)) is not None:
            yield place.folder / file, owner
        for parent in _folders(wanted):
            if parent.endswith(place.suffix) and (owner := owners.get(parent.removesuffix(place.suffix))) is not None:
                yield place.folder / parent, owner


def _folders(wanted: PurePath) -> list[str]:
    """Those that the files of a target lie in, below the folder of their kind."""
    return [str(parent) for parent in wanted.parents if parent.name]


def _failure(source: Source, name: Path, other: Source, place: Place, names: str) -> Failure:
    remedy = "give it a run of its own, with another --out"
    if names == STEM and source.relative != other.relative:
        remedy = f"--names full gives each its own, such as {place.file(target(source, FULL))}"
    what = f"{shown(source.path)} would take the name {shown(name)} from {shown(other.path)}"
    return Failure(str(source.path), f"{what}: {remedy}.")
