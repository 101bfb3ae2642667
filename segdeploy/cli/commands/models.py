"""The networks, their options, the weights at hand."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import click

from segdeploy.cli import options, rendering

if TYPE_CHECKING:
    from segdeploy.inspection import ModelDescription

ORDER = 120


@dataclasses.dataclass(frozen=True, slots=True)
class ModelsReport:
    """Every network."""

    schema: Literal[1]
    models: "Sequence[ModelDescription]"


@click.command(short_help=__doc__)
@options.as_json
def models(*, as_json: bool) -> None:
    """The networks, how each can be built, and which weights are at hand."""
    from segdeploy import api

    listed = api.list_models()
    lines = (line for model in listed for line in _lines(model))
    rendering.show(ModelsReport(1, listed), as_json=as_json, lines=lines)


def _lines(model: "ModelDescription") -> Iterator[str]:
    variant = "  ".join(f"{key}={json.dumps(value)}" for key, value in model.options.items())
    weights = [f"{each.kind} {each.path} ({rendering.miou(each.val_miou)})" for each in model.weights]
    yield f"{model.name}: {model.description}"
    yield f"    options: {variant}"
    yield f"    weights: {', '.join(weights) or 'none'}"


COMMAND = models
