"""A module that a user's own code builds: `package.module:build`, with a file of weights. That code is run."""

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segdeploy.checkpoints import reading, unwrapping
from segdeploy.checkpoints.reading import Stored
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.paths import shown
from segdeploy.torch_modules.archives import first_line

DEEPEST = 4  # containers around the tensors of a network
LISTED = 4
COUNTER = "num_batches_tracked"  # of a normalisation: older files have none, and it computes nothing


def built(entry: str, weights: Path | None) -> nn.Module:
    """The module that `package.module:build` is or builds without arguments, with the weights of a file.

    Raise InvalidRequestError where there is no such code, InvalidFileError where it fails or the weights do not fit.
    """
    module = _called(entry, _named(entry))
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise InvalidRequestError(f"{entry} gives a {kind}, no torch.nn.Module.", "Name what builds the network.")
    if weights is not None:
        load(module, weights, entry)
    return module


def _named(entry: str) -> Any:  # noqa: ANN401 - whatever a user's module holds
    name, _, attribute = entry.partition(":")
    with _importing_from_here():
        try:
            found: Any = importlib.import_module(name)
            for part in attribute.split("."):
                found = getattr(found, part)
        except Exception as error:  # the user's code runs here
            raise InvalidRequestError(
                f"{entry} cannot be imported: {type(error).__name__}: {first_line(error)}.",
                "Run in the folder where `import` finds it, with what it needs installed.",
            ) from error
    return found


@contextlib.contextmanager
def _importing_from_here() -> Iterator[None]:
    """As `python -m` does: modules of the folder that the user stands in are found."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _called(entry: str, found: Any) -> Any:  # noqa: ANN401 - whatever a user's code gives
    if isinstance(found, nn.Module) or not callable(found):
        return found
    with _importing_from_here():
        try:
            return found()
        except Exception as error:  # the user's code runs here
            raise InvalidFileError(
                f"{entry} fails: {type(error).__name__}: {first_line(error)}.",
                "Name a function that builds the network without arguments.",
            ) from error


# Weights


def load(module: nn.Module, path: Path, entry: str) -> None:
    """Put the tensors of a file into a module, every one of them. Nothing of the file is run.

    What people write around them is looked through: containers such as `state_dict`, prefixes such as `module.`. Raise
    InvalidFileError where no part of it is this module's.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = list(_candidates(reading.open_file(path), DEEPEST))
    fitting = [tensors for tensors in found if not _differences(wanted, tensors)]
    if len(fitting) > 1:
        raise InvalidRequestError(
            f"{shown(path)} holds {len(fitting)} sets of weights for {entry}.", "Save the one alone that is meant."
        )
    if not fitting:
        raise _unfit(path, entry, wanted, found)
    tensors = {name: torch.from_numpy(stored.read().copy()) for name, stored in fitting[0].items() if name in wanted}
    module.load_state_dict(tensors, strict=False)


def _candidates(value: Any, depth: int) -> Iterator[dict[str, Stored]]:  # noqa: ANN401 - what `open_file` gives
    """The tensors by name, of each container, as they stand and without each prefix that all of them have."""
    if not isinstance(value, dict):
        return
    tensors = {name: each for name, each in value.items() if isinstance(name, str) and isinstance(each, Stored)}
    while tensors:
        yield tensors
        prefix = next((each for each in unwrapping.PREFIXES if all(name.startswith(each) for name in tensors)), None)
        tensors = {} if prefix is None else {name.removeprefix(prefix): each for name, each in tensors.items()}
    for name, inner in value.items():
        if depth and name not in unwrapping.NO_WEIGHTS:
            yield from _candidates(inner, depth - 1)


def _differences(wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Stored]) -> list[str]:
    """What keeps tensors from being those of a module, in words."""
    missing = [name for name in wanted if name not in tensors and not name.endswith(COUNTER)]
    left = [name for name in tensors if name not in wanted]
    other = [name for name, shape in wanted.items() if name in tensors and tensors[name].shape != shape]
    said = (("missing", missing), ("left over", left), ("of another shape", other))
    return [f"{len(names)} {what} ({_listed(names)})" for what, names in said if names]


def _listed(names: list[str]) -> str:
    return ", ".join(map(shown, names[:LISTED])) + (", ..." if len(names) > LISTED else "")


def _unfit(
    path: Path, entry: str, wanted: Mapping[str, tuple[int, ...]], found: list[dict[str, Stored]]
) -> InvalidFileError:
    nearest = max(found, key=lambda tensors: len(wanted.keys() & tensors.keys()), default={})
    reason = "; ".join(_differences(wanted, nearest))
    return InvalidFileError(
        f"the weights of {shown(path)} are not those of {entry}: {reason}.",
        "Build the network as it was trained, or give its own weights.",
    )
