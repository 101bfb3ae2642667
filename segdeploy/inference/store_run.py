"""A run from store to store: each image is fetched, segmented as any file, and its outputs are put where they belong.

A folder of this machine, the mirror, holds what is at work; the journal is kept in the store, in parts that are added.
"""

import contextlib
import dataclasses
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath

from segdeploy import cores, images
from segdeploy.data import dataset
from segdeploy.engines import Engine
from segdeploy.errors import InvalidRequestError
from segdeploy.inference import journal, outputs, sources, store_lock, stores
from segdeploy.inference.journal import Entry, FileState, Journal
from segdeploy.inference.maker import Clock, Made
from segdeploy.inference.options import FolderOptions
from segdeploy.inference.report import Failure, OutputFolder, Report
from segdeploy.inference.resuming import Resuming, Standing
from segdeploy.inference.run import Job
from segdeploy.inference.source_list import Source, SourceList
from segdeploy.inference.store_lock import Lock
from segdeploy.inference.stores import GoneError, Prefix, TakenError
from segdeploy.inference.work import Work
from segdeploy.paths import shown

OUT = "out"
PARTS = "journal"
COMMIT_S = 2.0  # between two parts of the journal: so much is done again after a kill
THREADS = 4  # for each core: most of them wait for the store
LONGEST_NAME = 255
log = logging.getLogger("segdeploy")


class Mirror:
    """Paths of this machine that stand for objects: `url` says which, `etags` what they were when they were listed."""

    def __init__(self, folder: Path, out: Prefix) -> None:
        self.folder = folder
        self.out = folder / OUT
        self.prefixes = {outputs.folder(self.out, kind).name: _beside(out, self.out, kind) for kind in outputs.names()}
        self.outs = tuple(self.prefixes.values())
        self.etags: dict[str, str] = {}

    def place(self, path: Path) -> tuple[Prefix, str]:
        """The prefix and the name of an object."""
        top, *rest = path.relative_to(self.folder).parts
        return self.prefixes[top], "/".join(rest)

    def url(self, path: Path) -> str:
        where, name = self.place(path)
        return where.url_of(name)

    def is_listed(self, url: str) -> bool:
        """Whether an object of that URL was there when the run began."""
        tops = {top: where for top, where in self.prefixes.items() if url.startswith(f"{where.url}/")}
        return any(str(self.folder / top / url[len(where.url) + 1 :]) in self.etags for top, where in tops.items())

    def named(self, text: str) -> str:
        """A text that names paths here, with the URLs that they stand for."""
        for top in sorted(self.prefixes, key=len, reverse=True):
            text = text.replace(str(self.folder / top), self.prefixes[top].url)
        return text

    def report(self, report: Report) -> Report:
        """The same with URLs."""
        return dataclasses.replace(
            report,
            failed=tuple(map(self._failure, report.failed)),
            failed_before=tuple(map(self._failure, report.failed_before)),
            outputs=tuple(OutputFolder(each.kind, self.named(str(each.folder))) for each in report.outputs),
            out=self.named(str(report.out)),
            kept=self.named(str(report.kept)),
        )

    def _failure(self, failure: Failure) -> Failure:
        return Failure(self.named(failure.path), self.named(failure.reason))


def _beside(out: Prefix, local: Path, kind: str) -> Prefix:
    return out.beside(outputs.folder(local, kind).name.removeprefix(local.name))


def require(inputs: Sequence[str], out: str, folder: FolderOptions) -> None:
    """Raise InvalidRequestError for what a run with stores cannot do."""
    files = [each for each in (*inputs, out) if not stores.is_url(each)]
    if files:
        raise InvalidRequestError(
            f"{files[0]} is no URL of a store, and another one is.",
            "Images and --out are both in stores, or neither is; --out s3://bucket/masks.",
        )
    if folder.ray is not None:
        raise InvalidRequestError("Ray's actors share files, not stores.", "Use --shard on each machine.")
    if folder.verify:
        raise InvalidRequestError("--verify reads files.", "Leave it out: in a store each write gives another ETag.")


@contextlib.contextmanager
def mirrored(out: str) -> Iterator[Mirror]:
    """A mirror in a temporary folder, with the journals of the output."""
    folder = Path(tempfile.mkdtemp(prefix="segdeploy-"))
    try:
        mirror = Mirror(folder, stores.prefix(out))
        for top, where in mirror.prefixes.items():
            mirror.etags.update((str(folder / top / name), etag) for name, etag in where.listed() if _is_plain(name))
        _read_journals(mirror)
        yield mirror
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read_journals(mirror: Mirror) -> None:
    parts = [path for path in sorted(mirror.etags) if PurePath(path).parent.name == PARTS and ".segdeploy" in path]
    for path in map(Path, parts):
        where, name = mirror.place(path)
        with contextlib.suppress(GoneError):
            data, _ = where.read(name)
            path.parent.parent.mkdir(parents=True, exist_ok=True)
            with (path.parent.parent / journal.NAME).open("ab") as file:
                file.write(data if data.endswith(b"\n") else data + b"\n")


