"""A folder of photographs becomes a folder of masks: every file answered for, nothing half written."""

import dataclasses
import glob
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from segdeploy import artifact, images
from segdeploy.engines import Engine
from segdeploy.errors import InvalidFileError, InvalidRequestError, SegdeployError

SCHEMA = 1
STEPS = ("read", "resize", "engine", "write")


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
    of an earlier run) is not looked at. A path in a list is relative to the list's folder.
    """
    found: dict[str, Source] = {}
    skipped = 0
    for source in _each(inputs, leave_out.resolve()):
        if PurePath(source.relative).suffix.lower() in images.EXTENSIONS:
            found.setdefault(str(source.path), source)
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
    job = _Job(engine, zip(sources, _targets(sources), strict=True), out, overlay=overlay, done=done)
    started = time.monotonic()
    workers = [threading.Thread(target=job.work) for _ in os.sched_getaffinity(0)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        job.summary.interrupted = True
        job.stop.set()
        for worker in workers:
            worker.join()
    job.summary.seconds = time.monotonic() - started
    if job.fatal is not None:
        raise job.fatal
    return job.summary


def overlay_folder(out: Path) -> Path:
    """Beside the masks: a folder of masks holds masks only."""
    return out.with_name(f"{out.name}-overlays")


class _Job:
    def __init__(
        self,
        engine: Engine,
        targets: Iterator[tuple[Source, PurePath]],
        out: Path,
        *,
        overlay: bool,
        done: Callable[[], None],
    ) -> None:
        self.engine = engine
        self.targets = targets
        self.overlays = overlay_folder(out) if overlay else None
        self.done = done
        self.summary = Summary(out)
        self.stop = threading.Event()
        self.fatal: BaseException | None = None
        self._lock = threading.Lock()
        self._engine_lock = threading.Semaphore(os.cpu_count() or 1 if engine.concurrent else 1)

    def work(self) -> None:
        """Take sources until none is left."""
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
        except (SegdeployError, MemoryError) as error:
            with self._lock:
                self.summary.failed.append((str(source.path), _reason(error)))
            return
        self._write(photo, mask, target)
        clock.stop("write")
        with self._lock:
            self.summary.done += 1
            for step, spent in clock.spent.items():
                self.summary.cpu_s[step] += spent

    def _write(self, photo: images.UInt8, mask: images.UInt8, target: PurePath) -> None:
        colours = self.engine.spec.colours
        artifact.write_atomically(self.summary.out / f"{target}.png", images.mask_png(mask, colours))
        if self.overlays is not None:
            artifact.write_atomically(self.overlays / f"{target}.jpg", images.overlay_jpeg(photo, mask, colours))


class _Clock:
    """CPU seconds of this thread, by step."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(STEPS, 0.0)
        self._since = time.thread_time()

    def stop(self, step: str) -> None:
        now = time.thread_time()
        self.spent[step] += now - self._since
        self._since = now


def _reason(error: BaseException) -> str:
    return error.what if isinstance(error, SegdeployError) else "not enough memory for an image of this size."


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


def _stem(source: Source) -> str:
    return source.relative[: -len(PurePath(source.relative).suffix)]


def _each(inputs: Iterable[str], leave_out: Path) -> Iterator[Source]:
    for named in inputs:
        path = Path(named)
        if path.is_dir():
            yield from _walked(path, leave_out)
        elif path.suffix.lower() == ".txt" and path.is_file():
            yield from _listed(path)
        elif path.is_file():
            yield Source(str(path.parent), path.name)
        else:
            yield from _globbed(named)


def _walked(root: Path, leave_out: Path) -> Iterator[Source]:
    apart = {leave_out, overlay_folder(leave_out)}
    for folder, folders, files in os.walk(root, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if Path(folder, name).resolve() not in apart)
        below = PurePath(folder).relative_to(root)
        yield from (Source(str(root), str(below / name)) for name in sorted(files))


def _unreadable(error: OSError) -> None:
    raise InvalidFileError(f"cannot read the folder {error.filename}: {error.strerror}.", "Check its permissions.")


def _listed(path: Path) -> Iterator[Source]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return _rooted([path.parent / line.strip() for line in lines if line.strip()])


def _globbed(pattern: str) -> Iterator[Source]:
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - any folder, not one
    files = [match for match in matches if match.is_file()]
    if not files:
        raise InvalidRequestError(f"{pattern} does not exist.", "Name a folder, an image, a glob or a .txt list.")
    return _rooted(files)


def _rooted(files: Sequence[Path]) -> Iterator[Source]:
    """Paths below the folder that all the files share, so that no mask is written outside `out`."""
    whole = [os.path.abspath(file) for file in files]  # noqa: PTH100 - `..` goes, links stay
    root = os.path.commonpath([os.path.dirname(file) for file in whole]) if whole else ""  # noqa: PTH120
    return (Source(root, os.path.relpath(file, root)) for file in whole)
