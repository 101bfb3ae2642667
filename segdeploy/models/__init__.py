"""The networks: one public file each, found by listing the folder (a leading underscore is no network)."""

import ast
import importlib
import json
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy import cores
from segdeploy.errors import InvalidRequestError

if TYPE_CHECKING:
    from types import ModuleType

    from segdeploy.blocks import Network
    from segdeploy.models._deployed import Deployed as Deployed
    from segdeploy.spec import Spec


def names() -> list[str]:
    """Every network's name; imports none of them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def build(name: str, classes: int, /, **variant: Any) -> "Network":  # noqa: ANN401 - what the model file's `build` takes
    """A freshly initialised network; `variant` are the keyword arguments of the model file's `build`."""
    module = load(name)
    known = defaults(name)
    unknown = sorted(set(variant) - set(known))
    if unknown:
        raise InvalidRequestError(f"{name} has no option {', '.join(unknown)}.", f"Its options are {', '.join(known)}.")
    for option, value in variant.items():
        _require_kind(option, value, known[option])
    network: Network = module.build(classes, **variant)
    return network


def rebuild(spec: "Spec") -> "Network":
    """The network a Spec describes, freshly initialised."""
    return build(spec.model, len(spec.classes), **spec.variant)


def deployed(network: "Network", spec: "Spec") -> "Deployed":
    """The network with what surrounds it: uint8 images in; class map or logits out, as the Spec says."""
    from segdeploy.models._deployed import Deployed as Deployed

    cores.limit_torch()  # every use of a network comes by here
    return Deployed(network, spec)


def require(name: str) -> None:
    if name not in names():
        raise InvalidRequestError(f"there is no model named {name!r}.", f"Choose one of {', '.join(names())}.")


def load(name: str) -> "ModuleType":
    require(name)
    return importlib.import_module(f"{__name__}.{name}")


def defaults(name: str) -> dict[str, Any]:
    """The options of one network with their default values; read from the file, so that torch need not be there."""
    build = next(node for node in _parsed(name).body if isinstance(node, ast.FunctionDef) and node.name == "build")
    values = [ast.literal_eval(value) for value in build.args.kw_defaults if value is not None]
    return dict(zip((argument.arg for argument in build.args.kwonlyargs), values, strict=True))


def description(name: str) -> str:
    """The first line of the network's file: its name and its paper."""
    return (ast.get_docstring(_parsed(name)) or "").partition("\n")[0]


def _require_kind(option: str, value: object, default: object) -> None:
    """Text counts as true and true as 1: only a value of the default's kind is what its writer meant."""
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
    taken = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, taken) or isinstance(value, bool) != isinstance(default, bool):
        raise InvalidRequestError(
            f"{option}={value!r} is not {kinds[type(default)]}.",
            f"Give a value such as {option}={json.dumps(default)}.",
        )


def _parsed(name: str) -> ast.Module:
    require(name)
    return ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