def find(mirror: Mirror, inputs: Sequence[str], folder: FolderOptions) -> tuple[SourceList, int]:
    """As `sources.find`, for URLs of folders and of images. What lies where outputs go, below a folder, is left out."""
    found, skipped, seen = SourceList(), 0, set[str]()
    for index, url in enumerate(inputs):
        where, listed = _listed(stores.prefix(url), tuple(f"{each.url}/" for each in mirror.outs))
        top = f"in{index}"
        mirror.prefixes[top] = where
        for name, etag in sorted(listed, key=lambda each: _order(each[0])):
            source, whole = Source(str(mirror.folder / top), name), where.url_of(name)
            if whole in seen or any(map(dataset.is_litter, PurePosixPath(name).parts)):
                continue
            seen.add(whole)
            is_image = PurePosixPath(name).suffix.lower() in images.EXTENSIONS
            if not is_image or not sources.is_wanted(source, folder.include, folder.exclude):
                skipped += 1
                continue
            _require_plain(name, whole)
            mirror.etags[str(source.path)] = etag
            found.append(source)
    if not found:
        raise InvalidRequestError(
            f"there are no images in {', '.join(inputs)}.", f"Known endings: {' '.join(sorted(images.EXTENSIONS))}."
        )
    return found, skipped


def _listed(where: Prefix, outs: tuple[str, ...]) -> tuple[Prefix, Sequence[tuple[str, str]]]:
    """The folder of an input, and names and ETags of what it names there: one image, or all that is below."""
    if _has_name(where.url) and (version := where.version("")) is not None:
        parent, _, name = where.url.rpartition("/")
        return Prefix(parent), [(name, version.etag)]
    if f"{where.url}/".startswith(outs):
        raise InvalidRequestError(
            f"{where.url} is where the masks go: the next run would take them for photographs.", "Give another --out."
        )
    return where, [each for each in where.listed() if not where.url_of(each[0]).startswith(outs)]


def _has_name(url: str) -> bool:
    return PurePosixPath(url).suffix.lower() in images.EXTENSIONS


def _order(name: str) -> list[tuple[bool, str]]:
    """Files of a folder before its folders, as a folder is walked: of two that share a name the same one is first."""
    *folders, file = name.split("/")
    return [*((True, part) for part in folders), (False, file)]


def _is_plain(name: str) -> bool:
    parts = name.split("/")
    is_short = all(0 < len(part.encode("utf-8", "surrogateescape")) <= LONGEST_NAME for part in parts)
    return is_short and "\0" not in name and not {".", ".."} & set(parts)


def _require_plain(name: str, url: str) -> None:
    if not _is_plain(name):
        raise InvalidRequestError(
            f"{shown(url)} has a name that no file can have.", f"Leave it out: --exclude '{shown(name)}'"
        )


def require_spared(mirror: Mirror, work: Work) -> None:
    """Raise InvalidRequestError where an output would replace a photograph."""
    photographs = {mirror.url(source.path) for source in work.sources}
    for source in work.sources:
        target = PurePath(work.task.target(source))
        for place in work.places.values():
            url = mirror.url(place.file(target))
            if url in photographs:
                raise InvalidRequestError(
                    f"{url} is a photograph to read; its mask would replace it.", "Give another --out."
                )


@contextlib.contextmanager
def locked(mirror: Mirror, folder: FolderOptions) -> Iterator[Lock]:
    """The output, for this run alone; shards may be at work beside one another."""
    where, part = mirror.prefixes[OUT], folder.part
    whole = f"{journal.FOLDER}/lock"
    if part.count > 1:
        name, others = f"{journal.FOLDER}/{part.folder}/lock", [whole]
    else:
        locks = (each for each, _ in where.listed(journal.FOLDER) if PurePosixPath(each).name == "lock")
        name, others = whole, [each for each in locks if each != whole]
    with store_lock.held(where, name, conflicting=others) as lock:
        yield lock


class StoreResuming(Resuming):
    """The same by ETags: an object is unchanged where it has the ETag with which it was read or written."""

    def __init__(self, mirror: Mirror, kept: Journal, others: Sequence[Journal], work: Work) -> None:
        super().__init__(kept, others, work)
        self._mirror = mirror

    def now(self, state: FileState, path: Path) -> FileState | None:
        return state if state.etag and self._mirror.etags.get(str(path)) == state.etag else None

    def is_of_another(self, entry: Entry, source: Source) -> bool:
        is_other = entry.failed is None and entry.source != self.name(source)
        return is_other and self._mirror.is_listed(entry.source)

    def name(self, source: Source) -> str:
        return self._mirror.url(source.path)


