"""A file with its contract and its origin; the manifest is a JSON file beside it."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from segdeploy import external_data
from segdeploy.errors import InvalidFileError, InvalidRequestError, MissingRuntimeError, SegdeployError
from segdeploy.spec import Precision, Spec

SCHEMA = 1
MANIFEST_BYTES = 2**24  # more is none of ours
Kind = Literal["checkpoint", "graph", "plan"]


@dataclasses.dataclass(frozen=True, slots=True)
class Artifact:
    """`made_by` says what it was made from and with; `parity` is the proof that was measured, null before one was.

    `form` is how an int8 graph is spelled, and by that which runtimes run it exactly; null for every other file.
    """

    path: Path
    kind: Kind
    precision: Precision
    spec: Spec
    sha256: str
    made_by: Mapping[str, Any]
    made_at: str
    parity: Mapping[str, Any] | None = None
    form: str | None = None


def digest(document: Any) -> str:  # noqa: ANN401 - any JSON value
    """The sha256 of a JSON document, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def cache_folder() -> Path:
    """What can be made again, for this user."""
    return user_folder("XDG_CACHE_HOME", ".cache")


def user_folder(variable: str, below_home: str) -> Path:
    """Our folder where a variable of the XDG specification points, else below the user's home."""
    try:
        return Path(os.environ.get(variable) or Path.home() / below_home) / "segdeploy"
    except RuntimeError as error:
        raise MissingRuntimeError("this user has no home folder.", f"Set HOME, or {variable}.") from error


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def graph_path(folder: Path, model: str, precision: Precision, form: str | None = None) -> Path:
    """`export/unet.fp16.onnx`, `export/unet.int8-unsigned.onnx`."""
    return folder / f"{model}.{precision if form is None else f'{precision}-{form}'}.onnx"


def plan_path(folder: Path, model: str, runtime: str, precision: Precision, compute_capability: str) -> Path:
    """`engines/unet.trt.fp16.cc89.plan`; the compute capability is spelled 8.9."""
    return folder / f"{model}.{runtime}.{precision}.cc{compute_capability.replace('.', '')}.plan"


def manifest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def manifest(artifact: Artifact) -> bytes:
    """What stands in the manifest of an artifact."""
    fields = dataclasses.asdict(dataclasses.replace(artifact, path=Path(artifact.path.name)))
    document = {"schema": SCHEMA, **fields, "path": artifact.path.name}
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def write_manifest(artifact: Artifact) -> None:
    write_atomically(manifest_path(artifact.path), manifest(artifact))


def read_manifest(path: Path) -> Artifact:
    """The artifact at `path` as its manifest describes it; the file itself is not read."""
    beside = manifest_path(path)
    try:
        return described(path, bounded(beside, MANIFEST_BYTES))
    except FileNotFoundError as error:
        raise InvalidFileError(
            f"{path} has no manifest ({beside.name}) beside it.", "Make it with segdeploy export, or bring both files."
        ) from error


def bounded(path: Path, most: int, *, links: bool = True) -> bytes:
    """The bytes of a regular file of at most `most`; it may be a link where `links` allows that.

    Raise FileNotFoundError where there is none, and InvalidFileError where it is something else.
    """
    remedy = "Bring the file that segdeploy wrote."
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW))
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise InvalidFileError(f"cannot read {path}: it is no regular file.", remedy)
            if facts.st_size > most:
                raise InvalidFileError(f"{path} has {facts.st_size:,} bytes, not the {most:,} of ours.", remedy)
            with os.fdopen(os.dup(descriptor), "rb") as file:
                return file.read(most + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise InvalidFileError(f"cannot read {path}: {reason}.", "Check its permissions.") from error


def described(path: Path, text: bytes) -> Artifact:
    """The artifact at `path` as the bytes of its manifest describe it."""
    beside = manifest_path(path)
    try:
        document = json.loads(text)
        if document.pop("schema") != SCHEMA:
            raise InvalidFileError(f"{beside} is of another schema.", f"Make {path.name} again with this version.")
        spec = _spec(document.pop("spec"), beside)
        precision = Precision(document.pop("precision"))
        document.setdefault("form", None)  # files from before there were forms
        _require_types(document)
        return Artifact(**{**document, "path": path, "spec": spec, "precision": precision})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidFileError(
            f"{beside} is no manifest of segdeploy: {error}.", f"Make {path.name} again with segdeploy export."
        ) from error


def _spec(fields: dict[str, Any], manifest: Path) -> Spec:
    try:
        return Spec.from_dict(fields)
    except SegdeployError as error:
        raise InvalidFileError(f"{manifest}: {error.what}", error.remedy) from error


def _require_types(document: Mapping[str, Any]) -> None:
    """What `Artifact` says of the fields that JSON holds as they are; they are used before they are looked at."""
    kinds = {"sha256": str, "made_at": str, "made_by": dict, "parity": dict | None, "form": str | None}
    for name, kind in kinds.items():
        if not isinstance(document[name], kind):
            raise TypeError(f"{name} is {document[name]!r}")
    if document["kind"] not in get_args(Kind):
        raise ValueError(f"kind is {document['kind']!r}")


def read(path: Path) -> Artifact:
    """The artifact at `path`, once the file is the one its manifest describes."""
    if not path.is_file():
        raise InvalidRequestError(f"there is no file {path}.", "Name one that segdeploy export wrote.")
    artifact = read_manifest(path)
    found = sha256(path)
    if found != artifact.sha256:
        raise InvalidFileError(
            f"{path} is not the file its manifest describes (sha256 {found[:12]}, manifest {artifact.sha256[:12]}).",
            f"Make it again: segdeploy export --model {artifact.spec.model}",
        )
    if artifact.kind == "graph":
        external_data.require_contained(path)
    return artifact


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write the whole file or nothing, also when the disk is full or the process is killed."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; it takes the place of `path` when the block ends well, and is removed when it does not."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")  # no process number: containers share both it and disks
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> SegdeployError:
    remedies = {
        errno.ENOSPC: "Free some space on that disk; nothing was lost, run the command again.",
        errno.EDQUOT: "Free some space in that quota; nothing was lost, run the command again.",
        errno.ENAMETOOLONG: "Give it a shorter name.",
    }
    remedy = remedies.get(error.errno or 0, "Choose a folder you may write to.")
    return InvalidFileError(f"cannot write {path}: {error.strerror or error}.", remedy)
