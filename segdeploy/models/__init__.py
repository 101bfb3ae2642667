"""The networks: one public file each, found by listing the folder (a leading underscore is no network)."""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from segdeploy.errors import InvalidRequestError

if TYPE_CHECKING:
    from types import ModuleType

    from segdeploy.models._blocks import Network
    from segdeploy.models._deployed import Deployed
    from segdeploy.spec import Spec


def names() -> list[str]:
    """Every network's name; imports none of them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def build(name: str, classes: int, **variant: Any) -> "Network":  # noqa: ANN401 - what the model file's `build` takes
    """A freshly initialised network; `variant` are the keyword arguments of the model file's `build`."""
    module = load(name)
    known = defaults(name)
    unknown = sorted(set(variant) - set(known))
    if unknown:
        raise InvalidRequestError(
            f"{name} has no option {', '.join(unknown)}.", f"Its options are {', '.join(known)}."
        )
    network: Network = module.build(classes, **variant)
    return network


def rebuild(spec: "Spec") -> "Network":
    """The network a Spec describes, freshly initialised."""
    return build(spec.model, len(spec.classes), **spec.variant)


def deployed(network: "Network", spec: "Spec") -> "Deployed":
    """The network with what surrounds it: uint8 images in; class map or logits out, as the Spec says."""
    from segdeploy.models._deployed import Deployed

    return Deployed(network, spec)


def defaults(name: str) -> Mapping[str, Any]:
    """The options of one network with their default values."""
    parameters = inspect.signature(load(name).build).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def load(name: str) -> "ModuleType":
    if name not in names():
        raise InvalidRequestError(f"there is no model named {name!r}.", f"Choose one of {', '.join(names())}.")
    return importlib.import_module(f"{__name__}.{name}")