class StoreJob(Job):
    """Fetches an image, has it made here, puts its outputs, and commits the journal every few seconds."""

    def __init__(
        self,
        engine: Engine,
        mirror: Mirror,
        lock: Lock,
        *,
        work: Work,
        resuming: Resuming,
        done: Callable[[], None],
    ) -> None:
        super().__init__(engine, work, resuming, done)
        self._mirror = mirror
        self._held = lock
        self._kept = work.task.journal_folder / journal.NAME
        self._committed = self._kept.stat().st_size
        self._part = _last_part(mirror, work.task.journal_folder / PARTS)
        self._commits = threading.Lock()
        self._commit_at = time.monotonic() + COMMIT_S

    def run(self) -> None:
        try:
            count = self.options.workers or THREADS * cores.usable()
            self.work_on([threading.Thread(target=self._guarded) for _ in range(count)])
        finally:
            self.commit()

    def one(self, source: Source) -> None:
        self._held.require()
        super().one(source)
        if time.monotonic() > self._commit_at:
            self.commit()

    def commit(self) -> None:
        """Add what was noted since to the journal in the store. Raise SegdeployError where another run did."""
        with self._commits:
            self._commit_at = time.monotonic() + COMMIT_S
            with self._kept.open("rb") as file:
                file.seek(self._committed)
                lines = file.read()
            lines = lines[: lines.rfind(b"\n") + 1]
            if not lines:
                return
            self._held.require()
            where, name = self._mirror.place(self._kept.parent / PARTS / f"{self._part + 1:08}.jsonl")
            try:
                where.write(name, lines, where="none")
            except TakenError as error:
                raise InvalidRequestError(
                    f"another run writes its journal into {where.url}.", "Let it end, and run again."
                ) from error
            self._part += 1
            self._committed += len(lines)

    def make(self, source: Source, target: str, standing: Standing, clock: Clock) -> Made | None:
        """With the outputs in the store. Raise SegdeployError where it cannot be reached."""
        where, name = self._mirror.place(source.path)
        try:
            data, version = where.read(name)
        except GoneError:
            return Made(reasons=[f"{where.url_of(name)} cannot be read: it is gone."], spent=clock.spent)
        source.path.parent.mkdir(parents=True, exist_ok=True)
        source.path.write_bytes(data)
        try:
            if images.is_ours(source.path):
                reason = f"{where.url_of(name)} is a mask or an overlay that segdeploy wrote: name the photographs."
                return Made(reasons=[reason], spent=clock.spent)
            made = super().make(source, target, standing, clock)
            return None if made is None else self._put(target, standing, made, version.etag)
        finally:
            source.path.unlink(missing_ok=True)

    def _put(self, target: str, standing: Standing, made: Made, etag: str) -> Made:
        reasons, written = [self._mirror.named(each) for each in made.reasons], dict(made.written)
        for kind in standing.missing:
            if (state := written.pop(kind, None)) is None:
                continue
            path = self.work.places[kind].file(PurePath(target))
            put = self._put_one(path, is_known=kind in standing.ours)
            path.unlink()
            if put is None:
                reasons.append(f"{self._mirror.url(path)} is there, and segdeploy did not write it.")
            else:
                written[kind] = _of_store(state, put)
        read = None if made.read is None or not (written or made.failed) else _of_store(made.read, etag)
        failed = None if made.failed is None else self._mirror.named(made.failed)
        return dataclasses.replace(made, reasons=reasons, written=written, read=read, failed=failed)

    def _put_one(self, path: Path, *, is_known: bool) -> str | None:
        """The ETag of an output that was put; None where something else has its name."""
        where, name = self._mirror.place(path)
        data = path.read_bytes()
        with contextlib.suppress(TakenError):
            return where.write(name, data, where="any" if is_known else "none").etag
        there, version = where.read(name)
        if there == data:
            return version.etag
        path.write_bytes(there)
        if path.suffix in {".png", ".jpg"} and not images.is_ours(path):
            return None
        return where.write(name, data).etag

    def put_reports(self) -> None:
        """What lies beside the journal, with URLs in place of paths."""
        for path in sorted(self._kept.parent.iterdir()):
            if path.is_file() and path.name not in {journal.NAME, "lock"}:
                text = self._mirror.named(path.read_text(encoding="utf-8", errors="surrogateescape"))
                where, name = self._mirror.place(path)
                where.write(name, text.encode("utf-8", "surrogateescape"))


def _of_store(state: FileState, etag: str) -> FileState:
    """Of an object nothing is known but its bytes and its ETag."""
    return FileState(state.sha256, state.size, 0, 0, 0, etag)


def _last_part(mirror: Mirror, folder: Path) -> int:
    where, below = mirror.place(folder)
    numbers = [PurePosixPath(name).stem for name, _ in where.listed(below)]
    return max((int(number) for number in numbers if number.isdigit()), default=0)
