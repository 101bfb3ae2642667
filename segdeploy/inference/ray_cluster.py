"""Ray: connects to it, and keeps as many actors as were asked for, each with one engine."""

import contextlib
import dataclasses
import importlib.util
import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from typing import Any

from segdeploy import cores, extras
from segdeploy.errors import InvalidRequestError, MissingRuntimeError
from segdeploy.inference.actor import VERSION, Actor, Ready, Start

LOCAL = "local"
REACHED_S = 5.0  # for a connection to the address
STORE_MB = 128  # of shared memory for Ray's objects: only paths and small answers are sent
log = logging.getLogger("segdeploy")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How many actors, and what each has: `cpus` cores and threads, and `gpus` GPUs."""

    actors: int
    cpus: int
    gpus: int


def require_installed() -> None:
    """Raise MissingRuntimeError without the package; it is not imported."""
    if importlib.util.find_spec("ray") is None:
        raise extras.absent("ray")


@contextlib.contextmanager
def connected(address: str, *, actors: int | None) -> Iterator[None]:
    """Ray is at hand: started here, for `local`, or that of the address; or the program's own, where it has begun one.

    Raise InvalidRequestError where no Ray is at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == LOCAL and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"} & set(os.environ):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray leaves one in the home folder
        if "ray" not in sys.modules:  # it reads this once; unset, it does the same with a word
            os.environ["RAY_AUTH_MODE"] = "token"
    with extras.named_where_missing():
        import ray
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
    if address == LOCAL:
        count = max(cores.usable(), actors or 0)
        store = STORE_MB * 2**20
        ray.init(LOCAL, num_cpus=count, object_store_memory=store, include_dashboard=False, **quiet)
    else:
        _require_reachable(address)
        try:
            ray.init(address, **quiet)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError, SystemExit) as error:
            raise _cannot_reach(address, error) from error
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Ray says there what it misses; stdout is the report's
            yield
    finally:
        ray.shutdown()


def _require_reachable(address: str) -> None:
    """Ray itself tries for two minutes, and then ends the process."""
    if address.startswith("ray://"):
        raise InvalidRequestError(
            f"{address} is for Ray's client.",
            "Run this on a machine of the cluster, which sees the same files, with --ray HOST:6379 or --ray auto.",
        )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED_S).close()
    except (OSError, OverflowError) as error:
        raise _cannot_reach(address, error) from error


def _cannot_reach(address: str, error: BaseException) -> InvalidRequestError:
    reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    return InvalidRequestError(
        f"cannot reach Ray at {address}: {reason}.", "Start it (ray start --head), or give --ray local."
    )


def size(*, device: str, concurrent: bool, actors: int | None) -> Size:
    """One actor for each GPU of the cluster, or for each core; for each machine where an engine takes all its cores.

    Raise InvalidRequestError where the cluster has nothing of that, and no number was given.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if device == "cpu":
        each = 1 if concurrent else max(1, min([*filter(None, cpus), sum(cpus) // (actors or 1)]))
        room = sum(count // each for count in cpus)
    else:
        each, room = max(1, sum(cpus) // max(1, gpus)), gpus
    if not (actors or room):
        kind = "GPU" if device != "cpu" else "core"
        raise InvalidRequestError(
            f"the cluster has no {kind} now.",
            f"Add one, or wait for it with --ray-actors N: each takes one {kind}.",
        )
    return Size(actors=actors or room, cpus=each, gpus=int(device != "cpu"))


@dataclasses.dataclass(eq=False, slots=True)
class Member:
    """An actor: Ray's handle, and whether its engine is open."""

    handle: Any
    ready: Ready | None = None


class Pool:
    """The actors of a run; one that is lost is replaced."""

    def __init__(self, size: Size, start: Start) -> None:
        self._size = size
        self._start = start
        self.members: list[Member] = []

    def add(self) -> tuple[Member, Any]:
        """A new actor, and what tells when it is open."""
        import ray

        size = self._size
        kind = ray.remote(Actor).options(
            num_cpus=size.cpus, num_gpus=size.gpus, max_concurrency=size.cpus, max_restarts=0, max_task_retries=0
        )
        member = Member(kind.remote())
        self.members.append(member)
        return member, member.handle.open.remote(self._start, VERSION)

    def drop(self, member: Member) -> None:
        """End an actor that is lost: one that cannot be reached may still be at work."""
        import ray

        if member in self.members:
            self.members.remove(member)
        with contextlib.suppress(Exception):  # it has ended already
            ray.kill(member.handle)

    def close(self) -> None:
        for member in [*self.members]:
            self.drop(member)


def never_started(seconds: float) -> MissingRuntimeError:
    """For a cluster that gives no actor a place."""
    return MissingRuntimeError(
        f"no actor of Ray began within {seconds:g} s.", "See `ray status`: the cluster lacks cores, GPUs or memory."
    )
