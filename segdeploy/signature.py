"""Signed files: what a manifest claims counts where this user's key signed it, or where `trust` admitted it.

The signature is an HMAC-SHA256 over the raw bytes of a manifest, which holds the sha256 of its graph or plan, or of a
proof kit. A plan is native code besides: no byte of it reaches a runtime before all of it is checked.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from segdeploy import artifact, locks
from segdeploy.artifact import MANIFEST_BYTES, Artifact
from segdeploy.errors import InvalidFileError, InvalidRequestError, SegdeployError
from segdeploy.target import PlanFacts

KEY_BYTES, MOST_KEY_BYTES = 32, 2**16
KEY_VARIABLE = "SEGDEPLOY_KEY_FILE"
SIGNATURE_BYTES = 32
ROOT, OTHERS = 0, 0o077
LOCK_S, POLL_S = 60, 0.02

log = logging.getLogger("segdeploy")


def signature_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sig")


def key_path() -> Path:
    """The file that SEGDEPLOY_KEY_FILE names, else `key` in the user's configuration folder."""
    given = os.environ.get(KEY_VARIABLE)
    return Path(given) if given else _configuration() / "key"


def trusted_path() -> Path:
    return _configuration() / "trusted"


def proofs_folder() -> Path:
    """Where proofs that were made here are kept, of files that others signed: beside the list of what is trusted."""
    return _configuration() / "proofs"


def _configuration() -> Path:
    return artifact.user_folder("XDG_CONFIG_HOME", ".config")


def key() -> bytes | None:
    """The key of this user, or None where there is none. Raise InvalidFileError where the one that is named is bad."""
    path = key_path()
    try:
        found = artifact.bounded(path, MOST_KEY_BYTES)
    except FileNotFoundError as error:
        if os.environ.get(KEY_VARIABLE):
            raise InvalidFileError(
                f"{KEY_VARIABLE} names {path}, which is not there.", "Put the key there, or unset the variable."
            ) from error
        return None
    _require_private(path)
    if len(found) < KEY_BYTES:
        raise InvalidFileError(
            f"{path} holds {len(found)} bytes; a key has at least {KEY_BYTES}.",
            "Restore it, or remove it: the next build makes another.",
        )
    return found


def _require_private(path: Path) -> None:
    """Who can read a key can sign as its owner, and who can replace it can have anything admitted."""
    facts = path.stat()
    if facts.st_uid not in {os.geteuid(), ROOT}:
        raise InvalidFileError(f"{path} belongs to another user.", "Give a key of your own, with mode 600.")
    if facts.st_mode & OTHERS:
        raise InvalidFileError(
            f"{path} can be used by others: its mode is {stat.S_IMODE(facts.st_mode):03o}.", f"chmod 600 {path}"
        )


def make_key() -> bytes:
    """The key of this user, made where there is none; of two processes that make it at once, one wins."""
    if (found := key()) is not None:
        return found
    path = key_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locks.part(path.parent) as made:
            made.chmod(0o600)
            made.write_bytes(secrets.token_bytes(KEY_BYTES))
            with contextlib.suppress(FileExistsError):
                _place(made, path)
    except OSError as error:
        raise artifact.cannot_write(path, error) from error
    return key() or make_key()


def _write_secret(path: Path) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES))


def _place(made: Path, path: Path) -> None:
    try:
        os.link(made, path)  # unlike a rename it replaces no other's key
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EOPNOTSUPP}:
            raise
        _write_secret(path)  # a file system without hard links


def publish(plan: Artifact, data: bytes | None = None) -> None:
    """Write a plan's manifest and signature, and `data` as the plan itself: all of it or nothing, one writer at a time.

    Raise InvalidFileError where there is no key to sign with, and, without `data`, where another plan stands there now.
    """
    found = key()
    if found is None:
        raise _unsigned(plan.path, "there is no key here to sign it with")
    manifest = artifact.manifest(plan)
    signature = hmac.digest(found, manifest, "sha256")
    # What is entered last is put in place first: the signature comes after what it signs.
    files = {signature_path(plan.path): signature, artifact.manifest_path(plan.path): manifest}
    if data is not None:
        files[plan.path] = data
    with contextlib.ExitStack() as stack:
        stack.enter_context(_locked(plan.path.parent, fcntl.LOCK_EX))
        if data is None:
            _require_same(plan, found)
        for path, content in files.items():
            if path.is_dir():
                raise InvalidFileError(f"cannot write {path}: it is a folder.", "Remove it.")
            stack.enter_context(artifact.replacing(path)).write_bytes(content)


