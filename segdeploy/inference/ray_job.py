"""A run whose images Ray's actors make; the journal is kept here, and what a lost actor had is done again."""

import contextlib
import dataclasses
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from segdeploy import artifact
from segdeploy.engines import Engine
from segdeploy.errors import MissingRuntimeError, SegdeployError
from segdeploy.inference import ray_cluster
from segdeploy.inference.actor import Answer, Ready, Start, unseen, without_sources
from segdeploy.inference.contact import Sheet, Wish
from segdeploy.inference.maker import Clock, Made
from segdeploy.inference.ray_cluster import Member, Pool, Size
from segdeploy.inference.resuming import Resuming, Standing
from segdeploy.inference.run import Job
from segdeploy.inference.source_list import Source
from segdeploy.inference.work import Work
from segdeploy.paths import shown
from segdeploy.spec import Spec

SIGN = "ray.sign"  # beside the journal: an actor that reads it sees these files
WAIT_S = 0.5
BEGUN_S = 300.0  # how long a run waits while no actor is open
STARTS = 3  # in a row that may fail
TRIES = 3  # of an image that was at work when its actor ended; it is alone there from the second on
log = logging.getLogger("segdeploy")


@dataclasses.dataclass(eq=False, slots=True)
class _Image:
    source: Source
    target: str
    standing: Standing
    wish: Wish
    lost: int = 0  # times that its actor ended


