"""Pickles read without running them: an interpreter that imports nothing and calls nothing.

Tensors become `TensorRecord`, plain values themselves, and every object of a class an `Inert` that says which class it
was.
"""

import dataclasses
import pickletools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

MOST_STEPS = 5_000_000  # of a pickle; the optimiser of a large network has under 100,000
_PLAIN_KEYS = (str, int, float, bool, bytes, type(None))
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,  # as a list: what is in it need not be hashed
}
_MARK = object()


class PickleError(Exception):
    """What stands in the file is no pickle, or more than one that holds weights."""


class Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...
    def readline(self) -> bytes: ...


@dataclasses.dataclass(slots=True, eq=False)
class Inert:
    """An object of a class that was not imported: its class, what it was called with, its state and its items."""

    kind: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = dataclasses.field(default_factory=dict)
    elements: list[Any] = dataclasses.field(default_factory=list)
    is_class: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor that was not read yet: `storage` is its key and type, `offset` and `strides` count elements."""

    storage: Any
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str | None = None


def load(stream: Stream) -> Any:  # noqa: ANN401 - whatever was pickled
    """The value of one pickle; the stream then stands behind it. Raise PickleError."""
    try:
        return _Machine().run(stream)
    except (IndexError, TypeError, ValueError, AttributeError, KeyError, OverflowError, RecursionError) as error:
        raise PickleError(f"its pickle is damaged ({error})") from error


class _Machine:
    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, stream: Stream) -> Any:  # noqa: ANN401 - whatever was pickled
        for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type] # it reads only
            if step > MOST_STEPS:
                raise PickleError(f"its pickle has more than {MOST_STEPS:,} steps")
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, argument)
        raise PickleError("its pickle ends early")

    def _step(self, name: str, argument: Any) -> None:  # noqa: ANN401 - of the opcode
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in {"PROTO", "FRAME"}:
            return
        elif (act := getattr(self, f"_{name.lower()}", None)) is not None:
            act(argument) if argument is not None else act()
        else:
            raise PickleError(f"its pickle uses {name}, which weights need not")

    def _marked(self) -> list[Any]:
        start = len(self._stack) - 1 - self._stack[::-1].index(_MARK)
        found = self._stack[start + 1 :]
        del self._stack[start:]
        return found

    def _mark(self) -> None:
        self._stack.append(_MARK)

    def _pop(self) -> None:
        self._stack.pop()

    def _pop_mark(self) -> None:
        self._marked()

    def _dup(self) -> None:
        self._stack.append(self._stack[-1])

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    _binput = _long_binput = _put

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    _binget = _long_binget = _get

    def _list(self) -> None:
        self._stack.append(self._marked())

    _frozenset = _list

    def _tuple(self) -> None:
        self._stack.append(tuple(self._marked()))

    def _tuple_of(self, count: int) -> None:
        found = tuple(self._stack[-count:])
        del self._stack[-count:]
        self._stack.append(found)

    def _tuple1(self) -> None:
        self._tuple_of(1)

    def _tuple2(self) -> None:
        self._tuple_of(2)

    def _tuple3(self) -> None:
        self._tuple_of(3)

    def _dict(self) -> None:
        found = self._marked()
        self._stack.append(_paired(found))

    def _append(self) -> None:
        value = self._stack.pop()
        _extend(self._stack[-1], [value])

    def _appends(self) -> None:
        values = self._marked()
        _extend(self._stack[-1], values)

    _additems = _appends

    def _setitem(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        _items(self._stack[-1])[_key(key)] = value

    def _setitems(self) -> None:
        pairs = _paired(self._marked())
        _items(self._stack[-1]).update(pairs)

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(Inert(f"{module}.{name}", is_class=True))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(Inert(f"{module}.{name}", is_class=True))

    def _inst(self, argument: str) -> None:
        self._stack.append(Inert(argument.replace(" ", "."), tuple(self._marked())))

    def _obj(self) -> None:
        kind, *arguments = self._marked()
        self._stack.append(_made(kind, tuple(arguments)))

    def _reduce(self) -> None:
        arguments, kind = self._stack.pop(), self._stack.pop()
        self._stack.append(_made(kind, arguments))

    _newobj = _reduce

    def _newobj_ex(self) -> None:
        self._stack.pop()
        self._reduce()

    def _build(self) -> None:
        state = self._stack.pop()
        if isinstance(self._stack[-1], Inert):
            self._stack[-1].state = state

    def _persid(self, argument: str) -> None:
        self._stack.append(argument)

    def _binpersid(self) -> None:
        return  # the tuple that says which storage stays on the stack


def _made(kind: Any, arguments: Any) -> Any:  # noqa: ANN401 - what a pickle calls, and with what
    """What a call would have given: plain containers and tensors as such, the rest inert."""
    if not isinstance(kind, Inert) or not isinstance(arguments, tuple):
        raise PickleError("its pickle calls what is no class")
    if kind.kind == "collections.OrderedDict":
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
        return {_key(key): value for key, value in pairs}
    if kind.kind in {"torch.Size", "builtins.tuple", "__builtin__.tuple"} and len(arguments) == 1:
        return tuple(arguments[0])
    if (rebuild := _TENSORS.get(kind.kind)) is not None:
        return rebuild(*arguments)
    return Inert(kind.kind, arguments)


def _tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> TensorRecord:  # noqa: ANN401 - of a pickle
    return TensorRecord(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _typed_tensor(storage: Any, offset: int, shape: Any, strides: Any, *others: Any) -> TensorRecord:  # noqa: ANN401 - the same
    kind = next((each.kind for each in others if isinstance(each, Inert)), None)
    return dataclasses.replace(_tensor(storage, offset, shape, strides), dtype=kind)


def _first(data: Any, *_: Any) -> Any:  # noqa: ANN401 - a tensor
    return data


def _wrapped(rebuild: Any, _type: Any, arguments: Any, *_: Any) -> Any:  # noqa: ANN401 - a call inside a call
    return _made(rebuild, arguments)


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _wrapped,
}


def _paired(flat: list[Any]) -> dict[Any, Any]:
    return {_key(key): value for key, value in zip(flat[::2], flat[1::2], strict=True)}


def _key(key: Any) -> Any:  # noqa: ANN401 - of a dictionary
    """Plain keys as they are; what takes long to hash is known by nothing but itself."""
    return key if isinstance(key, _PLAIN_KEYS) else Inert("key", (key,))


def _items(target: Any) -> dict[Any, Any]:  # noqa: ANN401 - a dictionary, or an object of a class derived from it
    found: dict[Any, Any] = target.items if isinstance(target, Inert) else target
    if not isinstance(found, dict):
        raise PickleError("its pickle sets items of what is no dictionary")
    return found


def _extend(target: Any, values: list[Any]) -> None:  # noqa: ANN401 - a list, or an object of a class derived from it
    found = target.elements if isinstance(target, Inert) else target
    if not isinstance(found, list):
        raise PickleError("its pickle appends to what is no list")
    found.extend(values)


def inside(value: Any, depth: int) -> Iterator[Any]:  # noqa: ANN401 - whatever was pickled
    """The value and what lies in it, so many containers deep; what is named in many places comes once."""
    level, seen = [value], {id(value)}
    for _ in range(depth + 1):
        yield from level
        parts = [part for each in level for part in _parts(each) if id(part) not in seen]
        level = list({id(part): part for part in parts}.values())
        seen.update(map(id, level))


def _parts(value: Any) -> list[Any]:  # noqa: ANN401 - whatever was pickled
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple):
        return list(value)
    return [*value.items.values(), *value.elements, value.state] if isinstance(value, Inert) else []