def publish_graph(graph: Artifact) -> None:
    """Write the manifest of a graph, and its signature; without a key and a place for one, the manifest alone.

    Raise InvalidFileError where the graph is no longer the file that the manifest is about.
    """
    if artifact.sha256(graph.path) != graph.sha256:
        raise InvalidFileError(f"{graph.path} was changed meanwhile.", "Run the command again.")
    content = artifact.manifest(graph)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_locked(graph.path.parent, fcntl.LOCK_EX))
        _sign(graph.path, content, stack)
        stack.enter_context(artifact.replacing(artifact.manifest_path(graph.path))).write_bytes(content)


def publish_file(path: Path, content: bytes) -> None:
    """Write a file and its signature; without a key and a place for one, the file alone."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_locked(path.parent, fcntl.LOCK_EX))
        _sign(path, content, stack)
        stack.enter_context(artifact.replacing(path)).write_bytes(content)


def _sign(path: Path, content: bytes, stack: contextlib.ExitStack) -> None:
    """Write the signature of `content` beside `path` when the stack unwinds; none, and why, where there is no key."""
    try:
        signed = hmac.digest(make_key(), content, "sha256")
    except SegdeployError as error:
        log.warning("%s is not signed: %s", path, error.what)
        signature_path(path).unlink(missing_ok=True)
    else:
        stack.enter_context(artifact.replacing(signature_path(path))).write_bytes(signed)


def is_admitted(path: Path, content: bytes) -> bool:
    """Whether this user's key signed `content`, the signature beside `path`, or `trust` admitted it by its sha256."""
    if hashlib.sha256(content).hexdigest() in trusted():
        return True
    found = key()
    return found is not None and signature_path(path).is_file() and _is_signed(path, content, found)


def graph_is_admitted(graph: Artifact) -> bool:
    """Whether what the manifest of a graph claims counts here, and is what `graph` says."""
    content = _regular(artifact.manifest_path(graph.path), MANIFEST_BYTES)
    return is_admitted(graph.path, content) and artifact.described(graph.path, content) == graph


def _require_same(plan: Artifact, found: bytes) -> None:
    """What stands there is this plan, signed here, but for its proof: nothing else is to be signed again."""
    manifest = _regular(artifact.manifest_path(plan.path), MANIFEST_BYTES)
    before = artifact.described(plan.path, manifest)
    is_same = (
        dataclasses.replace(before, certificate=plan.certificate, certificate_as_asked=plan.certificate_as_asked)
        == plan
    )
    if not is_same or artifact.sha256(plan.path) != plan.sha256 or not _is_signed(plan.path, manifest, found):
        raise InvalidFileError(f"{plan.path} was built again meanwhile, or changed.", "Run the command again.")


def read_manifest(path: Path) -> Artifact:
    """The plan at `path` as its manifest describes it, once that is signed or trusted; the plan itself is not read."""
    if not os.path.lexists(path):
        raise InvalidRequestError(f"there is no file {path}.", "Name a plan that segdeploy build wrote.")
    with _locked(path.parent, fcntl.LOCK_SH):
        return _admitted(path)


def read(path: Path) -> tuple[Artifact, bytes]:
    """A plan's manifest and its bytes, once the one is signed or trusted and the other is what it describes."""
    with _locked(path.parent, fcntl.LOCK_SH):
        plan = _admitted(path)
        data = _regular(path, facts_of(plan).size)
    found = hashlib.sha256(data).hexdigest()
    if found != plan.sha256:
        raise InvalidFileError(
            f"{path} is not the plan its manifest describes (sha256 {found[:12]}, manifest {plan.sha256[:12]}).",
            f"Build it again: segdeploy build --model {plan.spec.name} --engine RUNTIME:{plan.precision}",
        )
    return plan, data


