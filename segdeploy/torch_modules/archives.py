"""Modules in files: a program of torch.export (`.pt2`), or a TorchScript archive; both are opened again for proofs."""

import contextlib
import logging
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.export import ExportedProgram

from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.paths import shown
from segdeploy.torch_modules import screening

Kind = Literal["torch.export", "TorchScript"]
IMAGE_RANK = 4
NOISY = ("torch.onnx", "torch.export", "torch._export", "torch.fx", "onnxscript", "onnx_ir")
TRACES = ("stack_trace", "source_fn_stack", "from_node")  # of a node: where its author's files lie
OTHER_FILE = (
    "Give an ONNX file, a program of torch.export (.pt2), a TorchScript archive, or the code: package.module:build "
    "--weights FILE"
)


def kind_of(path: Path) -> Kind:
    """Which kind of archive a file is, told by its parts; nothing of it is run. Raise InvalidFileError for others."""
    if not path.is_file():
        raise InvalidRequestError(f"there is no file {shown(path)}.", OTHER_FILE)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, ValueError, OSError) as error:
        raise InvalidFileError(f"{shown(path)} is no network that can be adopted: {error}.", OTHER_FILE) from error
    if any(name.startswith("models/") for name in names):
        return "torch.export"
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return "TorchScript"
    if "data.pkl" in names:
        raise InvalidFileError(
            f"{shown(path)} holds weights, or a whole pickled module: no network without its code.",
            "Give the code with it: segdeploy adopt package.module:build --weights FILE; of the four networks: import",
        )
    raise InvalidFileError(f"{shown(path)} is an archive of another kind.", OTHER_FILE)


def opened(path: Path) -> tuple[nn.Module, tuple[int, int] | None]:
    """The module of a file, on the CPU, and the one size (height, width) that it takes, where it is one.

    Raise InvalidFileError where it cannot be opened.
    """
    if kind_of(path) == "TorchScript":
        return _script(path), None
    program = _program(path)
    # Guards are Python source in the file, which would be run.
    return program.module(check_guards=False), _size_of(program)


def _size_of(program: ExportedProgram) -> tuple[int, int] | None:
    names = program.graph_signature.user_inputs
    shapes = [node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    sides = shapes[0][-2:] if shapes and len(shapes[0]) == IMAGE_RANK else ()
    return (int(sides[0]), int(sides[1])) if sides and all(isinstance(side, int) for side in sides) else None


def _program(path: Path) -> ExportedProgram:
    screening.require_harmless(path)
    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:  # of torch's deserializer: unrelated kinds
        raise screening.refused(path, f"cannot be opened by torch {torch.__version__}: {first_line(error)}") from error


def _script(path: Path) -> nn.Module:
    try:
        with quiet():
            found: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call] # torch's
    except Exception as error:  # of torch's C++: unrelated kinds
        raise screening.refused(
            path,
            f"is a TorchScript archive that cannot be opened: {first_line(error)}",
            "Save it again where it comes from.",
        ) from error
    return found.eval()


def save(program: ExportedProgram, path: Path) -> None:
    """Write a program without what it knows of its author's files."""
    for node in program.graph.nodes:
        for trace in TRACES:
            node.meta.pop(trace, None)
    with quiet():
        torch.export.save(program, path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without torch's own deprecations and logs: they are not the user's."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def first_line(error: BaseException) -> str:
    return " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split())[:200]
