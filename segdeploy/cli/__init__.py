"""The command line: a body parses, calls one function of `pipeline`, prints. Results on stdout, all else on stderr."""

import contextlib
import functools
import io
import json
import logging
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from segdeploy._version import __version__
from segdeploy.errors import InvalidRequestError, SegdeployError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from segdeploy.artifact import Artifact
    from segdeploy.engines import RunOptions

EXIT_FAILED_GATE = 4
EXIT_FAILED_IMAGES = 5
EXIT_INTERRUPTED = 130
EXIT_DEFECT = 1
EXIT_ENVIRONMENT = 3
FILE_WIDTH = 200
PROFILED_LINES = 10
MOST_NAMED = 3  # classes and images in a line; the JSON has all
LONGEST_NAME = 24


def main() -> NoReturn:
    """Run the command line; every failure ends in two lines and its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold any bytes
    logging.basicConfig(format="%(message)s")
    logging.getLogger("segdeploy").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # a damaged EXIF block is no news to whoever wants a mask
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except SegdeployError as error:
        _fail(error.what, error.remedy, error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "segdeploy"
        _fail(error.format_message(), f"See {command} --help", InvalidRequestError.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), "See segdeploy --help", InvalidRequestError.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted; what was finished is kept.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone: nothing is left to say
        sys.exit(EXIT_DEFECT)
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}.", "Check path, permissions and space.", 3)


def _fail(what: str, remedy: str, code: int) -> NoReturn:
    click.echo(f"Error: {' '.join(what.split())}\n{' '.join(remedy.split())}", err=True)
    sys.exit(code)


class _Journey(click.Group):
    """Lists the commands in the order in which a network meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)


@click.group(cls=_Journey, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="segdeploy")
def cli() -> None:
    """Semantic segmentation, deployed: train, export exactly, prove it, time it, run it over a folder.

    \b
      segdeploy train --model unet --data DIR     train on a folder of images/ and masks/
      segdeploy export --model segnet             write export/segnet.fp32.onnx and prove it
      segdeploy export --model segnet --precision int8
                                                  the same in int8, inside an accuracy budget
      segdeploy parity --model segnet --data DIR  compare PyTorch, graph and engine by pixels
      segdeploy build --model unet --engine trt:fp16
                                                  compile a plan for an NVIDIA GPU, signed
      segdeploy bench --engine fp32               time it, with percentiles
      segdeploy report unet.json                  one page that says which engine to ship
      segdeploy infer ./images                    masks for a folder of photographs
    """  # noqa: D301 - a raw string would not hold click's mark


def _model(*, required: bool = False) -> Callable[..., Any]:
    named = "Network, or a .onnx or .plan file. Default: the newest export, else unet."
    text = "Network to use." if required else named
    return click.option("--model", metavar="NAME", required=required, help=text)


_engine = click.option(
    "--engine",
    default="fp32",
    show_default=True,
    metavar="[RUNTIME:]PRECISION",
    help="Such as fp32, int8, ov:int8, trt:fp16, torch:fp32. Without a runtime: the best usable one here.",
)


