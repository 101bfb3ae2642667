"""One run for an output in a store: an object that only one run can create, renewed while that run lives."""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence

from segdeploy.errors import InvalidRequestError
from segdeploy.inference.stores import GoneError, Prefix, TakenError, Version

RENEWED_S = 10.0
STALE_S = 60.0  # without renewal
WATCHED_S = 0.5
log = logging.getLogger("segdeploy")


class Lock:
    """A lock that is held; `require` raises where another run took it."""

    def __init__(self, prefix: Prefix, name: str, version: Version) -> None:
        self._prefix = prefix
        self._name = name
        self._version = version
        self._is_lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED_S):
            try:
                self._version = self._prefix.write(self._name, _owner(), where=self._version)
            except TakenError:
                self._is_lost = True
                return
            except Exception as error:  # noqa: BLE001 - whoever writes to the store next says what is wrong
                log.debug("the lock was not renewed: %s", error)

    def require(self) -> None:
        """Raise InvalidRequestError where another run took the lock, for it was not renewed for a minute."""
        if self._is_lost:
            raise InvalidRequestError(
                f"another run took over {self._prefix.url}: this one did not reach the store for {STALE_S:g} s.",
                "Let that run end, and start this one again for what is left.",
            )

    def release(self) -> None:
        self._ended.set()
        self._thread.join()
        if not self._is_lost:
            self._prefix.remove(self._name)


@contextlib.contextmanager
def held(prefix: Prefix, name: str, *, conflicting: Sequence[str]) -> Iterator[Lock]:
    """Hold the lock of that name. Raise InvalidRequestError where a run that lives holds it, or a conflicting one."""
    lock = Lock(prefix, name, _taken(prefix, name))
    try:
        for other in conflicting:
            _require_dead(prefix, other)
        yield lock
    finally:
        lock.release()


def _taken(prefix: Prefix, name: str) -> Version:
    while True:
        with contextlib.suppress(TakenError):
            return prefix.write(name, _owner(), where="none")
        found = _require_dead(prefix, name)
        if found is not None:
            with contextlib.suppress(TakenError):  # another took it over in the meantime
                return prefix.write(name, _owner(), where=found)


def _require_dead(prefix: Prefix, name: str) -> Version | None:
    """The version of a lock whose run has ended, None where it is gone; raise InvalidRequestError where it lives.

    A process of this machine that is gone has ended; all others are watched, until they renew the lock or do not.
    """
    try:
        data, version = prefix.read(name)
    except GoneError:
        return None
    host, process, since = _parsed(data)
    if host == socket.gethostname() and not _is_alive(process):
        return version
    log.warning("A run on %s may be writing into %s; waiting up to %g s.", host, prefix.url, STALE_S)
    until = time.monotonic() + STALE_S
    while (now := prefix.version(name)) == version:
        if time.monotonic() > until:
            return version
        time.sleep(WATCHED_S)
    if now is None:
        return None
    raise InvalidRequestError(
        f"another run writes into {prefix.url}: process {process} on {host}, since {since}.",
        f"Wait for it, or give this run another --out or --shard. Its lock is {prefix.url_of(name)}.",
    )


_SINCE = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def _owner() -> bytes:
    return json.dumps([socket.gethostname(), os.getpid(), _SINCE, time.time_ns()]).encode()


def _parsed(data: bytes) -> tuple[str, int, str]:
    try:
        host, process, since, _ = json.loads(data)
        return str(host), int(process), str(since)
    except (ValueError, TypeError):
        return "an unknown machine", 0, "an unknown time"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
