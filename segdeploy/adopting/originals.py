"""What somebody else trained, ready to be adopted: an ONNX file, or a torch module and the graph made of it."""

import contextlib
import dataclasses
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy import extras, workspace
from segdeploy.adopting.options import AdoptOptions
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.origin import ForeignKind, ModuleSource
from segdeploy.paths import shown

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from segdeploy.graphs.said import Said

Source = Any  # a path, `package.module:build`, or a torch module
_ENTRY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
ARCHIVE = b"PK"  # what every ZIP archive begins with


@dataclasses.dataclass(frozen=True, slots=True)
class Original:
    """A network of somebody else, and its ONNX graph `model`.

    `path`: what messages call it. `file`: what later proofs run, by `kind`. `module`: of what is no such file itself;
    `file` is then its program of torch.export, in a folder that goes, and `built_from` says what it is. `about`: what
    is said of it. `notes`: what is worth saying.
    """

    path: Path
    file: Path
    kind: ForeignKind
    model: "onnx.ModelProto"
    about: "Said | None" = None
    notes: tuple[str, ...] = ()
    module: "nn.Module | None" = None
    built_from: ModuleSource | None = None

    @property
    def sha256(self) -> str:
        return workspace.sha256_of_original(self.file, self.kind)


@contextlib.contextmanager
def opened(source: Source, options: AdoptOptions) -> Iterator[Original]:
    """The original of a path (ONNX, `.pt2`, TorchScript, a folder), of `package.module:build`, or of a torch module.

    Raise InvalidFileError, with the reason in one sentence, for what cannot be adopted.
    """
    if options.weights is not None and not is_entry(source):
        raise InvalidRequestError(
            f"--weights {shown(options.weights)} is for code that builds a network.",
            "Give it with package.module:build; a file or a folder has its own.",
        )
    if _is_onnx(source):
        yield _of_onnx(Path(source))
        return
    with tempfile.TemporaryDirectory() as folder:
        yield _of_module(source, options, Path(folder))


def is_entry(source: Source) -> bool:
    """Whether code is named, as `package.module:build` does."""
    return isinstance(source, str) and _ENTRY.fullmatch(source) is not None and not Path(source).exists()


def _is_onnx(source: Source) -> bool:
    """Whether a file is meant that is no archive; one that is missing or damaged is named by whoever reads it."""
    if not isinstance(source, str | os.PathLike) or is_entry(source):
        return False
    path = Path(source)
    if path.suffix == ".onnx" or not path.exists():
        return True
    if path.is_dir():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(ARCHIVE)) != ARCHIVE
    except OSError as error:
        raise InvalidFileError(f"cannot read {shown(path)}: {error.strerror}.", "Check its permissions.") from error


def _of_onnx(path: Path) -> Original:
    from segdeploy.graphs import foreign, said

    model = foreign.read(path)
    return Original(path, path, "ONNX", model, said.said(path, model))


# Torch modules


@dataclasses.dataclass(frozen=True, slots=True)
class _Opened:
    """A module before it is exported; `kind` is None where it is no file. `size`: the one it takes, if only one."""

    module: "nn.Module"
    path: Path
    kind: ForeignKind | None = None
    size: tuple[int, int] | None = None
    about: "Said | None" = None
    built_from: ModuleSource | None = None


@extras.named_where_missing()
def _of_module(source: Source, options: AdoptOptions, folder: Path) -> Original:
    """The module, tried and exported; what is no file itself is kept as a program in `folder`."""
    from segdeploy.graphs import foreign
    from segdeploy.torch_modules import archives, exporting, trial
    from segdeploy.torch_modules.outputs import Named

    found = _opened(source, options)
    named = shown(found.path)
    module, notes = trial.prepared(found.module, named)
    size = _size(found, options)
    module = Named(module, options.output_name)
    example = trial.example(module, size, named)
    trial.require_steady(module, trial.noise(example.shape[1], size, 3), named)
    exported = exporting.exported(module, example, named)
    written = folder / "exported.onnx"
    written.write_bytes(exported.onnx)
    model = foreign.read(written)
    if found.kind is not None:
        return Original(found.path, found.path, found.kind, model, found.about, notes)
    kept = folder / "kept.pt2"
    archives.save(exported.program, kept)
    return Original(found.path, kept, "torch.export", model, found.about, notes, module, found.built_from)


def _opened(source: Source, options: AdoptOptions) -> _Opened:
    if is_entry(source):
        return _of_code(source, options)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return _of_folder(path) if path.is_dir() else _of_archive(path)
    return _of_object(source)


def _of_code(entry: str, options: AdoptOptions) -> _Opened:
    from segdeploy.torch_modules import functions

    weights = options.weights
    module = functions.built(entry, weights)
    if weights is None:
        return _Opened(module, Path(entry), built_from=ModuleSource(named=entry))
    return _Opened(module, Path(entry), about=_said_beside(weights), built_from=_source(entry, weights))


def _of_folder(path: Path) -> _Opened:
    from segdeploy.graphs.said import Said
    from segdeploy.torch_modules import folders

    module, classes = folders.built(path), folders.class_names(path)
    about = _said_beside(path / folders.CONFIG)
    about = Said(folders.CONFIG, classes=classes) if about is None else dataclasses.replace(about, classes=classes)
    return _Opened(module, path, about=about, built_from=_source(str(path), path))


def _of_archive(path: Path) -> _Opened:
    from segdeploy.torch_modules import archives

    kind = archives.kind_of(path)
    module, size = archives.opened(path)
    return _Opened(module, path, kind, size, _said_beside(path))


def _of_object(source: Source) -> _Opened:
    from torch import nn

    if not isinstance(source, nn.Module):
        raise InvalidRequestError(
            f"a {type(source).__name__} is no network.", "Give a path, package.module:build, or a torch.nn.Module."
        )
    name = type(source).__name__
    return _Opened(source, Path(name), built_from=ModuleSource(named=f"a {name} in Python"))


def _source(named: str, weights: Path) -> ModuleSource:
    return ModuleSource(named=named, path=str(weights), sha256=workspace.sha256_of_weights(weights))


def _said_beside(path: Path) -> "Said | None":
    import onnx

    from segdeploy.graphs import said

    return said.said(path, onnx.ModelProto())


def _size(found: _Opened, options: AdoptOptions) -> tuple[int, int]:
    """As asked, as the program has it, as is said of it. Raise InvalidRequestError where nobody says it."""
    if found.size is not None and options.size is not None and options.size != found.size:
        asked, own = ("x".join(map(str, size)) for size in (options.size, found.size))
        raise InvalidRequestError(f"{shown(found.path)} takes {own} pixels alone, not {asked}.", "Leave --size out.")
    size = options.size or found.size or (None if found.about is None else found.about.size)
    if size is None:
        raise InvalidRequestError(
            f"{shown(found.path)} does not say at which size it was trained.", "Give it: --size HEIGHTxWIDTH"
        )
    return size
