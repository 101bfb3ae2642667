"""What a module gives, by name: a tensor, several, a dictionary, or an object with `logits`."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

ONLY = "output"  # what the one output of a module is called that gives a tensor
MAIN = ("out", "logits")  # of torchvision and of Hugging Face: where there is one, the others are auxiliary


def named(given: Any) -> dict[str, Tensor]:  # noqa: ANN401 - whatever a module gives
    """The tensors by their names: keys, attributes, or places; none where there is no tensor."""
    if isinstance(given, Tensor):
        return {ONLY: given}
    return {name: value for name, value in _parts(given) if isinstance(value, Tensor)}


def _parts(given: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - whatever a module gives
    if isinstance(given, Mapping):
        yield from ((str(key), value) for key, value in given.items())
    elif isinstance(given, list | tuple):
        names = getattr(given, "_fields", range(len(given)))
        yield from zip(map(str, names), given, strict=True)
    elif hasattr(given, "logits"):
        yield "logits", given.logits


def of_mask(given: Any, wanted: str | None) -> dict[str, Tensor]:  # noqa: ANN401 - whatever a module gives
    """Those that may be the mask: the one that is `wanted`, else `out` or `logits` where there is one, else all."""
    found = named(given)
    chosen = [wanted] if wanted is not None else [name for name in MAIN if name in found][:1]
    return {name: found[name] for name in chosen if name in found} or found


class _Held(nn.Module):
    """A TorchScript module, its weights constants: torch.export knows them for no parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._held = [module]

    def forward(self, images: Tensor) -> Any:  # noqa: ANN401 - whatever a module gives
        return self._held[0](images)


class Named(nn.Module):
    """A module that gives by name what may be its mask: (N, C, H, W) -> tensors."""

    def __init__(self, module: nn.Module, wanted: str | None = None) -> None:
        super().__init__()
        self.module = _Held(module) if isinstance(module, torch.jit.ScriptModule) else module
        self.wanted = wanted

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return of_mask(self.module(images), self.wanted)
