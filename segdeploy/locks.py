"""Files that one process owns at a time. The lock (flock) ends with the process, however that ends."""

import contextlib
import errno
import fcntl
import functools
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

PART = re.compile(r"\.[0-9a-f]{16}\.part")
_UNKNOWN = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # what a file system without locks says


@contextlib.contextmanager
def owned(path: Path, *, is_required: bool = True) -> Iterator[None]:
    """Own `path`, an empty file that is there while it is owned. Raise BlockingIOError where another process owns it.

    Raise OSError where it cannot be made, or where the file system knows no locks; without `is_required`
    all go on there, for nobody can tell who owns it.
    """
    descriptor = _locked(path, os.O_CREAT, fcntl.LOCK_EX | fcntl.LOCK_NB, is_required=is_required)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock ends: nobody loses a file that is his by then
        os.close(descriptor)


@contextlib.contextmanager
def shared(path: Path) -> Iterator[None]:
    """Hold `path` beside others that share it. Raise BlockingIOError where one owns it; the file stays.

    Where the file system knows no locks, all go on.
    """
    descriptor = _locked(path, os.O_CREAT, fcntl.LOCK_SH | fcntl.LOCK_NB, is_required=False)
    try:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def part(folder: Path) -> Iterator[Path]:
    """An empty file of a new name in the folder, to write to; it is removed at the end, if it still has that name.

    What killed processes left of such files in that folder is removed first, once in a process.
    """
    _sweep(os.path.realpath(folder))
    path = folder / f".{secrets.token_hex(8)}.part"  # no process number: containers share both it and disks
    descriptor = _locked(path, os.O_CREAT | os.O_EXCL, fcntl.LOCK_EX, is_required=False)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path, flags: int, how: int, *, is_required: bool = True) -> int:
    """A descriptor that holds the lock of the file that has this name then: the owner before may have removed it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o666)
        try:
            _lock(descriptor, how, is_required=is_required)
            if _is_named(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, how: int, *, is_required: bool) -> None:
    try:
        fcntl.flock(descriptor, how)
    except OSError as error:
        if is_required or error.errno not in _UNKNOWN:
            raise


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        named = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(descriptor))


@functools.cache
def _sweep(folder: str) -> None:
    """Remove the parts that no process owns; where the file system knows no locks, nobody can tell, and all stay."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if PART.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_unowned(Path(entry.path))


def _remove_unowned(path: Path) -> None:
    descriptor = _locked(path, 0, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        path.unlink()
    finally:
        os.close(descriptor)