def _running(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of how an engine runs."""
    options = [
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
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _run_options(cuda: str | None, *, cuda_graphs: bool, threads: int | None = None) -> "RunOptions":
    from segdeploy.engines import RunOptions

    return RunOptions(threads=threads, cuda=cuda, cuda_graphs=cuda_graphs)


_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
_folder = click.Path(path_type=Path, file_okay=False)


def _size(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    sides = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", value.lower())
    if sides is None:
        raise click.BadParameter(f"{value!r} is not HEIGHTxWIDTH, such as 256x256.")
    return int(sides[1]), int(sides[2])


def _options(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """`depth=18` -> {"depth": 18}: numbers and true/false as such, the rest as text."""
    options: dict[str, Any] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE, such as multiplier=0.5.")
        options[key] = text
        with contextlib.suppress(ValueError):
            options[key] = json.loads(text)
    return options


_size_option = functools.partial(click.option, "--size", metavar="HxW", callback=_size)
_option = click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_options,
    help="How the network is built, such as multiplier=0.5; `segdeploy models` lists them. Repeat for more.",
)


@cli.command(short_help="Train a network on a labelled folder.")
@_model(required=True)
@click.option(
    "--data", required=True, type=_folder, help="Folder with images/, masks/, train.txt, val.txt, classes.csv."
)
@_option
@_size_option(default="256x256", show_default=True, help="Network input; every image is stretched to it.")
@click.option("--crop", metavar="HxW", callback=_size, help="What the network sees of it in training. Default: all.")
@click.option("--epochs", default=50, show_default=True, type=click.IntRange(1))
@click.option("--batch", default=8, show_default=True, type=click.IntRange(1))
@click.option("--learning-rate", default=2e-3, show_default=True, type=click.FloatRange(0, min_open=True))
@click.option("--weight-decay", default=1e-4, show_default=True, type=click.FloatRange(0))
@click.option("--scale", nargs=2, default=(0.75, 1.5), show_default=True, type=click.FloatRange(0.1, 10))
@click.option("--flip-vertically", is_flag=True, help="Where up and down mean nothing, as under a microscope.")
@click.option("--class-weights", type=click.Choice(["none", "median"]), default="none", show_default=True)
@click.option("--ignore-index", default=255, show_default=True, type=click.IntRange(0, 255))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--workers", default=0, show_default=True, type=click.IntRange(0), help="Processes that read images.")
@click.option("--threads", type=click.IntRange(1), help="Threads of PyTorch. Default: all cores.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--out", default="checkpoints", show_default=True, type=_folder)
@click.option("--resume", is_flag=True, help="Go on from the last epoch of a run that was cut off.")
@_json
def train(
    *,
    model: str,
    data: Path,
    options: dict[str, Any],
    size: tuple[int, int],
    crop: tuple[int, int] | None,
    epochs: int,
    batch: int,
    learning_rate: float,
    weight_decay: float,
    scale: tuple[float, float],
    flip_vertically: bool,
    class_weights: str,
    ignore_index: int,
    seed: int,
    workers: int,
    threads: int | None,
    device: str,
    out: Path,
    resume: bool,
    as_json: bool,
) -> None:
    """Train a network: cross-entropy, flips, scale and crop, poly schedule, a checkpoint every epoch."""
    from segdeploy import making
    from segdeploy.checkpoints import checkpoint

    try:
        import torch

        from segdeploy.training.data import Augmentation
        from segdeploy.training.loop import Plan
    except ImportError as error:
        raise checkpoint.missing_torch() from error
    if threads:
        torch.set_num_threads(threads)
    plan = Plan(
        augmentation=Augmentation(crop=crop or size, scale=scale, flip_vertically=flip_vertically),
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        class_weights=class_weights,
        seed=seed,
        workers=workers,
        device=device,
    )
    with _training_bar(epochs) as progress:
        best = making.train(
            model,
            data=data,
            plan=plan,
            size=size,
            options=options,
            out=out,
            ignore_index=ignore_index,
            resume=resume,
            progress=progress,
        )
    made_by = checkpoint.read(best).made_by
    report = {"schema": 1, "checkpoint": str(best), "epoch": made_by["epoch"], "val_miou": made_by["val_miou"]}
    _print(report, as_json=as_json, lines=[f"{best}: best after epoch {report['epoch']}, {_miou(report['val_miou'])}"])


def _narrowed(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of what is made narrower: how, and on which images."""
    options = [
        click.option("--form", "forms", multiple=True, type=click.Choice(["signed", "unsigned"]), help=_FORM_HELP),
        click.option("--calibrate", type=_folder, help="Images for calibration. Default: packaged ones, or of --data."),
        click.option(
            "--calibration-method",
            "method",
            type=click.Choice(["minmax", "percentile", "entropy", "mse"]),
            help=_METHOD_HELP,
        ),
        click.option(
            "--calibration-cache",
            "cache",
            type=click.Path(path_type=Path, dir_okay=False, exists=True),
            help=_CACHE_HELP,
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


_FORM_HELP = "Of int8: signed for TensorRT, unsigned for ONNX Runtime and OpenVINO. Default: both."
_METHOD_HELP = "How int8 ranges are clipped. Default: percentile."
_CACHE_HELP = "An old TensorRT calibration cache in place of images."


@cli.command(short_help="Write the deployed graph, in fp32, fp16 or int8, and prove it.")
@_model(required=True)
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32", show_default=True, help="Of the graph."
)
@click.option(
    "--weights", metavar="PATH|random", help="Default: what training left in checkpoints/, else the packaged."
)
@_size_option(help="Network input. Default: the size it was trained at.")
@click.option("--output", type=click.Choice(["class_map", "logits"]), default="class_map", show_default=True)
@_option
@click.option("--data", type=_folder, help="Images to prove it on; with masks/, mIoU counts. Default: packaged ones.")
@_narrowed
@click.option(
    "--max-drop",
    type=click.FloatRange(0),
    metavar="POINTS",
    help="mIoU that may be lost, with --data. Default: 0.5 (int8), 0.05 (fp16).",
)
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Pixels that must agree with PyTorch. Default: 0.98 (int8), 0.999 (fp16).",
)
@_json
def export(
    *,
    model: str,
    precision: str,
    weights: str | None,
    size: tuple[int, int] | None,
    output: str,
    options: dict[str, Any],
    data: Path | None,
    as_json: bool,
    **narrow: Any,  # noqa: ANN401 - the options of a narrower graph
) -> None:
    """Write the deployed graph (image in, class map out) and prove that it draws PyTorch's masks.

    fp16 and int8 are made from the fp32 graph inside an accuracy budget: layers that cost too much stay in float32.
    """
    from segdeploy import making
    from segdeploy.spec import Precision

    if precision == Precision.FP32:
        _require_none(narrow, "--precision fp16 or int8")
        graphs = [
            making.export(
                model, weights=weights, size=size, output=output, options=options, data=data, progress=show_progress
            )
        ]
    else:
        _require_none({"output": output if output == "logits" else None}, "--precision fp32")
        wanted = making.Narrow(Precision(precision), data=data, **narrow)
        graphs = making.narrow(model, wanted, weights=weights, size=size, options=options, progress=show_progress)
    report = {"schema": 2, "graphs": [_graph_report(graph) for graph in graphs]}
    _print(report, as_json=as_json, lines=[line for graph in graphs for line in _graph_lines(graph)])


_SPELLED = {"forms": "form", "method": "calibration-method", "cache": "calibration-cache"}


def _require_none(options: Mapping[str, Any], belongs_to: str) -> None:
    given = [_SPELLED.get(name, name.replace("_", "-")) for name, value in options.items() if value not in {None, ()}]
    if given:
        raise InvalidRequestError(f"--{given[0]} belongs to {belongs_to}.", "Leave it out, or change --precision.")


def _graph_report(graph: "Artifact") -> dict[str, Any]:
    return {
        "path": str(graph.path),
        "sha256": graph.sha256,
        "precision": graph.precision,
        "form": graph.form,
        "size_mb": graph.path.stat().st_size / 1e6,
        "in_float": graph.made_by.get("in_float"),
        "asked": graph.made_by.get("asked"),
        "delivered": graph.made_by.get("delivered"),
        "parity": graph.parity,
    }


def _graph_lines(graph: "Artifact") -> Iterator[str]:
    spec, size_mb = graph.spec, graph.path.stat().st_size / 1e6
    yield f"{graph.path}  {size_mb:.1f} MB  {spec.height}x{spec.width}  {len(spec.classes)} classes"
    for layer, reason in graph.made_by.get("in_float", {}).items():
        yield f"  float32: {_module(layer)} ({reason})"
    if "asked" in graph.made_by:
        shares = ", ".join(f"{share:.1%} {kind}" for kind, share in graph.made_by["asked"].items())
        computed = [
            f"{runtime} computes {facts['delivered_share']:.0%} of it in {graph.precision}"
            for runtime, facts in graph.made_by["delivered"].items()
        ]
        yield f"  convolution work: {'; '.join([shares, *computed])}"
    yield f"  {_parity_line(graph.parity or {})}"


def _module(layer: str) -> str:
    """`encoder.0.1.conv/Conv` -> the module whose convolution it is; any other node by its own name."""
    module, _, kind = layer.partition("/")
    return module if kind in {"Conv", "ConvTranspose"} else layer


@cli.command(short_help="Compile a plan for an NVIDIA GPU, and sign it.")
@_model()
@click.option(
    "--engine", required=True, metavar="RUNTIME:PRECISION", help="trt:fp16, trt-rtx:int8; others compile nothing."
)
@click.option(
    "--max-batch", default=8, show_default=True, type=click.IntRange(1, 1024), help="Most images of one call."
)
@click.option("--opt-batch", default=1, show_default=True, type=click.IntRange(1, 1024), help="Images it is tuned for.")
@click.option("--workspace", type=click.IntRange(1), metavar="MB", help="Scratch memory. Default: what there is.")
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path, dir_okay=False),
    help="What TensorRT measured before. Default: one for this version, GPU and driver in the user's cache.",
)
@click.option(
    "--pin-timing-cache", is_flag=True, help="Only read it, and fail on what it lacks: the same kernels again."
)
@click.option("--compute-capability", metavar="X.Y", help="Of the GPU it is for (trt-rtx). Default: the one here.")
@_json
def build(
    *,
    model: str | None,
    engine: str,
    max_batch: int,
    opt_batch: int,
    workspace: int | None,
    timing_cache: Path | None,
    pin_timing_cache: bool,
    compute_capability: str | None,
    as_json: bool,
) -> None:
    """Compile a plan into engines/, with a signed manifest; prove it, where this machine has the GPU for it."""
    from segdeploy import making
    from segdeploy.engines import BuildOptions

    options = BuildOptions(max_batch, opt_batch, workspace, timing_cache, pin_timing_cache, compute_capability)
    plan = making.build(model, engine=engine, options=options, progress=show_progress)
    report = {
        "schema": 1,
        "path": str(plan.path),
        "kind": plan.kind,
        "sha256": plan.sha256,
        "precision": plan.precision,
        "size_mb": plan.path.stat().st_size / 1e6,
        "made_by": plan.made_by,
        "parity": plan.parity,
    }
    _print(report, as_json=as_json, lines=list(_plan_lines(plan)))


