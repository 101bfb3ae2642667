"""A folder of photographs becomes a folder of masks: every file answered for, nothing half written."""

import dataclasses
import glob
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from segdeploy import artifact, images
from segdeploy.data import dataset
from segdeploy.engines import Engine
from segdeploy.errors import InvalidFileError, InvalidRequestError, SegdeployError

SCHEMA = 1
STEPS = ("read", "resize", "engine", "write")
POLL_S = 0.01


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """One file to segment: where it lies, and its path below what the user named (its mask's path below `out`)."""

    root: str
    relative: str

    @property
    def path(self) -> Path:
        return Path(self.root, self.relative)


@dataclasses.dataclass(slots=True)
class Summary:
    """What became of every file."""

    out: Path
    done: int = 0
    skipped: int = 0
    failed: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False
    cpu_s: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))
    failed_s: float = 0.0  # CPU seconds of files that failed

    def give_engine_the_rest(self, process_s: float) -> None:
        """What the process spent and no other step did: runtimes compute in threads of their own."""
        others = sum(spent for step, spent in self.cpu_s.items() if step != "engine")
        self.cpu_s["engine"] = max(self.cpu_s["engine"], process_s - others - self.failed_s)

    def report(self) -> dict[str, Any]:
        each = {step: 1000 * spent / self.done if self.done else None for step, spent in self.cpu_s.items()}
        return {
            "schema": SCHEMA,
            "done": self.done,
            "skipped": self.skipped,
            "failed": [{"path": path, "reason": reason} for path, reason in sorted(self.failed)],
            "seconds": self.seconds,
            "images_per_s": self.done / self.seconds if self.seconds else 0.0,
            "cpu_ms_per_image": each,
            "cores": len(os.sched_getaffinity(0)),
            "interrupted": self.interrupted,
            "out": str(self.out),
        }


def find(inputs: Iterable[str], *, leave_out: Path) -> tuple[list[Source], int]:
    """Every image below the inputs (a folder, a file, a glob, or a .txt with a path a line), and how many others.

    Folders are walked in the order of names, without following links to folders; what lies in `leave_out` (the masks
    of an earlier run) or in its overlays is not looked at. A path in a list is relative to the list's folder.
    """
    found: dict[str, Source] = {}
    skipped = 0
    apart = {os.path.realpath(folder) for folder in (leave_out, overlay_folder(leave_out))}
    for source in _each(inputs, apart):
        if PurePath(source.relative).suffix.lower() in images.EXTENSIONS:
            found.setdefault(os.path.abspath(source.path), source)  # noqa: PTH100 - `..` goes, links stay
        else:
            skipped += 1
    if not found:
        raise InvalidRequestError(
            f"there are no images in {', '.join(inputs)}.", f"Known endings: {' '.join(sorted(images.EXTENSIONS))}."
        )
    return list(found.values()), skipped


def run(engine: Engine, sources: Sequence[Source], out: Path, *, overlay: bool, done: Callable[[], None]) -> Summary:
    """Segment every source into `out`, one worker for each core; `done` is called after each, failed or not.

    A file that cannot be read is noted and the rest goes on; a folder that cannot be written to ends the run with its
    error. Ctrl-C ends it after the images at work; what is written stays.
    """
    job = _Job(engine, sources, out, overlay=overlay, done=done)
    started, spent_before = time.monotonic(), time.process_time()
    workers = [threading.Thread(target=job.work) for _ in os.sched_getaffinity(0)]
    try:
        for worker in workers:
            worker.start()
        job.wait_for(workers)
    except KeyboardInterrupt:
        job.summary.interrupted = True
        job.stop.set()
        job.wait_for(workers)
    job.summary.seconds = time.monotonic() - started
    job.summary.give_engine_the_rest(time.process_time() - spent_before)
    if job.fatal is not None:
        raise job.fatal
    return job.summary


def overlay_folder(out: Path) -> Path:
    """Beside the masks: a folder of masks holds masks only."""
    return Path(f"{os.path.abspath(out)}-overlays")  # noqa: PTH100 - `..` goes, links stay


