"""A trained network on disk: safetensors, with its Spec in the file's metadata. Loading runs no code of the file."""

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy import artifact, earlier_files, extras, models, typed_json
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.origin import Origin
from segdeploy.spec import Precision, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from segdeploy.blocks import Network

FORMAT = "segdeploy-checkpoint-1"
SUFFIX = ".safetensors"
MOMENTUM = "momentum/"  # how the optimiser's tensors are named in the checkpoint that training resumes from
AGAIN = "Copy or train it again."
LONGEST_HEADER = 100_000_000  # bytes, safetensors' own bound
LONGEST_REASON = 200  # characters: PyTorch names every tensor that is missing


def save(path: Path, tensors: "Mapping[str, Tensor]", spec: Spec, *, origin: Origin, made_at: str = "") -> None:
    """Write tensors, Spec and origin atomically."""
    from safetensors.torch import save as to_bytes

    facts = json.dumps(origin.to_dict(), sort_keys=True)
    metadata = {"format": FORMAT, "spec": spec.to_json(), "origin": facts, "made_at": made_at}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Not `save_file`: it makes files that only their owner may read, and says nothing useful of a full disk.
    artifact.write_atomically(path, _in_order(to_bytes(contiguous, metadata)))


def _in_order(content: bytes) -> bytes:
    """The same safetensors file, its header in the order of its keys: safetensors has another one each time."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors begin at a multiple of eight
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def is_ours(path: Path) -> bool:
    """Whether a file is a checkpoint of segdeploy; what is absent, or damaged under our suffix, counts."""
    if not path.is_file() or path.stat().st_size == 0:
        return not path.is_file() or path.suffix == SUFFIX
    try:
        return _metadata(path).get("format") == FORMAT
    except InvalidFileError:
        return path.suffix == SUFFIX


def read(path: Path) -> artifact.Artifact:
    """Spec and origin of a checkpoint; needs neither torch nor safetensors."""
    metadata = _metadata(path)
    if metadata.get("format") != FORMAT:
        raise InvalidFileError(
            f"{path} is a safetensors file, but no checkpoint of segdeploy: it carries no Spec.",
            "Give a checkpoint that segdeploy train wrote.",
        )
    origin, made_at = _origin(path, metadata)
    return artifact.Artifact(
        path=path,
        kind="checkpoint",
        precision=Precision.FP32,
        spec=Spec.from_json(metadata.get("spec", "null"), where=f"{path}: spec"),
        sha256=artifact.sha256(path),
        made_at=made_at,
        origin=origin,
    )


def _origin(path: Path, metadata: Mapping[str, str]) -> tuple[Origin, str]:
    """What a checkpoint was made by, and when; segdeploy 0.1 kept both in one field."""
    where = f"{path}: origin"
    if "made_by" in metadata:
        made_by = typed_json.parse(metadata["made_by"], where=where, remedy=AGAIN)
        document = earlier_files.origin(made_by) if isinstance(made_by, dict) else made_by
        made_at = made_by.get("made_at", "") if isinstance(made_by, dict) else ""
    else:
        document = earlier_files.with_validation(
            typed_json.parse(metadata.get("origin", "null"), where=where, remedy=AGAIN)
        )
        made_at = metadata.get("made_at", "")
    return Origin.from_dict(document, where=where, remedy=AGAIN), str(made_at)


def load(path: Path) -> "tuple[Network, Spec]":
    """The trained network in evaluation mode, on the CPU, in float32."""
    spec = read(path).spec
    network = models.rebuild(spec)
    load_into(network, {name: tensor for name, tensor in tensors(path).items() if MOMENTUM not in name}, path)
    return network.eval(), spec


@extras.named_where_missing()
def tensors(path: Path) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise InvalidFileError(f"{path} is corrupt: {error}.", AGAIN) from error


def load_into(network: "Network", state: "Mapping[str, Tensor]", path: Path) -> None:
    try:
        network.load_state_dict(dict(state))
    except RuntimeError as error:
        reason = textwrap.shorten(str(error).splitlines()[-1], LONGEST_REASON)
        raise InvalidFileError(f"{path} does not hold the network its Spec names: {reason}", AGAIN) from error


def _metadata(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise InvalidRequestError(f"there is no checkpoint {path}.", "Name a .safetensors file of segdeploy train.")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, LONGEST_HEADER)))
        metadata: dict[str, str] = dict(header.get("__metadata__", {}))
    except OSError as error:
        raise InvalidFileError(f"cannot read {path}: {error.strerror}.", "Check its permissions.") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidFileError(
            f"{path} is not a safetensors file.", "Give a checkpoint that segdeploy train wrote (.safetensors)."
        ) from error
    return metadata