def _plan_lines(plan: "Artifact") -> Iterator[str]:
    spec, made = plan.spec, plan.made_by
    size_mb = plan.path.stat().st_size / 1e6
    yield f"{plan.path}  {size_mb:.1f} MB  {spec.height}x{spec.width}  {len(spec.classes)} classes"
    if plan.kind == "plan":
        target = f"compute capability {made['compute_capability']}, batch 1 to {made['options']['max_batch']}"
        yield f"  {made['runtime']} {made['runtime_version']}, {target}"
        typed = ", ".join(f"{share:.1%} {kind}" for kind, share in made["typed"]["work"].items())
        told = made["reason"] or f"{made['delivered_share']:.1%} in {made['delivered']}"
        yield f"  convolution work: {typed} in the typed network; delivered: {told}"
        yield "  signed: any change to the plan or its manifest is refused"
    yield f"  {_parity_line(plan.parity or {})}"


@cli.command(short_help="Admit a plan from elsewhere, by its manifest's sha256.")
@click.argument("sha256", required=False)
@click.option("--revoke", is_flag=True, help="Take it out of the list.")
@_json
def trust(*, sha256: str | None, revoke: bool, as_json: bool) -> None:
    """Admit the plan whose manifest has that sha256, from now on; without one, list what is admitted.

    A plan is native code: admit only what you know the origin of. The refusal of a plan names the sha256.
    """
    from segdeploy import signature

    if sha256 is None and revoke:
        raise InvalidRequestError("--revoke takes a sha256.", "See the list: segdeploy trust")
    listed = signature.trusted() if sha256 is None else signature.trust(sha256, revoke=revoke)
    lines = [f"{known}  since {since}" for known, since in listed.items()] or ["No plan from elsewhere is trusted."]
    _print({"schema": 1, "trusted": listed}, as_json=as_json, lines=lines)