class _Job:
    def __init__(
        self,
        engine: Engine,
        sources: Sequence[Source],
        out: Path,
        *,
        overlay: bool,
        done: Callable[[], None],
    ) -> None:
        self.engine = engine
        self.overlays = overlay_folder(out) if overlay else None
        self.done = done
        self.summary = Summary(out)
        targets = _targets(sources)
        _require_spared(sources, itertools.chain.from_iterable(map(self._files, targets)))
        self.targets = zip(sources, targets, strict=True)
        self.stop = threading.Event()
        self.fatal: BaseException | None = None
        self._lock = threading.Lock()
        self._ended: list[None] = []
        self._engine_lock = threading.Semaphore(os.cpu_count() or 1 if engine.concurrent else engine.in_flight)

    def wait_for(self, workers: Sequence[threading.Thread]) -> None:
        """Wait until every worker that was started has ended.

        Not by `Thread.join`: in Python 3.11, Ctrl-C inside it can mark a thread as ended that still runs.
        """
        while len(self._ended) < sum(worker.ident is not None for worker in workers):
            time.sleep(POLL_S)

    def work(self) -> None:
        """Take sources until none is left."""
        try:
            self._take()
        finally:
            self._ended.append(None)

    def _take(self) -> None:
        while not self.stop.is_set():
            with self._lock:
                source, target = next(self.targets, (None, None))
            if source is None or target is None:
                return
            try:
                self._one(source, target)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                self.fatal = error
                self.stop.set()
                return
            self.done()

    def _one(self, source: Source, target: PurePath) -> None:
        clock = _Clock()
        try:
            pictures = self._drawn(source, clock)
        except (SegdeployError, MemoryError) as error:
            with self._lock:
                self.summary.failed.append((str(source.path), _reason(error, source.path)))
                self.summary.failed_s += clock.total()
            return
        for path, picture in zip(self._files(target), pictures, strict=True):
            artifact.write_atomically(path, picture)
        clock.stop("write")
        with self._lock:
            self.summary.done += 1
            for step, spent in clock.spent.items():
                self.summary.cpu_s[step] += spent

    def _drawn(self, source: Source, clock: "_Clock") -> list[bytes]:
        """What goes into the files of `_files`, encoded."""
        photo = images.read(source.path)
        clock.stop("read")
        image = images.prepared(photo, self.engine.spec)
        clock.stop("resize")
        with self._engine_lock:
            class_map = self.engine.classify(image[None])[0]
        clock.stop("engine")
        height, width, _ = photo.shape
        mask = images.to_photo_size(class_map, height=height, width=width)
        clock.stop("resize")
        colours = self.engine.spec.colours
        encoded = [images.mask_png(mask, colours)]
        return encoded if self.overlays is None else [*encoded, images.overlay_jpeg(photo, mask, colours)]

    def _files(self, target: PurePath) -> list[Path]:
        mask = self.summary.out / f"{target}.png"
        return [mask] if self.overlays is None else [mask, self.overlays / f"{target}.jpg"]


class _Clock:
    """CPU seconds of this thread, by step."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(STEPS, 0.0)
        self._since = time.thread_time()

    def total(self) -> float:
        return sum(self.spent.values()) + time.thread_time() - self._since

    def stop(self, step: str) -> None:
        now = time.thread_time()
        self.spent[step] += now - self._since
        self._since = now


def _reason(error: BaseException, path: Path) -> str:
    return error.what if isinstance(error, SegdeployError) else f"{path} is too large for the memory there is."


def _targets(sources: Sequence[Source]) -> list[PurePath]:
    """Where each mask goes: the image's path without its ending, or with it where two images would share a mask."""
    stems = Counter(_stem(source) for source in sources)
    targets = [_stem(source) if stems[_stem(source)] == 1 else source.relative for source in sources]
    first: dict[str, Source] = {}
    for source, target in zip(sources, targets, strict=True):
        other = first.setdefault(target, source)
        if other is not source:
            raise InvalidRequestError(
                f"{other.path} and {source.path} would both be written to {target}.png.",
                "Run them one after the other, each with its own --out.",
            )
    return [PurePath(target) for target in targets]


def _require_spared(sources: Sequence[Source], written: Iterable[Path]) -> None:
    inputs = {_identity(source.path) for source in sources} - {None}
    for path in written:
        if _identity(path) in inputs:
            raise InvalidRequestError(
                f"{path} is a photograph to read; its mask would replace it.", "Give another --out."
            )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _stem(source: Source) -> str:
    return source.relative[: -len(PurePath(source.relative).suffix)]


def _each(inputs: Iterable[str], apart: set[str]) -> Iterator[Source]:
    for named in inputs:
        path = Path(named)
        if path.is_dir():
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
        folders[:] = sorted(name for name in folders if os.path.realpath(Path(folder, name)) not in apart)
        below = PurePath(folder).relative_to(root)
        yield from (Source(str(root), str(below / name)) for name in sorted(files))


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
