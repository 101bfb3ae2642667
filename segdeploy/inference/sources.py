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
    (`dataset.is_litter`). What stands in a list is an image whatever its ending, and so is a folder below an input
    that cannot be looked into: they fail when they are read. `leave_out` is the folder of the masks: what an earlier
    run wrote there, or into the folders of other outputs beside it, is not looked at. Masks and overlays that segdeploy
    wrote elsewhere count with the others. A path in a list is relative to the list's folder, one of standard input to
    the working directory. `include` and `exclude`: patterns that its name, its path below the input or a folder of
    that path fits, in any case.
    """
    found, seen = SourceList(), set[bytes]()
    skipped = ours = 0
    apart = {os.path.realpath(folder) for folder in outputs.folders(leave_out)}
    may_repeat = len(inputs) > 1 or not Path(inputs[0]).is_dir()  # one folder names each file once
    for source, is_listed in _each(inputs, apart):
        is_image = is_listed or PurePath(source.relative).suffix.lower() in images.EXTENSIONS
        if not is_image or not is_wanted(source, include, exclude):
            skipped += 1
        elif images.is_ours(source.path):
            ours += 1
        elif not may_repeat:
            found.append(source)
        elif (digest := _digest(source)) not in seen:
            seen.add(digest)
            found.append(source)
    if not found and ours:
        raise InvalidRequestError(
            f"there is nothing but masks and overlays of segdeploy in {', '.join(inputs)}.",
            "Name the photographs that they were made of.",
        )
    if not found:
        where = ", ".join("standard input" if named == "-" else named for named in inputs)
        if include or exclude:
            raise InvalidRequestError(
                f"--include and --exclude leave no image of {where}.",
                "Patterns are held against the name of a file, its path below the input, and the folders of that path.",
            )
        raise InvalidRequestError(
            f"there are no images in {where}.", f"Known endings: {' '.join(sorted(images.EXTENSIONS))}."
        )
    return found, skipped + ours


def _digest(source: Source) -> bytes:
    """Of its whole path: `..` goes, links stay."""
    return hashlib.blake2b(os.fsencode(os.path.abspath(source.path)), digest_size=16).digest()  # noqa: PTH100


def is_wanted(source: Source, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a pattern to include fits (or there is none), and none to exclude."""
    return (not include or _fits(source.relative, include)) and not _fits(source.relative, exclude)


def _fits(relative: str, patterns: Sequence[str]) -> bool:
    path = PurePath(relative.lower())
    texts = {str(path), path.name, *(text for folder in path.parents for text in (str(folder), folder.name))}
    plain = [pattern.lower().rstrip("/") for pattern in patterns]
    return any(fnmatch.fnmatchcase(text, pattern) for pattern in plain for text in texts)


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


def _each(inputs: Iterable[str], apart: set[str]) -> Iterator[tuple[Source, bool]]:
    """Every file below the inputs, and whether it counts as an image whatever its ending."""
    for named in inputs:
        path = Path(named)
        if named == "-":
            yield from ((source, True) for source in _rooted(_from_standard_input()))
        elif path.is_dir():
            yield from _walked(path, apart)
        elif path.suffix.lower() == ".txt" and path.is_file():
            yield from ((source, True) for source in _rooted([path.parent / line for line in dataset.read_list(path)]))
        elif path.is_file():
            yield Source(str(path.parent), path.name), False
        else:
            yield from ((source, False) for source in _globbed(named, apart))


def _walked(root: Path, apart: set[str]) -> Iterator[tuple[Source, bool]]:
    _require_outside(root, apart)
    closed: list[str] = []
    for folder, folders, files in os.walk(root, onerror=lambda error: closed.append(_closed(root, error))):
        named = (name for name in folders if not dataset.is_litter(name))
        folders[:] = sorted(name for name in named if os.path.realpath(Path(folder, name)) not in apart)
        below = PurePath(folder).relative_to(root)
        kept = sorted(name for name in files if not dataset.is_litter(name))
        yield from ((Source(str(root), str(below / name)), False) for name in kept)
    yield from ((Source(str(root), relative), True) for relative in closed)


def _closed(root: Path, error: OSError) -> str:
    """A folder that cannot be looked into, below the root. Raise InvalidFileError for the root itself."""
    relative = os.path.relpath(error.filename, root)
    if relative == ".":
        raise InvalidFileError(f"cannot read the folder {error.filename}: {error.strerror}.", "Check its permissions.")
    return relative


def _require_outside(root: Path, apart: set[str]) -> None:
    if os.path.realpath(root) in apart:
        raise InvalidRequestError(
            f"{root} is where the masks go: the next run would take them for photographs.", "Give another --out."
        )


def _from_standard_input() -> list[Path]:
    """Names of any bytes, one a line, or behind a NUL where there is one (`find -print0`)."""
    if sys.stdin is None:
        raise InvalidRequestError("there is no standard input.", "Give the names in a .txt list.")
    text = sys.stdin.buffer.read()
    return [Path(os.fsdecode(name)) for name in text.split(b"\0" if b"\0" in text else b"\n") if name]


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