@cli.command(short_help="Compare PyTorch, graph and engine by pixels.")
@_model()
@_engine
@_running
@click.option("--data", type=_folder, help="Folder with images/, and masks/ for mIoU. Default: the packaged images.")
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Pixels that must agree with PyTorch. Default: 0.9999 (fp32), or the budget the graph was made in.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0),
    metavar="POINTS",
    help="mIoU that may be lost, with labels. Default: 0.05 (fp32), or the budget the graph was made in.",
)
@click.option(
    "--max-unexplained",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Of fp32: pixels that may differ where PyTorch is sure. Default: 0.",
)
@click.option("--bisect", is_flag=True, help="Find the first layer that departs, on a copy of the graph.")
@click.option("--require-engine", is_flag=True, help="Exit 3 where the engine cannot run on this machine.")
@_json
def parity(
    *,
    model: str | None,
    engine: str,
    device: str,
    cuda: str | None,
    cuda_graphs: bool,
    data: Path | None,
    bisect: bool,
    require_engine: bool,
    as_json: bool,
    **limits: float | None,
) -> None:
    """Compare PyTorch, graph and engine pixel by pixel; exit 4 where they draw different masks."""
    from segdeploy import making

    report = making.parity(
        model,
        engine=engine,
        device=device,
        options=_run_options(cuda, cuda_graphs=cuda_graphs),
        data=data,
        limits=limits,
        bisect=bisect,
        require_engine=require_engine,
        progress=show_progress,
    )
    lines = [*_parity_details(report), _parity_line(report)]
    _print(report, as_json=as_json, table=lambda: _parity_table(report), lines=lines)
    if report["gated"] and not report["passed"]:
        sys.exit(EXIT_FAILED_GATE)


