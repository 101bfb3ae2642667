"""The tensors of a network inside what people save around them: containers, prefixes, averages."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from segdeploy.checkpoints._pickles import Inert
from segdeploy.checkpoints.reading import MOST_ELEMENTS, MOST_TENSORS, OTHER_FILE, WEIGHTS, Stored
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.names import shown

PREFIXES = (
    *("module.", "_orig_mod.", "model.", "net.", "network.", "segmentor.", "student.", "teacher."),
    *("ema.", "ema_model.", "model_ema."),
)
NO_WEIGHTS = ("optimizer", "optimizer_states", "lr_scheduler", "lr_schedulers", "scaler", "callbacks", "message_hub")
_DEEPEST = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of a network by name, what was written beside them, and what was unwrapped to reach them.

    `apart`: tensors beside the network's own, such as a loss's.
    """

    tensors: Mapping[str, Stored]
    facts: Mapping[str, Any]
    wrapping: tuple[str, ...]
    apart: tuple[str, ...]


def unwrap(value: Any, path: Path, *, part: str | None = None) -> Weights:  # noqa: ANN401 - what `reading.open_file` gives
    """Raise InvalidFileError for what holds no weights, InvalidRequestError where several networks lie side by side.

    `part` says which of them is meant.
    """
    facts: dict[str, Any] = {}
    wrapping: list[str] = []
    for _ in range(_DEEPEST):
        found = _mapping(value, path)
        inner = _containers(found)
        tensors = {key: each for key, each in found.items() if isinstance(key, str) and isinstance(each, Stored)}
        facts = {**facts, **{key: each for key, each in found.items() if isinstance(key, str) and key not in tensors}}
        if not inner or any(each.shape for each in tensors.values()):
            if not tensors:
                break
            return _without_prefixes(tensors, facts, wrapping, part, path)
        name = _one_of(inner, part, path)
        wrapping.append(name)
        value = found[name]
    raise InvalidFileError(f"{path} holds no weights.", OTHER_FILE)


def _mapping(value: Any, path: Path) -> Mapping[Any, Any]:  # noqa: ANN401 - as unwrap
    if isinstance(value, dict):
        return value
    if isinstance(value, Inert):
        if value.items:
            return value.items
        raise InvalidFileError(
            f"{path} holds a whole {_kind(value)}, not its weights: to open it, its code would have to run.", WEIGHTS
        )
    raise InvalidFileError(f"{path} holds no weights, but {type(value).__name__}.", OTHER_FILE)


def _kind(value: Inert) -> str:
    return shown(value.kind)


def _containers(found: Mapping[Any, Any]) -> list[str]:
    """The keys behind which weights lie; a whole module counts, so that it is named."""
    return [key for key, value in _named(found) if any(map(_holds, _within(value)))]


def _named(found: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in found.items() if isinstance(key, str) and key not in NO_WEIGHTS]


def _within(value: Any) -> Iterator[Any]:  # noqa: ANN401 - as unwrap
    """A container and those in it; what is named in many places comes once."""
    level, seen = [value], {id(value)}
    for _ in range(_DEEPEST - 1):
        yield from level
        inner = [each for container in level for _, each in _named(_items(container)) if id(each) not in seen]
        level = list({id(each): each for each in inner if _items(each)}.values())
        seen.update(map(id, level))


def _items(value: Any) -> Mapping[Any, Any]:  # noqa: ANN401 - as unwrap
    found = value.items if isinstance(value, Inert) else value
    return found if isinstance(found, dict) else {}


def _holds(value: Any) -> bool:  # noqa: ANN401 - as unwrap
    """Whether a container itself has tensors, or is a module."""
    if isinstance(value, Inert) and isinstance(value.state, dict) and "_modules" in value.state:
        return True
    return any(isinstance(each, Stored) for _, each in _named(_items(value)))


def _one_of(names: list[str], part: str | None, path: Path) -> str:
    if part in names:
        return part
    if len(names) == 1:
        return names[0]
    raise InvalidRequestError(
        f"{path} holds several networks: {', '.join(map(shown, sorted(names)[:8]))}.", "Say which: --part NAME"
    )


def _without_prefixes(
    tensors: dict[str, Stored], facts: Mapping[str, Any], wrapping: list[str], part: str | None, path: Path
) -> Weights:
    if len(tensors) > MOST_TENSORS:
        raise InvalidFileError(f"{path} holds {len(tensors):,} tensors, more than any network of ours.", OTHER_FILE)
    if sum(each.elements for each in tensors.values()) > MOST_ELEMENTS:
        raise InvalidFileError(
            f"{path} holds more than {MOST_ELEMENTS:,} numbers, far above the four networks.", OTHER_FILE
        )
    apart: list[str] = []
    while prefixes := [prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in tensors)]:
        prefix = f"{_one_of([each.removesuffix('.') for each in prefixes], part, path)}."
        wrapping.append(prefix)
        apart += [name for name in tensors if not name.startswith(prefix)]
        tensors = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
    return Weights(tensors, facts, tuple(wrapping), tuple(apart))
