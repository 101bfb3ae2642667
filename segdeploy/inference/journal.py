"""What was made of which file, one line an image, in OUT/.segdeploy: a run that was stopped goes on where it stood."""

import array
import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from segdeploy import artifact, locks
from segdeploy.errors import InvalidRequestError
from segdeploy.inference.options import Shard
from segdeploy.paths import shown

FOLDER, NAME = ".segdeploy", "journal.jsonl"
_SYNC_S = 1.0  # at most so much work is lost when the power goes
_SPARE_LINES = 1000  # replaced lines that a journal may hold besides as many as it has images


@dataclasses.dataclass(frozen=True, slots=True)
class FileState:
    """A file as it was when it was read or written; times in nanoseconds.

    An object of a store has no inode and no times, but an ETag.
    """

    sha256: str
    size: int
    inode: int
    ctime_ns: int
    mtime_ns: int
    etag: str = ""

    @classmethod
    def of(cls, path: Path, sha256: str | None = None) -> "FileState | None":
        """None where there is no regular file that can be read. `sha256`, where it is known."""
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
                return None
            with path.open("rb") as file:
                facts = os.fstat(file.fileno())
                found = sha256 or hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError):
            return None
        return cls(found, facts.st_size, facts.st_ino, facts.st_ctime_ns, facts.st_mtime_ns)

    def row(self) -> tuple[str | int, ...]:
        """Its fields in their order; a journal holds two of these a line. The ETag is there where it is one."""
        return (self.sha256, self.size, self.inode, self.ctime_ns, self.mtime_ns) + (self.etag,) * bool(self.etag)

    def now(self, path: Path, *, verify: bool = False) -> "FileState | None":
        """The state of a file that still has these bytes; None where it has not, or is gone.

        It is read where its inode or a time is another, or with `verify`.
        """
        try:
            facts = path.stat()
        except (OSError, ValueError):
            return None
        if facts.st_size != self.size:
            return None
        seen = FileState(self.sha256, facts.st_size, facts.st_ino, facts.st_ctime_ns, facts.st_mtime_ns)
        if seen == self and not verify:
            return seen
        read = FileState.of(path)
        return read if read is not None and read.sha256 == self.sha256 else None

    def looks_like(self, path: Path) -> bool:
        """Whether a file has this size and time, as another machine sees it too; numbers of files may differ there."""
        try:
            facts = path.stat()
        except (OSError, ValueError):
            return False
        return (facts.st_size, facts.st_mtime_ns) == (self.size, self.mtime_ns)

    def is_still(self, path: Path) -> bool:
        """Whether nobody wrote to the file since; another name for it (a hard link) changes nothing."""
        try:
            facts = path.stat()
        except (OSError, ValueError):
            return False
        return (facts.st_size, facts.st_ino, facts.st_mtime_ns) == (self.size, self.inode, self.mtime_ns)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What became of one image.

    `target`: what its files are called below their folders, without an ending. `made_with`: the digest of the engine
    and of the options that change what is drawn. `written`: the file of each kind of output; `made_as`: the digest of
    the options of a kind that were not the usual ones (`outputs.made_as`). `areas`: pixels of each class, at the
    photograph's size. `failed`: why nothing could be made of it.
    """

    target: str
    source: str
    input: FileState
    made_with: str
    written: Mapping[str, FileState]
    made_as: Mapping[str, str] = dataclasses.field(default_factory=dict)
    areas: tuple[int, ...] = ()
    failed: str | None = None
    seconds: float = 0.0

    def line(self) -> bytes:
        fields = {
            "target": self.target,
            "source": self.source,
            "input": self.input.row(),
            "made_with": self.made_with,
            "written": {kind: state.row() for kind, state in self.written.items()},
            "made_as": dict(self.made_as),
            "areas": list(self.areas),
            "failed": self.failed,
            "seconds": round(self.seconds, 4),
        }
        return json.dumps(fields, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes) -> "Entry | None":
        """None for what is no whole line of ours: its image is done again. Fields of later versions are passed over."""
        try:
            fields = {name: value for name, value in json.loads(line).items() if name in _FIELDS}
            for name in ("input", "written"):
                fields[name] = _states(fields[name])
            entry = msgspec.convert(fields, cls)
            os.fsencode(entry.target)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        return entry


_FIELDS = {field.name for field in dataclasses.fields(Entry)}
_STATE = [field.name for field in dataclasses.fields(FileState)]


def _states(rows: Any) -> Any:  # noqa: ANN401 - of a JSON document: a row, or rows by kind
    if isinstance(rows, dict):
        return {kind: _states(row) for kind, row in rows.items()}
    return dict(zip(_STATE[: max(len(rows), len(_STATE) - 1)], rows, strict=True))


class Journal:
    """The lines of one folder: where each image's latest stands is held in 24 bytes, and lines are added one by one.

    A line is with the system once it is added, and on the disk a second later, with the next, or once the journal is
    closed. A last line that was cut off is taken away. It serves several threads.
    """

    def __init__(self, path: Path, *, writes: bool) -> None:
        self._path = path
        self._writes = writes
        self._lock = threading.Lock()
        self._synced = time.monotonic()
        self._file: int | None = None
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND if writes else os.O_RDONLY
            self._file = os.open(path, flags | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            if writes:
                raise
        self._hashes, self._starts, self._lengths = _no_lines()
        if self._file is not None:
            self._read()

    def _read(self) -> None:
        hashes, starts, lengths = array.array("Q"), array.array("q"), array.array("q")
        end = 0
        with self._path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    if (entry := Entry.of(line)) is not None:
                        hashes.append(_hash(entry.target))
                        starts.append(end)
                        lengths.append(len(line))
                    end += len(line)
        if self._writes and self._file is not None:
            os.truncate(self._file, end)
        self._end = end
        if hashes:
            found = np.array(hashes, np.uint64)
            order = np.argsort(found, kind="stable")  # of one image's lines, the latest is the last
            self._hashes, self._starts, self._lengths = (
                found[order],
                np.array(starts, np.int64)[order],
                np.array(lengths, np.int64)[order],
            )

    @property
    def is_long(self) -> bool:
        """Whether more than half of its lines are replaced by later ones of the same image."""
        images = len(np.unique(self._hashes))
        return len(self._hashes) - images > images + _SPARE_LINES

    def get(self, target: str) -> Entry | None:
        """The latest line of an image that was there when the journal was opened."""
        if not len(self._hashes):
            return None
        wanted = np.uint64(_hash(target))
        place = int(np.searchsorted(self._hashes, wanted, side="right")) - 1
        while place >= 0 and self._hashes[place] == wanted and self._file is not None:
            line = os.pread(self._file, int(self._lengths[place]), int(self._starts[place]))
            if (entry := Entry.of(line)) is not None and entry.target == target:
                return entry
            place -= 1
        return None

    def latest(self) -> Iterator[bytes]:
        """The latest line of each image, in the order of the journal."""
        last = np.append(self._hashes[1:] != self._hashes[:-1], True)
        for place in np.flatnonzero(last)[np.argsort(self._starts[last])]:
            if self._file is not None:
                yield os.pread(self._file, int(self._lengths[place]), int(self._starts[place]))

    def add(self, entry: Entry) -> None:
        """Raise SegdeployError where it cannot be written; then the journal is as it was before."""
        if self._file is None or not self._writes:
            raise ValueError("this journal is only read")
        line = entry.line()
        with self._lock:
            try:
                written = os.write(self._file, line)
                if written != len(line):
                    written += os.write(self._file, line[written:])
            except OSError as error:
                os.truncate(self._file, self._end)
                raise artifact.cannot_write(self._path, error) from error
            self._end += written
            if time.monotonic() - self._synced > _SYNC_S:
                self._synced = time.monotonic()
                self._sync()

    def _sync(self) -> None:
        if self._file is not None and self._writes:
            try:
                os.fsync(self._file)
            except OSError as error:
                raise artifact.cannot_write(self._path, error) from error

    def close(self) -> None:
        """Raise SegdeployError where what was added cannot be brought to the disk."""
        if self._file is not None:
            self._sync()
            os.close(self._file)
            self._file = None


def folder(out: Path, shard: Shard) -> Path:
    """Where the journal and the reports of a run lie: no output, and never looked into for images."""
    return out / FOLDER / shard.folder if shard.count > 1 else out / FOLDER


@contextlib.contextmanager
def opened(out: Path, shard: Shard) -> Iterator[Journal]:
    """The journal of a run, for this process alone. Raise InvalidRequestError where another is at work there.

    Shards may work beside one another, and a run of everything beside none. Where a file system knows no locks, nobody
    can tell.
    """
    place = folder(out, shard)
    with contextlib.ExitStack() as stack:
        try:
            place.mkdir(parents=True, exist_ok=True)
            whole = out / FOLDER / "lock"
            if shard.count > 1:
                stack.enter_context(locks.shared(whole))
                stack.enter_context(locks.owned(place / "lock", is_required=False))
            else:
                stack.enter_context(locks.owned(whole, is_required=False))
            journal = Journal(place / NAME, writes=True)
        except BlockingIOError as error:
            raise InvalidRequestError(
                f"another run writes into {shown(out)}.", "Wait for it, or give this run another --out or --shard."
            ) from error
        except OSError as error:
            raise artifact.cannot_write(place, error) from error
        stack.callback(journal.close)
        if journal.is_long:
            journal = _shortened(journal, place / NAME)
            stack.callback(journal.close)
        yield journal


@contextlib.contextmanager
def others(out: Path, shard: Shard) -> Iterator[list[Journal]]:
    """The journals of other divisions of the same output, as they stand."""
    mine = folder(out, shard) / NAME
    found = [path for path in [*sorted((out / FOLDER).glob(f"*/{NAME}")), out / FOLDER / NAME] if path != mine]
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(only_read(path.parent)) for path in found if path.is_file()]


@contextlib.contextmanager
def only_read(place: Path) -> Iterator[Journal]:
    """The journal in a folder as it stands; nothing is written."""
    journal = Journal(place / NAME, writes=False)
    try:
        yield journal
    finally:
        journal.close()


def _shortened(journal: Journal, path: Path) -> Journal:
    with artifact.replacing(path) as temporary, temporary.open("wb") as file:
        file.writelines(journal.latest())
    journal.close()
    return Journal(path, writes=True)


def _no_lines() -> tuple[Any, Any, Any]:
    return np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64)


def _hash(target: str) -> int:
    return int.from_bytes(hashlib.blake2b(target.encode("utf-8", "surrogateescape"), digest_size=8).digest())