def _admitted(path: Path) -> Artifact:
    beside = artifact.manifest_path(path)
    manifest = _regular(beside, MANIFEST_BYTES)
    _require_admitted(path, manifest)
    plan = artifact.described(path, manifest)
    facts_of(plan)
    if (name := artifact.name_in(manifest, str(beside))) != path.name:
        raise InvalidFileError(f"{path} was built as {name}.", "Give it, its .json and its .sig their names back.")
    return plan


def facts_of(plan: Artifact) -> PlanFacts:
    """What a plan's manifest says of it alone. Raise InvalidFileError where it describes no plan."""
    if plan.kind != "plan" or plan.plan is None:
        raise InvalidFileError(
            f"{artifact.manifest_path(plan.path)} describes no plan.", "Bring the manifest that was built with it."
        )
    return plan.plan


def _require_admitted(path: Path, manifest: bytes) -> None:
    sha256 = hashlib.sha256(manifest).hexdigest()
    if sha256 in trusted():
        return
    if (found := key()) is None:
        raise _unsigned(path, "there is no key here to check its signature with", sha256)
    if not _is_signed(path, manifest, found):
        raise _unsigned(path, "its manifest was changed, or signed with another key", sha256)


def is_signed(path: Path) -> bool:
    """Whether this user's own key signed the manifest, whatever list admits it."""
    found = key()
    return found is not None and _is_signed(path, _regular(artifact.manifest_path(path), MANIFEST_BYTES), found)


def _is_signed(path: Path, manifest: bytes, found: bytes) -> bool:
    signature = _regular(signature_path(path), SIGNATURE_BYTES)
    return hmac.compare_digest(signature, hmac.digest(found, manifest, "sha256"))


def _unsigned(path: Path, reason: str, sha256: str = "SHA256") -> InvalidFileError:
    return InvalidFileError(
        f"{path} is not trusted: {reason}.",
        f"Build it here, set {KEY_VARIABLE} to the builder's key, or, if you know where it is from: "
        f"segdeploy trust {sha256}",
    )


def _regular(path: Path, most: int) -> bytes:
    try:
        return artifact.bounded(path, most, links=False)
    except FileNotFoundError as error:
        raise InvalidFileError(
            f"{path} is missing.", "A plan has its manifest (.json) and signature (.sig) beside it: bring all three."
        ) from error


@contextlib.contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Readers see a plan with its own manifest; the lock is the folder's, so that no file is left behind."""
    try:
        if how == fcntl.LOCK_EX:
            folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise InvalidFileError(f"there is no folder {folder}.", "Name a plan that segdeploy build wrote.") from error
    except OSError as error:
        if how == fcntl.LOCK_EX:
            raise artifact.cannot_write(folder, error) from error
        raise InvalidFileError(f"cannot read the folder {folder}: {error.strerror}.", "Check the path.") from error
    try:
        _lock(descriptor, how, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, how: int, folder: Path) -> None:
    until = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise InvalidFileError(
                    f"another process holds {folder} for {LOCK_S} s.", "End it, and run the command again."
                ) from error
            time.sleep(POLL_S)
        except OSError:
            return  # a file system without locks
        else:
            return


def trusted() -> dict[str, str]:
    """sha256 of every manifest that was admitted by hand, with the day it was."""
    try:
        text = artifact.bounded(trusted_path(), MANIFEST_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return {}
    lines = (line.partition(" ") for line in text.splitlines())
    return {sha256: day for sha256, _, day in lines if _is_sha256(sha256)}


def trust(sha256: str, *, revoke: bool = False) -> dict[str, str]:
    """Admit the manifest with that sha256 from now on, or no longer; give the whole list."""
    sha256 = sha256.lower()
    if not _is_sha256(sha256):
        raise InvalidRequestError(f"{sha256!r} is no sha256.", "Give the 64 digits that the refusal names.")
    with _locked(_configuration(), fcntl.LOCK_EX):
        listed = trusted()
        if revoke and sha256 not in listed:
            raise InvalidRequestError(f"{sha256} is not trusted.", "See the list: segdeploy trust")
        listed = {known: day for known, day in listed.items() if known != sha256}
        if not revoke:
            listed[sha256] = artifact.now()
        text = "".join(f"{known} {day}\n" for known, day in listed.items())
        artifact.write_atomically(trusted_path(), text.encode())
    return listed


def _is_sha256(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None
