"""What a run is to make, divided: which images, under which names, and what writes each kind of output."""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath

from segdeploy import artifact, images
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.inference import journal, naming
from segdeploy.inference.journal import FileState
from segdeploy.inference.naming import Place
from segdeploy.inference.options import FOLDER, FolderOptions
from segdeploy.inference.outputs import (
    USUAL,
    Huge,
    Output,
    OutputOptions,
    RowWriter,
    Segmented,
    folder,
    load,
    made_as,
    require,
)
from segdeploy.inference.report import Failure, OutputFolder
from segdeploy.inference.source_list import Source, SourceList
from segdeploy.inference.sources import require_spared
from segdeploy.paths import shown

_MARKED = {".png", ".jpg"}  # files of these say that segdeploy wrote them


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a run is to make: of which images, where, with which digest of engine and options.

    `outputs` names what is written of each image: masks go into `out`, the rest into folders beside it. `names`:
    `stem` calls them `a/x.png` for `a/x.jpg`, `full` `a/x.jpg.png`; of two images that would share a name, the first is
    done. `output_options`: how the outputs are made.
    """

    sources: SourceList
    out: Path
    made_with: str
    outputs: Sequence[str] = ("mask",)
    names: str = naming.STEM
    options: FolderOptions = FOLDER
    output_options: OutputOptions = USUAL

    def target(self, source: Source) -> str:
        """What the files of an image are called below their folders, without an ending."""
        return str(naming.target(source, self.names))

    @property
    def journal_folder(self) -> Path:
        """Where the journal and the reports of this run lie."""
        return journal.folder(self.out, self.options.part)


@dataclasses.dataclass(frozen=True, slots=True)
class Writer:
    """One kind of output of a run: where its files go, what encodes them, and the digest of the options for that."""

    kind: OutputFolder
    output: Output
    made_as: str

    @property
    def place(self) -> Place:
        return Place(Path(self.kind.folder), self.output.SUFFIX)

    @property
    def takes_rows(self) -> bool:
        """Whether it makes a file of an image too large for memory."""
        return hasattr(self.output, "rows")

    @property
    def shrinks(self) -> bool:
        """Whether a smaller picture of such an image does."""
        return bool(getattr(self.output, "SHRINKS", False))

    @property
    def shows_photo(self) -> bool:
        return bool(getattr(self.output, "SHOWS_PHOTO", True))

    def write(self, target: PurePath, segmented: Segmented, *, is_known: bool) -> FileState:
        """The state of the file that was written.

        Raise InvalidRequestError where a file of that name is there that segdeploy did not write (`is_known`: the
        journal names it), InvalidFileError where the file is not there once it is written.
        """
        path = self._free(target, is_known=is_known)
        data = self.output.encode(segmented)
        artifact.write_atomically(path, data)
        return _state(path, hashlib.sha256(data).hexdigest(), len(data))

    def _free(self, target: PurePath, *, is_known: bool) -> Path:
        path = self.place.file(target)
        is_there = os.path.isfile(path)  # noqa: PTH113 - False for a name that no file can have
        if is_there and not is_known and self.output.SUFFIX in _MARKED and not images.is_ours(path):
            raise InvalidRequestError(
                f"{shown(path)} is there, and segdeploy did not write it.", "Give another --out, or move it away."
            )
        return path

    @contextlib.contextmanager
    def in_rows(self, target: PurePath, huge: Huge, *, is_known: bool) -> Iterator["Rows"]:
        """The same for a class map that comes in rows; the state is there when the block has ended well."""
        path = self._free(target, is_known=is_known)
        with artifact.replacing(path) as temporary:
            rows = Rows(self.output.rows(temporary, huge))  # type: ignore[attr-defined]
            try:
                yield rows
                rows.writer.end()
            finally:
                rows.writer.close()
            with temporary.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = temporary.stat().st_size
        rows.state = _state(path, digest, size)


@dataclasses.dataclass(slots=True)
class Rows:
    """A file that is written in rows, and its state once it is there."""

    writer: RowWriter
    state: FileState | None = None


def require_still(source: Source, read: FileState | None) -> None:
    """Raise InvalidRequestError where a file changed since its digest was taken."""
    if read is not None and not read.is_still(source.path):
        raise InvalidRequestError(
            f"{shown(source.path)} changed while it was read.", "Run again when nobody writes to it."
        )


def _state(path: Path, sha256: str, size: int) -> FileState:
    written = FileState.of(path, sha256)
    if written is None or written.size != size:
        raise InvalidFileError(
            f"{shown(path)} was taken away or written to at once.", "Run again when nobody else writes there."
        )
    return written


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """A task, divided: this shard's images, those that come too late for their names, and what writes each kind."""

    task: Task
    writers: Mapping[str, Writer]
    sources: SourceList
    too_late: Sequence[Failure]

    @classmethod
    def of(cls, task: Task) -> "Work":
        """Raise InvalidRequestError where a mask would replace a photograph."""
        writers = {
            kind: Writer(OutputFolder(kind, folder(task.out, kind)), load(kind), made_as(kind, task.output_options))
            for kind in require(task.outputs)
        }
        places = [writer.place for writer in writers.values()]
        kept, too_late = naming.divided(task.sources, places, naming.require(task.names))
        require_spared(kept, (place.file(naming.target(source, task.names)) for source in kept for place in places))
        part = task.options.part
        own = kept if part.count == 1 else SourceList(each for each in kept if part.has(task.target(each)))
        return cls(task, writers, own, [each.failure for each in too_late if part.has(task.target(each.source))])

    @property
    def places(self) -> dict[str, Place]:
        return {kind: writer.place for kind, writer in self.writers.items()}