@cli.command(short_help="Time engines, with intervals and their accuracy.")
@_model()
@click.option(
    "--engine",
    "engine_names",
    multiple=True,
    default=["fp32"],
    show_default=True,
    metavar="[RUNTIME:]PRECISION",
    help="Repeat it to time several, interleaved.",
)
@click.option("--all", "every", is_flag=True, help="Every runtime and precision that this machine can use.")
@_running
@click.option("--data", type=_folder, help="Labelled folder: adds the mIoU of the very file that is timed.")
@click.option("--batch", "batches", multiple=True, default=[1], show_default=True, type=click.IntRange(1))
@click.option("--runs", type=click.IntRange(1), help="Calls of each engine. Default: until the intervals are narrow.")
@click.option(
    "--time-limit",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Of each batch size, without --runs; an interval that is still wide then is called noisy.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads of one call. Default: all cores.")
@click.option("--profile", is_flag=True, help="Add the time of each layer, measured apart.")
@click.option(
    "--save",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the result, with pictures, and keep what was timed beside it: for `report` and --compare.",
)
@click.option(
    "--compare",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Run what an earlier --save kept again, interleaved; exit 4 where an engine has become slower.",
)
@click.option(
    "--max-regression",
    default=5.0,
    show_default=True,
    type=click.FloatRange(0),
    metavar="PERCENT",
    help="With --compare: how much slower is too slow. The whole 95 % interval must lie above it.",
)
@click.option("--require-delivered", is_flag=True, help="Exit 4 where an engine computes wider than it was asked to.")
@click.option("--require-faster", is_flag=True, help="Exit 4 where a narrow graph is slower than fp32 in its runtime.")
@_json
def bench(
    *,
    model: str | None,
    engine_names: tuple[str, ...],
    cuda: str | None,
    cuda_graphs: bool,
    runs: int | None,
    time_limit: float,
    threads: int | None,
    max_regression: float,
    as_json: bool,
    **asked: Any,  # noqa: ANN401 - what `bench.run` takes by the same name
) -> None:
    """Time engines: on the device, from images in memory (host), and from image file to encoded mask (image_to_mask).

    All engines take turns in one run, in random order, until the 95 % intervals of the medians are narrow.
    """
    from segdeploy import benchmarking as timing
    from segdeploy.timing.latency import Effort

    report = timing.run(
        model,
        engine_names=engine_names,
        effort=Effort(runs=runs, limit_s=time_limit),
        options=_run_options(cuda, cuda_graphs=cuda_graphs, threads=threads),
        max_regression=max_regression / 100,
        command=shlex.join(["segdeploy", *sys.argv[1:]]),
        progress=show_progress,
        **asked,
    )
    saved = [f"kept in {asked['save']}: segdeploy report {asked['save']}"] if asked["save"] else []
    lines = [*_bench_lines(report), *saved]
    _print(report, as_json=as_json, table=lambda: _bench_table(report["rows"]), lines=lines)
    for failure in report["failures"]:
        click.echo(f"Error: {failure['what']}\n{failure['remedy']}", err=True)
    if report["failures"]:
        sys.exit(EXIT_FAILED_GATE)
    if report["comparison"] and not any(row["comparable"] for row in report["comparison"]["rows"]):
        _fail("nothing could be compared.", "Save what is to be compared: segdeploy bench --save FILE", 3)


def _bench_lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield from map(_ratio_line, report["ratios"])
    for row in (report["comparison"] or {"rows": []})["rows"]:
        yield _compared_line(row)
    for subject in report["subjects"]:
        yield from _profile_lines(subject)
    devices = {row["device"] for row in report["rows"] if row["level"] == "device"}
    facts, rows = report["machine"], report["rows"]
    runs = " to ".join(str(count) for count in sorted({min(r["runs"] for r in rows), max(r["runs"] for r in rows)}))
    size = f"{rows[0]['height']}x{rows[0]['width']}"
    yield f"{rows[0]['model']} at {size} on {facts['processor']}, {facts['cores']} cores, {runs} interleaved runs"
    if not devices:
        yield "No device level: a CPU has no clock of its own, and no copies to leave out."
    if noisy := [row for row in rows if row["noisy"]]:
        yield f"noisy: {len(noisy)} of {len(rows)} intervals are still wide; --time-limit gives more runs"
    yield from (f"disturbed: {flag}" for flag in report["conditions"]["flags"])


def _compared_line(row: Mapping[str, Any]) -> str:
    if not row["comparable"]:
        return f"{row['subject']} is not comparable: {row['reason']}"
    low, high = row["interval"]
    where = f"{row['subject']}, {row['level']}, batch {row['batch']}"
    return f"{where}: {row['ratio']:.3f} (95 %: {low:.3f} to {high:.3f}) of the time of what was kept"


def _profile_lines(subject: Mapping[str, Any]) -> Iterator[str]:
    """The layers that take the most time; the whole list is in the JSON."""
    if not subject["profile"]:
        return
    yield f"{subject['id']}, by layer:"
    for layer in subject["profile"][:PROFILED_LINES]:
        yield f"  {layer['share']:6.1%}  {layer['ms']:8.2f} ms  {layer['layer']}  {layer['op']}"


def _ratio_line(ratio: Mapping[str, Any]) -> str:
    low, high = ratio["interval"]
    return (
        f"{ratio['engine']} takes {ratio['ratio']:.3f} (95 %: {low:.3f} to {high:.3f}) of fp32, batch {ratio['batch']}"
    )


@cli.command(short_help="One page that says which engine to ship.")
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RESULTS.json...")
@click.option(
    "--out",
    default="report.html",
    show_default=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the page goes.",
)
@click.option("--title", help="Its heading. Default: Which engine to ship.")
@_json
def report(*, results: tuple[Path, ...], out: Path, title: str | None, as_json: bool) -> None:
    """One HTML file from the results of `segdeploy bench --save`: the verdict, charts, masks to compare, the proof.

    It asks nothing of any network, and stays below 5 MB.
    """
    from segdeploy.reporting import page

    written = page.write(results, out, title=title)
    count = len(written["subjects"])
    engines = "1 engine" if count == 1 else f"{count} engines"
    _print(written, as_json=as_json, lines=[f"{written['path']}  {written['size_mb']:.2f} MB  {engines}"])


@cli.command(short_help="Which layers cost accuracy in a narrow type.")
@_model()
@click.option("--precision", type=click.Choice(["fp16", "int8"]), default="int8", show_default=True)
@click.option("--data", type=_folder, help="Images to measure on; with masks/, mIoU counts. Default: packaged ones.")
@_narrowed
@_json
def sensitivity(*, model: str | None, precision: str, data: Path | None, as_json: bool, **narrow: Any) -> None:  # noqa: ANN401
    """Rank the layers of a network: what each gives back when it alone stays in float32, and what that costs."""
    from segdeploy import making
    from segdeploy.spec import Precision

    wanted = making.Narrow(Precision(precision), data=data, **narrow)
    report = making.sensitivity(model, wanted, progress=show_progress)
    form = f" {report['form']}" if report["form"] else ""
    where = f"{report['model']} in {report['precision']}{form}, {report['images']} images, kept in {report['record']}"
    everything = f"all layers narrow: {_quality(report['narrow'])}"
    _print(report, as_json=as_json, table=lambda: _sensitivity_table(report), lines=[everything, where])


def _quality(found: Mapping[str, Any]) -> str:
    drop = "" if found["miou_drop"] is None else f", {-found['miou_drop']:+.3f} points of mIoU"
    return f"{found['agreement']:.4%} of the decided pixels agree{drop}"


def _sensitivity_table(report: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a rich table
    narrow, unit = report["narrow"], report["cost_unit"]
    table = _table("layer kept in float32", "agreement", "change", "mIoU, points", f"costs, {unit}")
    for row in report["layers"]:
        found = row["quality"]
        change = f"{found['agreement'] - narrow['agreement']:+.4%}"
        drop = "-" if found["miou_drop"] is None else f"{-found['miou_drop']:+.3f}"
        cost = f"{row['cost']:.2f}" if unit == "ms" else f"{row['cost']:,.0f}"
        table.add_row(_module(row["layer"]), f"{found['agreement']:.4%}", change, drop, cost)
    return table


@cli.command("eval", short_help="Score an engine on a labelled folder.")
@_model()
@_engine
@_running
@click.option("--data", required=True, type=_folder, help="Folder with images/, masks/ and an optional val.txt.")
@_json
def evaluate(
    *,
    model: str | None,
    engine: str,
    device: str,
    cuda: str | None,
    cuda_graphs: bool,
    data: Path,
    as_json: bool,
) -> None:
    """Score an engine: mIoU, pixel accuracy and IoU by class, at the size of the labels."""
    from segdeploy import making

    options = _run_options(cuda, cuda_graphs=cuda_graphs)
    report = making.evaluate(model, data=data, engine=engine, device=device, options=options, progress=show_progress)
    each = [f"  {name}: {'absent' if iou is None else f'{iou:.4f}'}" for name, iou in report["classes"].items()]
    accuracy = f"pixel accuracy {report['pixel_accuracy']:.4f}" if report["pixel_accuracy"] is not None else "no pixels"
    untrained = " (RANDOM weights)" if report["random_weights"] else ""
    where = f"{report['model']}{untrained} in {report['runtime']}, {report['images']} images"
    head = f"{where}: {_miou(report['miou'])}, {accuracy}"
    _print(report, as_json=as_json, lines=[head, *each])


@cli.command(short_help="Masks for a folder of photographs.")
@click.argument("inputs", nargs=-1, required=True, metavar="FOLDER|IMAGE|GLOB|LIST.txt...")
@_model()
@_engine
@_running
@click.option("--out", default="masks", show_default=True, type=_folder, help="Where the masks go.")
@click.option("--overlay", is_flag=True, help="Also write photo and mask in one picture, into OUT-overlays.")
@_json
def infer(
    *,
    inputs: tuple[str, ...],
    model: str | None,
    engine: str,
    device: str,
    cuda: str | None,
    cuda_graphs: bool,
    out: Path,
    overlay: bool,
    as_json: bool,
) -> None:
    """Masks for a folder of photographs; exit 5 if a file could not be read (the rest is done)."""
    from segdeploy import making

    options = _run_options(cuda, cuda_graphs=cuda_graphs)
    report = making.infer(
        inputs,
        out=out,
        model=model,
        engine=engine,
        device=device,
        options=options,
        overlay=overlay,
        progress=show_progress,
    )
    for failure in report["failed"]:
        click.echo(f"failed: {failure['reason']}", err=True)
    _print(report, as_json=as_json, lines=_infer_lines(report))
    if report["interrupted"]:
        raise KeyboardInterrupt
    if report["failed"]:
        sys.exit(EXIT_FAILED_IMAGES)


@cli.command(short_help="What a file promises and what was proven of it.")
@click.argument("path", type=click.Path(path_type=Path))
@_json
def inspect(*, path: Path, as_json: bool) -> None:
    """What a checkpoint, a graph or a plan promises, where it came from and what was proven of it."""
    from segdeploy import inspection

    report = inspection.inspect(path)
    _print(report, as_json=as_json, lines=list(_outline(report)))


@cli.command(short_help="The networks, their options, the weights at hand.")
@_json
def models(*, as_json: bool) -> None:
    """The networks, how each can be built, and which weights are at hand."""
    from segdeploy import inspection

    report = inspection.list_models()
    lines = []
    for model in report["models"]:
        options = "  ".join(f"{key}={json.dumps(value)}" for key, value in model["options"].items())
        weights = ", ".join(f"{w['kind']} {w['path']} ({_miou(w['val_miou'])})" for w in model["weights"]) or "none"
        lines += [f"{model['name']}: {model['description']}", f"    options: {options}", f"    weights: {weights}"]
    _print(report, as_json=as_json, lines=lines)


@cli.command(short_help="What is installed, usable, clashing; what to do.")
@_json
def doctor(*, as_json: bool) -> None:
    """What is installed, what is usable, what clashes, and what to do about it; exit 3 on a clash."""
    from segdeploy import inspection

    report = inspection.doctor()
    lines = [f"{key}: {_short(value)}" for key, value in report["machine"].items()]
    for check in report["checks"]:
        lines.append(f"{'ok     ' if check['usable'] else 'missing'} {check['name']}: {check['finding']}")
        if check["remedy"]:
            lines.append(f"        {check['remedy']}")
    lines.append("An engine named by its precision alone runs in the first that is usable; on the CPU, in the faster:")
    lines += [f"  {each['runtime']} on {each['device']}: {each['reason'] or 'usable'}" for each in report["order"]]
    _print(report, as_json=as_json, lines=lines)
    if report["clash"]:
        sys.exit(EXIT_ENVIRONMENT)


def _console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = FILE_WIDTH  # a table in a log is not cut at eighty columns
    return console


def _print(
    report: Mapping[str, Any], *, as_json: bool, lines: list[str], table: Callable[[], Any] | None = None
) -> None:
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    if table is not None:
        _console().print(table())
    click.echo("\n".join(line for line in lines if line))


@contextlib.contextmanager
def show_progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr, where that is a terminal; silence where it is not."""
    with _bar("[progress.description]{task.description}") as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)


def _bar(description: str) -> "Progress":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = _console(stderr=True)
    columns = (TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not sys.stderr.isatty())  # FORCE_COLOR is no terminal


class _TrainingBar:
    """Loss, mIoU and time left on a terminal; a line for each epoch everywhere."""

    def __init__(self, progress: "Progress", epochs: int) -> None:
        self._progress = progress
        self._task = progress.add_task("Training", total=None)
        self._epochs = epochs

    def steps(self, total: int, done: int) -> None:
        self._progress.update(self._task, total=total, completed=done)

    def step(self, *, epoch: int, loss: float, miou: float | None) -> None:
        text = f"epoch {epoch}/{self._epochs}  loss {loss:.4f}  {_miou(miou)}"
        self._progress.update(self._task, advance=1, description=text)

    def epoch(self, record: Mapping[str, Any]) -> None:
        seconds = f"{record['seconds']:.0f} s"
        text = f"epoch {record['epoch']}/{self._epochs}  loss {record['loss']:.4f}  val {_miou(record['val_miou'])}"
        self._progress.console.print(f"{text}  {seconds}")


@contextlib.contextmanager
def _training_bar(epochs: int) -> Iterator[_TrainingBar]:
    with _bar("{task.description}") as progress:
        yield _TrainingBar(progress, epochs)


def _miou(value: float | None) -> str:
    return "no mIoU" if value is None else f"mIoU {value:.4f}"


def _outline(value: Any, indent: str = "") -> Iterator[str]:  # noqa: ANN401 - any JSON value
    """Nested facts, a line each; what holds no further mapping stays on its line."""
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, inner in pairs:
        if isinstance(inner, Mapping) or (isinstance(inner, list) and any(isinstance(item, Mapping) for item in inner)):
            yield f"{indent}{key}:"
            yield from _outline(inner, f"{indent}  ")
        else:
            yield f"{indent}{key}: {_short(inner)}"


def _short(value: Any) -> str:  # noqa: ANN401 - any JSON value
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 160 else f"{text[:157]}..."  # noqa: PLR2004 - two lines of a terminal


def _parity_line(report: Mapping[str, Any]) -> str:
    if not report:
        return ""
    verdict = "proven" if report["passed"] else f"NOT the same from {report['first_failing_stage']} on"
    if not report["gated"]:
        verdict = "measured, not judged (random weights)"
    images = "1 image" if report["images"] == 1 else f"{report['images']} images"
    return f"{verdict}: {report['model']} on {images}, to the {report['proven_to']}"


_PARITY_SHARES = ("agreement", "boundary_agreement", "interior_agreement", "near_ties", "unexplained")


def _parity_table(report: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a rich table
    shares = ("agreement", "boundary", "interior", "near-ties", "unexplained")
    table = _table("stage", "runtime", *shares, "edge F1", "mIoU", "verdict")
    for stage in report["stages"]:
        if stage["passed"] is None:
            table.add_row(stage["name"], *["-"] * 8, "not run")
            continue
        cells = ["-" if stage[key] is None else f"{stage[key]:.4%}" for key in _PARITY_SHARES]
        cells.append("-" if stage["boundary_f1"] is None else f"{stage['boundary_f1']:.4f}")
        cells.append("-" if stage["miou_change"] is None else f"{stage['miou_change']:+.4f}")
        runtime = f"{stage['runtime']} {stage['device']}"
        table.add_row(stage["name"], runtime, *cells, "passed" if stage["passed"] else "FAILED")
    return table


def _parity_details(report: Mapping[str, Any]) -> Iterator[str]:
    """What does not fit the table: reasons, the limits, the classes and images that changed most, the departure."""
    yield from (f"{stage['name']}: {stage['reason']}" for stage in report["stages"] if stage["reason"])
    ran = [stage for stage in report["stages"] if stage["passed"] is not None]
    failing = [stage for stage in ran if not stage["passed"]]
    for stage in (failing or ran[-1:])[:1]:
        if stage["differing_pixels"]:
            yield f"{stage['name']}, classes: {_most_changed_classes(stage)}"
            yield f"{stage['name']}, worst images: {_worst_images(stage)}"
    limits = ", ".join(f"{name.replace('_', ' ')} {_decimal(value)}" for name, value in report["limits"].items())
    yield f"limits: {limits}"
    if found := report["departure"]:
        yield f"{found['stage']}, bisected on {_short_name(found['image'])}: {found['text']}"


def _most_changed_classes(stage: Mapping[str, Any]) -> str:
    """IoU with PyTorch's masks and, with labels, points of IoU against them."""
    changes = stage["miou_change_by_class"] or {}
    present = {name: iou for name, iou in stage["class_agreement"].items() if iou is not None}
    named = []
    for name in sorted(present, key=present.__getitem__)[:MOST_NAMED]:
        points = "" if changes.get(name) is None else f" ({changes[name]:+.3f} points)"
        named.append(f"{name} {present[name]:.4%}{points}")
    return ", ".join(named) + (", ..." if len(present) > MOST_NAMED else "")


def _worst_images(stage: Mapping[str, Any]) -> str:
    worst = stage["worst_images"]
    named = [f"{_short_name(each['image'])} {each['agreement']:.4%}" for each in worst[:MOST_NAMED]]
    return ", ".join(named) + (", ..." if len(worst) > MOST_NAMED else "")


def _short_name(name: str) -> str:
    """Of an image; a name that is a hash is known by its beginning."""
    stem, dot, suffix = name.rpartition(".")
    return name if len(name) <= LONGEST_NAME else f"{stem[: LONGEST_NAME - 8]}...{dot}{suffix}"


def _decimal(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _bench_table(rows: list[dict[str, Any]]) -> Any:  # noqa: ANN401 - a rich table
    columns = ("engine", "level", "batch", "median ms", "95 %", "p90", "p99", "images/s", "MB", "mIoU", "agreement")
    table = _table(*columns)
    for row in rows:
        ms = [f"{row['latency_ms'][key]:.2f}" for key in ("median", "p90", "p99")]
        ms.insert(1, "{:.2f} to {:.2f}".format(*row["median_interval"]) + (" noisy" if row["noisy"] else ""))
        memory = [row["memory"][f"{kind}_peak_mb"] for kind in ("host", "device")]
        megabytes = " + ".join(f"{each:.0f}" for each in memory if each is not None) or "-"
        scores = [
            "-" if row[key] is None else form.format(row[key])
            for key, form in (("miou", "{:.4f}"), ("agreement", "{:.4%}"))
        ]
        engine = f"{row['engine']} {row['device']}"
        if row["delivered"] != row["precision"]:
            engine += f" (delivered: {row['delivered'] or 'unknown'})"
        speed = f"{row['images_per_s']:.1f}"
        table.add_row(engine, row["level"], str(row["batch"]), *ms, speed, megabytes, *scores)
    return table


def _table(*columns: str) -> Any:  # noqa: ANN401 - a rich table
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table


def _infer_lines(report: Mapping[str, Any]) -> list[str]:
    counts = f"{report['done']} done, {len(report['failed'])} failed, {report['skipped']} skipped (no images by name)"
    speed = f"{report['seconds']:.1f} s, {report['images_per_s']:.1f} images/s"
    untrained = " (RANDOM weights: the masks mean nothing)" if report["random_weights"] else ""
    engine = f"{report['model']}{untrained} in {report['runtime']}:{report['precision']} on {report['device']}"
    lines = [f"{counts}: {report['out']}", f"{engine}, {speed}"]
    if report["done"]:
        split = ", ".join(f"{step} {ms:.1f}" for step, ms in report["cpu_ms_per_image"].items())
        lines.append(f"CPU ms per image: {split}; {report['cores']} cores")
    return lines


if __name__ == "__main__":
    main()
