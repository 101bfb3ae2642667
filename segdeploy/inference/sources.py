"""Finds the images to segment: those below what the user named, but for what segdeploy made of them before."""

import fnmatch
import glob
import hashlib
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath

import numpy as np

from segdeploy import images
from segdeploy.data import dataset
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.inference import outputs
from segdeploy.inference.source_list import Source, SourceList


def find(
    inputs: Sequence[str], *, leave_out: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[SourceList, int]:
    """Every image below the inputs, and how many others.

    An input is a folder, a file, a glob, a .txt with a path a line, or `-` for such lines on standard input.

    Folders are walked in the order of names, without following links to folders and without litter
    (`dataset.is_litter`). `leave_out` is the folder of the masks: what an earlier run wrote there, or into the folders
    of other outputs beside it, is not looked at. Masks and overlays that segdeploy wrote elsewhere count with the
    others. A path in a list is relative to the list's folder, one of standard input to the working directory.
    `include` and `exclude`: patterns that its name or its path below the input fits.
    """
    found, seen = SourceList(), set[bytes]()
    skipped = ours = 0
    apart = {os.path.realpath(folder) for folder in outputs.folders(leave_out)}
    for source in _each(inputs, apart):
        if PurePath(source.relative).suffix.lower() not in images.EXTENSIONS or not _is_wanted(
            source, include, exclude
        ):
            skipped += 1
        elif images.is_ours(source.path):
            ours += 1
        elif (digest := _digest(source)) not in seen:
            found.append(source)
            seen.update([digest] * (len(inputs) > 1 or not Path(inputs[0]).is_dir()))  # one folder names each file once
    if not found and ours:
        raise InvalidRequestError(
            f"there is nothing but masks and overlays of segdeploy in {', '.join(inputs)}.",
            "Name the photographs that they were made of.",
        )
    if not found:
        chosen = " that --include and --exclude leave" if include or exclude else ""
        raise InvalidRequestError(
            f"there are no images in {', '.join(inputs)}{chosen}.",
            f"Known endings: {' '.join(sorted(images.EXTENSIONS))}.",
        )
    return found, skipped + ours


def _digest(source: Source) -> bytes:
    """Of its whole path: `..` goes, links stay."""
    return hashlib.blake2b(os.fsencode(os.path.abspath(source.path)), digest_size=16).digest()  # noqa: PTH100


def _is_wanted(source: Source, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a pattern to include fits its name or its relative path (or there is none), and none to exclude."""
    texts = (PurePath(source.relative).name, source.relative)
    fits, left_out = (
        any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns for text in texts)
        for patterns in (include, exclude)
    )
    return (not include or fits) and not left_out


def require_spared(sources: SourceList, written: Iterable[Path]) -> None:
    """Raise InvalidRequestError where a file that is to be written is one of the images."""
    there = np.fromiter(filter(None, map(_identity, written)), np.int64)
    if not len(there):
        return
    read = np.fromiter((_identity(source.path) for source in sources), np.int64, count=len(sources))
    for index in np.flatnonzero(np.isin(read, there))[:1]:
        raise InvalidRequestError(
            f"{sources[index].path} is a photograph to read; its mask would replace it.", "Give another --out."
        )


def _identity(path: Path) -> int:
    """A hash of which file that is, by its device and number, whatever its name; 0 where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return 0
    return hash((found.st_dev, found.st_ino)) or 1


def _each(inputs: Iterable[str], apart: set[str]) -> Iterator[Source]:
    for named in inputs:
        path = Path(named)
        if named == "-":
            yield from _rooted([Path(line) for line in sys.stdin.read().splitlines() if line])
        elif path.is_dir():
            yield from _walked(path, apart)
        elif path.suffix.lower() == ".txt" and path.is_file():
            yield from _listed(path)
        elif path.is_file():
            yield Source(str(path.parent), path.name)
        else:
            yield from _globbed(named, apart)


def _walked(root: Path, apart: set[str]) -> Iterator[Source]:
    _require_outside(root, apart)
    for folder, folders, files in os.walk(root, onerror=_unreadable):
        named = (name for name in folders if not dataset.is_litter(name))
        folders[:] = sorted(name for name in named if os.path.realpath(Path(folder, name)) not in apart)
        below = PurePath(folder).relative_to(root)
        kept = sorted(name for name in files if not dataset.is_litter(name))
        yield from (Source(str(root), str(below / name)) for name in kept)


def _require_outside(root: Path, apart: set[str]) -> None:
    if os.path.realpath(root) in apart:
        raise InvalidRequestError(
            f"{root} is where the masks go: the next run would take them for photographs.", "Give another --out."
        )


def _unreadable(error: OSError) -> None:
    raise InvalidFileError(f"cannot read the folder {error.filename}: {error.strerror}.", "Check its permissions.")


def _listed(path: Path) -> Iterator[Source]:
    return _rooted([path.parent / line for line in dataset.read_list(path)])


def _globbed(pattern: str, apart: set[str]) -> Iterator[Source]:
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - any folder, not one
    files = [match for match in matches if match.is_file()]
    if not files:
        raise InvalidRequestError(f"{pattern} does not exist.", "Name a folder, an image, a glob or a .txt list.")
    root = Path(*itertools.takewhile(_is_fixed, Path(pattern).parts))
    _require_outside(root, apart)
    ours = {folder for folder in {file.parent for file in files} if _lies_in(folder, apart, below=root)}
    return _rooted([file for file in files if file.parent not in ours])


def _is_fixed(part: str) -> bool:
    return not any(mark in part for mark in "*?[")


def _lies_in(folder: Path, apart: set[str], *, below: Path) -> bool:
    between = [folder, *folder.parents][: len(folder.parts) - len(below.parts)]
    return any(os.path.realpath(step) in apart for step in between)


def _rooted(files: Sequence[Path]) -> Iterator[Source]:
    """Paths below the folder that all the files share, so that no mask is written outside `out`."""
    whole = [os.path.abspath(file) for file in files]  # noqa: PTH100 - `..` goes, links stay
    root = os.path.commonpath([os.path.dirname(file) for file in whole]) if whole else ""  # noqa: PTH120
    return (Source(root, os.path.relpath(file, root)) for file in whole)
