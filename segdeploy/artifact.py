"""A file with its contract and its origin; the manifest is a JSON file beside it."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from segdeploy.errors import InvalidFileError, InvalidRequestError, SegdeployError
from segdeploy.spec import Precision, Spec

SCHEMA = 1
Kind = Literal["checkpoint", "graph"]


@dataclasses.dataclass(frozen=True, slots=True)
class Artifact:
    """`made_by` says what it was made from and with; `parity` is the proof that was measured, null before one was."""

    path: Path
    kind: Kind
    precision: Precision
    spec: Spec
    sha256: str
    made_by: Mapping[str, Any]
    made_at: str
    parity: Mapping[str, Any] | None = None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def manifest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def write_manifest(artifact: Artifact) -> None:
    fields = dataclasses.asdict(dataclasses.replace(artifact, path=Path(artifact.path.name)))
    document = {"schema": SCHEMA, **fields, "path": artifact.path.name}
    write_atomically(manifest_path(artifact.path), (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())


def read_manifest(path: Path) -> Artifact:
    """The artifact at `path` as its manifest describes it; the file itself is not read."""
    beside = manifest_path(path)
    try:
        document = json.loads(beside.read_bytes())
        if document.pop("schema") != SCHEMA:
            raise InvalidFileError(f"{beside} is of another schema.", f"Make {path.name} again with this version.")
        spec = Spec.from_dict(document.pop("spec"))
        precision = Precision(document.pop("precision"))
        return Artifact(**{**document, "path": path, "spec": spec, "precision": precision})
    except FileNotFoundError as error:
        raise InvalidFileError(
            f"{path} has no manifest ({beside.name}) beside it.", "Make it with segdeploy export, or bring both files."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidFileError(
            f"{beside} is no manifest of segdeploy: {error}.", f"Make {path.name} again with segdeploy export."
        ) from error


def read(path: Path) -> Artifact:
    """The artifact at `path`, once the file is the one its manifest describes."""
    if not path.is_file():
        raise InvalidRequestError(f"{path} does not exist.", "Name a file that segdeploy export wrote.")
    artifact = read_manifest(path)
    found = sha256(path)
    if found != artifact.sha256:
        raise InvalidFileError(
            f"{path} is not the file its manifest describes (sha256 {found[:12]}, manifest {artifact.sha256[:12]}).",
            f"Make it again: segdeploy export --model {artifact.spec.model}",
        )
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
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
    }
    remedy = remedies.get(error.errno or 0, "Choose a folder you may write to.")
    return InvalidFileError(f"cannot write {path}: {error.strerror or error}.", remedy)