class RayJob(Job):
    """Hands images to actors: as many as each has threads, and one more that waits for it.

    `used` is the first actor whose engine was open, None where nothing was left to do.
    """

    def __init__(
        self,
        opened: Callable[[], Engine],
        size: Size,
        spec: Spec,
        *,
        work: Work,
        resuming: Resuming,
        done: Callable[[], None],
    ) -> None:
        super().__init__(None, work, resuming, done)
        self.sheet = Sheet(spec.colours)
        self.summary.cores = size.actors * size.cpus
        self.used: Ready | None = None
        self._opened = opened
        self._size = size
        self._flights: dict[Any, tuple[Member, _Image | None]] = {}  # by what Ray gives; None: the engine opens
        self._again: list[_Image] = []
        self._held: _Image | None = None  # found, and not to be begun before the limit is known to have room
        self._spent_s = 0.0
        self._failed_starts = 0

    @property
    def process_s(self) -> float:
        """CPU seconds that the actors say they took."""
        return self._spent_s

    def run(self) -> None:
        """Make all images; Ctrl-C ends it after those at work. No actor is left."""
        with self._sign() as start:
            self._pool = Pool(self._size, start)
            try:
                self.work_on([threading.Thread(target=self._guarded)])
            finally:
                self._pool.close()

    @contextlib.contextmanager
    def _sign(self) -> Iterator[Start]:
        task, token = self.work.task, secrets.token_hex(16)
        sign = task.journal_folder / SIGN
        artifact.write_atomically(sign, token.encode())
        try:
            yield Start(opened=self._opened, task=without_sources(task), folder=Path.cwd(), sign=sign, token=token)
        finally:
            sign.unlink(missing_ok=True)

    def take(self) -> None:
        """Hand out images and take in answers until none is left."""
        import ray

        if not self._has_more():
            return
        for _ in range(self._size.actors):
            self._add()
        open_since = time.monotonic()
        while True:
            self._hand_out()
            if not self._at_work() and (self.stop.is_set() or not self._has_more()):
                return
            arrived, _ = ray.wait(list(self._flights), timeout=WAIT_S)
            for flight in arrived:
                self._arrived(flight)
            if any(member.ready for member in self._pool.members):
                open_since = time.monotonic()
            elif time.monotonic() - open_since > BEGUN_S:
                raise ray_cluster.never_started(BEGUN_S)

    def _add(self) -> None:
        member, flight = self._pool.add()
        self._flights[flight] = member, None

    def _at_work(self, member: Member | None = None) -> list[_Image]:
        """The images that actors have, or that one of them has."""
        flights = self._flights.values()
        return [image for owner, image in flights if image is not None and member in {None, owner}]

    def _hand_out(self) -> None:
        for member in self._pool.members:
            while member.ready is not None and (image := self._for(member)) is not None:
                asked = (image.source, image.target, image.standing, image.wish)
                self._flights[member.handle.make.remote(*asked)] = member, image

    def _for(self, member: Member) -> _Image | None:
        """The next image for an actor; one whose actor ended comes first, and has an actor for itself."""
        has = self._at_work(member)
        if self.stop.is_set() or len(has) > self._size.cpus or any(image.lost for image in has):
            return None
        if self._again:
            return None if has else self._again.pop()
        if not self._has_more() or self.resuming.is_full(len(self._at_work())):
            return None
        image, self._held = self._held, None
        return image

    def _has_more(self) -> bool:
        """Whether an image is left to begin; those of which nothing is missing are counted."""
        if self._held is not None and self.resuming.is_full():
            self._held = None
            self.done()
        while not self._again and self._held is None and not self.stop.is_set():
            source = next(self.begun, None)
            if source is None:
                return False
            target = self.work.task.target(source)
            standing = self.missing(source, target, Clock())
            if standing is not None and not self.resuming.is_full():
                self._held = _Image(source, target, standing, self.sheet.wish())
            else:
                self.done()
        return not self.stop.is_set()

    def _arrived(self, flight: Any) -> None:  # noqa: ANN401 - what Ray gives
        import ray

        if flight not in self._flights:  # of an actor that is lost
            return
        member, image = self._flights[flight]
        try:
            answer: Ready | Answer | SegdeployError = ray.get(flight)
        except ray.exceptions.RayTaskError as error:  # a defect, with its traceback
            if isinstance(error, ray.exceptions.RaySystemError):  # the worker cannot read what it is given
                raise _cannot_begin(error) from error
            raise
        except ray.exceptions.RayError as error:
            self._lose(member, error)
            return
        del self._flights[flight]
        if isinstance(answer, SegdeployError):
            raise answer
        if isinstance(answer, Ready):
            member.ready, self._failed_starts = answer, 0
            self.used = self.used or answer
        elif image is not None:
            self._take_answer(member, image, answer)

    def _lose(self, member: Member, error: Exception) -> None:
        """Do again what an actor had at work, with another in its place."""
        images = self._at_work(member)
        self._flights = {flight: other for flight, other in self._flights.items() if other[0] is not member}
        self._pool.drop(member)
        if member.ready is None:
            self._failed_starts += 1
            if self._failed_starts >= STARTS:
                raise _cannot_begin(error) from error
        else:
            log.warning("An actor on %s ended; %d images are done again.", member.ready.host, len(images))
        for image in images:
            self._lose_image(image)
        if not self.stop.is_set():
            self._add()

    def _lose_image(self, image: _Image) -> None:
        image.lost += 1
        if image.lost < TRIES:
            self._again.append(image)
            return
        what = f"{shown(image.source.path)}: the process that made it ended {TRIES} times"
        self._end(image, Made(reasons=[f"{what}; it may need more memory than there is."]))

    def _take_answer(self, member: Member, image: _Image, answer: Answer) -> None:
        path, made = image.source.path, answer.made
        self._spent_s += answer.process_s
        host = "" if member.ready is None else member.ready.host
        if not answer.was_seen and os.path.lexists(path):
            raise unseen(host, path)
        if made.segmented:
            self.resuming.may_segment()
            self.sheet.show(image.wish, made.areas, answer.card)
        if made.read is not None and not made.read.looks_like(path):
            made = Made(reasons=[f"{shown(path)} changed while it was read, or is another file on {host}."])
        self._end(image, made)

    def _end(self, image: _Image, made: Made) -> None:
        self.take_in(image.source, image.target, made)
        self.done()


def _cannot_begin(error: Exception) -> MissingRuntimeError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1].rstrip(".") if lines else type(error).__name__  # Ray names the error at the end
    return MissingRuntimeError(
        f"actors of Ray cannot begin: {reason}.",
        "Install segdeploy and the engine's runtime on every machine of the cluster.",
    )
