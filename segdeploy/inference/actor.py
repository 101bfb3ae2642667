"""One engine in a process of its own, on any machine that sees the same files: it makes what `maker.Maker` makes."""

import dataclasses
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdeploy._version import __version__
from segdeploy.engines import Engine
from segdeploy.errors import InvalidRequestError, SegdeployError
from segdeploy.images import Photograph
from segdeploy.inference.contact import Card, Wish
from segdeploy.inference.maker import Clock, Made, Maker
from segdeploy.inference.resuming import Standing
from segdeploy.inference.run import DRAWS
from segdeploy.inference.source_list import Source, SourceList
from segdeploy.inference.work import Task, Work
from segdeploy.paths import shown
from segdeploy.spec import Precision

VERSION = f"{__version__}, {DRAWS}"  # masks of two of these may differ


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What an actor is given: `opened` opens the engine, proven; `task` has no sources.

    `folder`: the working directory, which paths are relative to. `sign`: a file that the one who gives this has just
    written beside the journal, and `token` what is in it.
    """

    opened: Callable[[], Engine]
    task: Task
    folder: Path
    sign: Path
    token: str


@dataclasses.dataclass(frozen=True, slots=True)
class Ready:
    """An actor whose engine is open: the machine and process it is in, the device, and the type it computes in."""

    host: str
    process: int
    device: str
    delivered: Precision | None


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What an actor made of an image. `was_seen`: whether the file was there. `process_s`: CPU since its last answer.

    `card`: what the page shows of it, where that was wished for.
    """

    made: Made
    card: Card | None
    was_seen: bool
    process_s: float


class Actor:
    """Serves as many threads as call it. What is wrong for all images is answered, not raised: it crosses processes."""

    def __init__(self) -> None:
        self._maker: Maker | None = None
        self._lock = threading.Lock()
        self._counted_s = 0.0

    def open(self, start: Start, version: str) -> Ready | SegdeployError:
        """Open the engine, where this process sees the files and has the same segdeploy as the one that asks."""
        host = socket.gethostname()
        if version != VERSION:
            return InvalidRequestError(
                f"the worker on {host} has segdeploy {VERSION}, this is {version} (version, and how masks are drawn).",
                "Install the same version on every machine of the cluster.",
            )
        try:
            if not _is_there(start):
                return unseen(host, start.sign.parent)
            engine = start.opened()
            self._maker = Maker(engine, Work.of(start.task), threading.Event())
        except SegdeployError as error:
            return error
        self._process_s()  # to open the engine is no part of an image
        return Ready(host, os.getpid(), engine.device, engine.delivered)

    def make(self, source: Source, target: str, standing: Standing, wish: Wish) -> Answer | SegdeployError:
        """What is missing of an image, as one process would make it; an error is one that no image can be made with."""
        if self._maker is None:
            raise ValueError("this actor is not open")
        cards: list[Card | None] = []

        def look(name: str, areas: Sequence[int], photo: Photograph, class_map: NDArray[np.uint8]) -> None:
            cards.append(wish.card(name, areas, photo, class_map))

        was_seen = os.path.lexists(source.path)
        try:
            made = self._maker.made(source, target, standing, Clock(), may_segment=lambda: True, look=look)
        except SegdeployError as error:
            return error
        if made is None:
            raise ValueError("the limit is the one's who asks")
        return Answer(made, next(iter(cards), None), was_seen, self._process_s())

    def _process_s(self) -> float:
        with self._lock:
            before, self._counted_s = self._counted_s, time.process_time()
            return self._counted_s - before


def unseen(host: str, path: Path) -> InvalidRequestError:
    """For a file that is here and not there."""
    return InvalidRequestError(
        f"the worker on {host} does not see {shown(path)} as it is here.",
        "Mount one file system at the same path on every machine of the cluster, for images, engine and output.",
    )


def without_sources(task: Task) -> Task:
    """What an actor needs to know of a task; the images come one by one."""
    return dataclasses.replace(task, sources=SourceList())


def _is_there(start: Start) -> bool:
    try:
        os.chdir(start.folder)
        return start.sign.read_text(encoding="utf-8") == start.token
    except OSError:
        return False
