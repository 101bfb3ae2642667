"""How results are printed: one JSON document, or lines and a table."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from segdeploy.artifact import Artifact
    from segdeploy.spec import Fit

FILE_WIDTH = 200
UNBOUNDED = 100_000  # columns: more than any table has
LONGEST_VALUE = 160  # characters: two lines of a terminal


def show(document: object, *, as_json: bool, lines: Iterable[str], table: "Callable[[], Table] | None" = None) -> None:
    """A result on stdout: a dataclass (or a mapping of such) as JSON, or the table and the lines that are not empty."""
    if as_json:
        from segdeploy import typed_json

        click.echo(json.dumps(typed_json.to_builtins(document), indent=1))
        return
    if table is not None:
        _print(table())
    click.echo("\n".join(line for line in lines if line))


def _print(table: "Table") -> None:
    """As a table where it fits, else a block of lines for each row: squeezed columns cannot be read."""
    wide = console()
    unbounded = wide.options.update(max_width=UNBOUNDED)
    if wide.measure(table, options=unbounded).maximum <= wide.width:
        wide.print(table)
        return
    headers = [str(column.header) for column in table.columns]
    longest = max(map(len, headers))
    for first, *others in zip(*(column.cells for column in table.columns), strict=True):
        lines = [str(first), *(f"  {name:{longest}}  {cell}" for name, cell in zip(headers[1:], others, strict=True))]
        click.echo("\n".join(lines))
    click.echo()


def console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = FILE_WIDTH  # a table in a log is not cut at eighty columns
    return made


def table(*columns: str) -> "Table":
    """An empty table."""
    from rich.box import SIMPLE
    from rich.table import Table

    made = Table(box=SIMPLE, pad_edge=False)
    for column in columns:
        made.add_column(column)
    return made


def other_fit(fit: "Fit", own: "Fit") -> Iterator[str]:
    """A line where images met the network in another way than the one it was proven for."""
    if fit != own:
        yield f"Fit: {fit}, as asked; this network is made and proven for {own}."


def miou(value: float | None) -> str:
    return "no mIoU" if value is None else f"mIoU {value:.4f}"


def number(value: float | None, form: str) -> str:
    """A number as `form` says, such as .4%, or a dash."""
    return "-" if value is None else format(value, form)


def artifact_line(made: "Artifact") -> str:
    """Where a graph or a plan lies, its size, and what goes in and comes out."""
    spec, size_mb = made.spec, made.path.stat().st_size / 1e6
    return f"{made.path}  {size_mb:.1f} MB  {spec.height}x{spec.width}  {len(spec.classes)} classes"


def layer_name(layer: str) -> str:
    """`encoder.0.1.conv/Conv` -> the module whose convolution it is; any other node by its own name."""
    module, _, kind = layer.partition("/")
    return module if kind in {"Conv", "ConvTranspose"} else layer


def outline(value: Any, indent: str = "") -> Iterator[str]:  # noqa: ANN401 - any JSON value
    """Nested facts, a line each; what holds no further mapping stays on its line."""
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, inner in pairs:
        if isinstance(inner, Mapping) or _holds_mappings(inner):
            yield f"{indent}{key}:"
            yield from outline(inner, f"{indent}  ")
        else:
            yield f"{indent}{key}: {short(inner)}"


def _holds_mappings(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    return isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value)


def short(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """A JSON value on a line or two."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
