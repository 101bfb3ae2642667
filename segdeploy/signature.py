"""A plan is native code: its manifest is signed, and no byte of it reaches a runtime before all of it is checked.

The signature is an HMAC-SHA256 over the manifest's raw bytes; the manifest holds the sha256 of the plan.
"""

import contextlib
import errno
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from segdeploy import artifact
from segdeploy.artifact import Artifact
from segdeploy.errors import InvalidFileError, InvalidRequestError

KEY_BYTES = 32
KEY_VARIABLE = "SEGDEPLOY_KEY_FILE"
SIGNATURE_BYTES = 32
MANIFEST_BYTES = 2**24  # more is none of ours


def signature_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sig")


def key_path() -> Path:
    """The file that SEGDEPLOY_KEY_FILE names, else `key` in the user's configuration folder."""
    given = os.environ.get(KEY_VARIABLE)
    return Path(given) if given else _configuration() / "key"


def trusted_path() -> Path:
    return _configuration() / "trusted"


def _configuration() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "segdeploy"


def key() -> bytes | None:
    """The key of this user, or None where there is none. Raise InvalidFileError where the one that is named is bad."""
    path = key_path()
    try:
        found = path.read_bytes()
    except FileNotFoundError as error:
        if os.environ.get(KEY_VARIABLE):
            raise InvalidFileError(
                f"{KEY_VARIABLE} names {path}, which is not there.", "Put the key there, or unset the variable."
            ) from error
        return None
    except OSError as error:
        raise InvalidFileError(f"cannot read the key {path}: {error.strerror}.", "Check its permissions.") from error
    if len(found) < KEY_BYTES:
        raise InvalidFileError(
            f"{path} holds {len(found)} bytes; a key has at least {KEY_BYTES}.",
            "Restore it, or remove it: the next build makes another.",
        )
    return found


def make_key() -> bytes:
    """The key of this user, made where there is none; of two processes that make it at once, one wins."""
    if (found := key()) is not None:
        return found
    path = key_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = path.with_name(f".{secrets.token_hex(8)}.part")
        with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(made, path)
        made.unlink()
    except OSError as error:
        raise artifact.cannot_write(path, error) from error
    return key() or make_key()


def publish(plan: Artifact, data: bytes | None = None) -> None:
    """Write a plan's manifest and signature, and `data` as the plan itself: all of it or nothing, one writer at a time.

    Raise InvalidFileError where there is no key to sign with.
    """
    found = key()
    if found is None:
        raise _unsigned(plan.path, "there is no key here to sign it with")
    manifest = artifact.manifest(plan)
    # What is entered last is put in place first: the signature comes after what it signs.
    files = {
        signature_path(plan.path): hmac.digest(found, manifest, "sha256"),
        artifact.manifest_path(plan.path): manifest,
    }
    if data is not None:
        files[plan.path] = data
    with contextlib.ExitStack() as stack:
        stack.enter_context(_locked(plan.path.parent, fcntl.LOCK_EX))
        for path, content in files.items():
            stack.enter_context(artifact.replacing(path)).write_bytes(content)


def read_manifest(path: Path) -> Artifact:
    """The plan at `path` as its manifest describes it, once that is signed or trusted; the plan itself is not read."""
    with _locked(path.parent, fcntl.LOCK_SH):
        return _admitted(path)


def read(path: Path) -> tuple[Artifact, bytes]:
    """A plan's manifest and its bytes, once the one is signed or trusted and the other is what it describes."""
    with _locked(path.parent, fcntl.LOCK_SH):
        plan = _admitted(path)
        data = _regular(path, None)
    found = hashlib.sha256(data).hexdigest()
    if found != plan.sha256:
        raise InvalidFileError(
            f"{path} is not the plan its manifest describes (sha256 {found[:12]}, manifest {plan.sha256[:12]}).",
            _rebuild(plan),
        )
    return plan, data


def _admitted(path: Path) -> Artifact:
    beside = artifact.manifest_path(path)
    manifest = _regular(beside, MANIFEST_BYTES)
    _require_admitted(path, manifest)
    plan = artifact.described(path, manifest)
    if plan.kind != "plan":
        raise InvalidFileError(
            f"{beside} describes a {plan.kind}, not a plan.", "Bring the manifest that was built with it."
        )
    return plan


def _require_admitted(path: Path, manifest: bytes) -> None:
    sha256 = hashlib.sha256(manifest).hexdigest()
    if sha256 in trusted():
        return
    found = key()
    if found is None:
        raise _unsigned(path, "there is no key here to check its signature with", sha256)
    signature = _regular(signature_path(path), SIGNATURE_BYTES)
    if not hmac.compare_digest(signature, hmac.digest(found, manifest, "sha256")):
        raise _unsigned(path, "its manifest was changed, or signed with another key", sha256)


def _unsigned(path: Path, reason: str, sha256: str = "SHA256") -> InvalidFileError:
    return InvalidFileError(
        f"{path} is not trusted: {reason}.",
        f"Build it here, set {KEY_VARIABLE} to the builder's key, or, if you know where it is from: "
        f"segdeploy trust {sha256}",
    )


def _rebuild(plan: Artifact) -> str:
    engine = f"{plan.made_by.get('runtime', 'RUNTIME')}:{plan.precision}"
    return f"Build it again: segdeploy build --model {plan.spec.model} --engine {engine}"


def _regular(path: Path, most: int | None) -> bytes:
    """The bytes of a file that is one: no link, no pipe, no more than `most`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise InvalidFileError(f"{path} is no file.", "Bring the files that segdeploy build wrote.")
            if most is not None and facts.st_size > most:
                raise InvalidFileError(
                    f"{path} has {facts.st_size} bytes, more than any of ours.",
                    "Bring the files that segdeploy build wrote.",
                )
            return file.read()
    except FileNotFoundError as error:
        raise InvalidFileError(
            f"{path} is missing.", "A plan has its manifest (.json) and signature (.sig) beside it: bring all three."
        ) from error
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else str(error.strerror)
        raise InvalidFileError(
            f"cannot read {path}: {reason}.", "Bring the files that segdeploy build wrote."
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
        raise artifact.cannot_write(folder, error) from error
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def trusted() -> dict[str, str]:
    """sha256 of every manifest that was admitted by hand, with the day it was."""
    try:
        lines = trusted_path().read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidFileError(f"cannot read {trusted_path()}: {error}.", "Restore it, or remove it.") from error
    return {sha256: day for sha256, _, day in (line.partition(" ") for line in lines) if _is_sha256(sha256)}


def trust(sha256: str, *, revoke: bool = False) -> dict[str, str]:
    """Admit the manifest with that sha256 from now on, or no longer; give the whole list."""
    sha256 = sha256.lower()
    if not _is_sha256(sha256):
        raise InvalidRequestError(f"{sha256!r} is no sha256.", "Give the 64 digits that the refusal names.")
    with _locked_configuration():
        listed = trusted()
        if revoke and sha256 not in listed:
            raise InvalidRequestError(f"{sha256} is not trusted.", "See the list: segdeploy trust")
        listed = {known: day for known, day in listed.items() if known != sha256}
        if not revoke:
            listed[sha256] = artifact.now()
        text = "".join(f"{known} {day}\n" for known, day in listed.items())
        artifact.write_atomically(trusted_path(), text.encode())
    return listed


def _locked_configuration() -> contextlib.AbstractContextManager[None]:
    return _locked(_configuration(), fcntl.LOCK_EX)


def _is_sha256(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None
