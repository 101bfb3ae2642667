"""Options that several commands share, and how their values are read."""

import contextlib
import functools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from segdeploy.data.dataset import DataFolder
    from segdeploy.engines import RunOptions

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

FORMS = ("signed", "unsigned")  # those of `segdeploy.precision.forms`, which imports NumPy
FOLDER = click.Path(path_type=Path, file_okay=False)
LAYOUT = "segdeploy.layout"  # where a command's context keeps it
FILE = click.Path(path_type=Path, dir_okay=False)


def together(*decorators: Decorator) -> Decorator:
    """Several options as one decorator; --help lists them in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


class Names(click.ParamType):  # type: ignore[type-arg]  # click 8.2 takes no argument there
    """One of the names of a registry, which is asked for them when a value or the help of a command needs them.

    `shown`: what the help shows, where the registry takes long to ask.
    """

    name = "choice"

    def __init__(self, names: Callable[[], Sequence[str]], *, shown: Sequence[str] | None = None) -> None:
        self._names = names
        self._shown = shown

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        return click.Choice(self._shown or self._names()).get_metavar(param, ctx)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401 - click's signature
        return click.Choice(self._names()).convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        return click.Choice(self._names()).shell_complete(ctx, param, incomplete)


def low_precisions() -> list[str]:
    """`fp16`, `int8` and so on."""
    from segdeploy import precision

    return precision.names()


def _fits() -> list[str]:
    from segdeploy.spec import FITS

    return list(FITS)


def _forms() -> list[str]:
    from segdeploy import precision

    return precision.forms()


def _size(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    sides = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", value.lower())
    if sides is None:
        raise click.BadParameter(f"{value!r} is not HEIGHTxWIDTH, such as 256x256.")
    return int(sides[1]), int(sides[2])


def parsed_variant(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """`depth=18` -> {"depth": 18}: numbers and true/false as such, the rest as text."""
    variant: dict[str, Any] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE, such as multiplier=0.5.")
        variant[key] = text
        with contextlib.suppress(ValueError):
            variant[key] = json.loads(text)
    return variant


def _layouts() -> list[str]:
    from segdeploy.data import layouts

    return layouts.names()


def _keep_layout(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    """Read before the folder, whose value takes it in."""
    context.meta[LAYOUT] = value


def _folder(context: click.Context, parameter: click.Parameter, value: Path | None) -> "DataFolder | None":
    """The folder with the layout that --layout names."""
    from segdeploy.data.dataset import DataFolder

    layout = context.meta.get(LAYOUT)
    if value is None and layout is not None:
        raise click.UsageError(f"--layout says how {parameter.opts[0]} is laid out: give both.")
    return None if value is None else DataFolder(value, layout)


def data(**attributes: Any) -> Decorator:  # noqa: ANN401 - click's own
    """`--data`, a folder in the layout that `--layout` names; the command takes both as one DataFolder."""
    return together(click.option("--data", type=FOLDER, callback=_folder, **attributes), _layout)


def data_argument(name: str) -> Decorator:
    """The same for a folder that is an argument."""
    return together(click.argument(name, type=FOLDER, callback=_folder), _layout)


def size(option: str = "--size", **attributes: Any) -> Decorator:  # noqa: ANN401 - click's own
    """An option whose value is HEIGHTxWIDTH."""
    return click.option(option, metavar="HxW", callback=_size, **attributes)


def run_options(cuda: str | None, *, cuda_graphs: bool, threads: int | None = None) -> "RunOptions":
    """What the options of `running` say, but for the device."""
    from segdeploy.engines import RunOptions

    return RunOptions(threads=threads, cuda=cuda, cuda_graphs=cuda_graphs)


_layout = click.option(
    "--layout",
    type=Names(_layouts),
    metavar="NAME",
    expose_value=False,
    is_eager=True,
    callback=_keep_layout,
    help="How the labelled folder is laid out, such as cityscapes (docs/data.md). Default: it is recognised.",
)
fit = together(
    click.option(
        "--fit",
        type=Names(_fits),
        metavar="stretch|letterbox|tile|auto",
        help="How images of another size meet the network: resized, resized with grey around, in tiles, or in tiles "
        "above 67 megapixels. Default: as it was trained, else stretch.",
    ),
    click.option(
        "--overlap",
        type=click.IntRange(0),
        metavar="PIXELS",
        help="Of tiles: the border that a neighbour decides. Default: an eighth of the side.",
    ),
)
decode = click.option(
    "--decode",
    type=click.Choice(["exact", "scaled"]),
    default="exact",
    show_default=True,
    help="scaled: large JPEGs at a half, a quarter or an eighth of their size, which is faster.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
required_model = click.option("--model", metavar="NAME", required=True, help="Network to use.")
model = click.option(
    "--model", metavar="NAME", help="Network, or a .onnx or .plan file. Default: the newest export, else unet."
)
engine = click.option(
    "--engine",
    default="fp32",
    show_default=True,
    metavar="[RUNTIME:]PRECISION",
    help="Such as fp32, int8, ov:int8, trt:fp16, torch:fp32. Without a runtime: the best usable one here.",
)
variant = click.option(
    "--option",
    "variant",
    multiple=True,
    metavar="KEY=VALUE",
    callback=parsed_variant,
    help="How the network is built, such as multiplier=0.5; `segdeploy models` lists them. Repeat for more.",
)
running = together(
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where the engine runs; auto takes what the installed runtime was built for.",
    ),
    click.option(
        "--cuda",
        type=click.Choice(["cuda-bindings", "pycuda"]),
        help="How a plan reaches the GPU. Default: what is installed.",
    ),
    click.option(
        "--cuda-graphs/--no-cuda-graphs", default=True, show_default=True, help="Launch a plan's network at once."
    ),
)
quantizing = together(
    click.option(
        "--form",
        "forms",
        multiple=True,
        type=Names(_forms, shown=FORMS),
        help="Of int8: signed for TensorRT, unsigned for ONNX Runtime and OpenVINO. Default: both.",
    ),
    click.option("--calibrate", type=FOLDER, help="Images for calibration. Default: packaged ones, or of --data."),
    click.option(
        "--calibration-method",
        "method",
        type=click.Choice(["minmax", "percentile", "entropy", "mse"]),
        help="How int8 ranges are clipped. Default: percentile.",
    ),
    click.option(
        "--calibration-cache",
        "cache",
        type=click.Path(path_type=Path, dir_okay=False, exists=True),
        help="An old TensorRT calibration cache in place of images.",
    ),
)
allow_inconclusive = click.option(
    "--allow-inconclusive", is_flag=True, help="Go on where the proof could not have failed: PyTorch draws one class."
)
agreement = functools.partial(click.option, "--min-agreement", type=click.FloatRange(0, 1), metavar="SHARE")
max_drop = functools.partial(click.option, "--max-drop", type=click.FloatRange(0), metavar="POINTS")
force = click.option("--force", is_flag=True, help="Go on where the check of the labels only warns (docs/data.md).")
