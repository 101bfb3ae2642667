"""Folders that transformers or segmentation_models.pytorch saved: `config.json` and safetensors, built by the library.

The library has to be installed; it builds what it knows itself, and runs nothing that lies in the folder.
"""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from segdeploy import artifact
from segdeploy.errors import InvalidFileError, InvalidRequestError, MissingRuntimeError
from segdeploy.paths import shown
from segdeploy.torch_modules.archives import first_line

CONFIG = "config.json"
WEIGHTS = "model.safetensors"  # with an index beside several files of them, where they are large
MOST_BYTES = 2**24  # of a configuration
TRANSFORMERS, SMP = "transformers", "segmentation_models_pytorch"
PACKAGES = {TRANSFORMERS: "transformers", SMP: "segmentation-models-pytorch"}
Config = Mapping[str, Any]


def built(folder: Path) -> nn.Module:
    """The module of a folder. Raise InvalidFileError for what no library saved, MissingRuntimeError without it."""
    config = _config(folder)
    if "_model_class" in config:
        _require_safetensors(folder, WEIGHTS)
        return _of_smp(folder)
    if "model_type" in config:
        _require_own_code(folder, config)
        _require_safetensors(folder, WEIGHTS, f"{WEIGHTS}.index.json")
        return _of_transformers(folder)
    raise InvalidFileError(
        f"{shown(folder / CONFIG)} names neither a model of transformers nor of segmentation_models.pytorch.",
        "Give the code that builds it: package.module:build --weights FILE",
    )


def class_names(folder: Path) -> tuple[str, ...]:
    """The names of the classes in their order, where the configuration has them; else none."""
    labels = _config(folder).get("id2label")
    if not isinstance(labels, dict) or set(labels) != set(map(str, range(len(labels)))):
        return ()
    return tuple(str(labels[str(index)]) for index in range(len(labels)))


def _config(folder: Path) -> Config:
    path = folder / CONFIG
    if not path.is_file():
        raise InvalidRequestError(
            f"{shown(folder)} has no {CONFIG}: no folder that transformers or segmentation_models.pytorch saved.",
            "Give such a folder, an ONNX file, a .pt2, a TorchScript archive, or package.module:build --weights FILE",
        )
    try:
        found = json.loads(artifact.bounded(path, MOST_BYTES))
    except (ValueError, RecursionError) as error:
        raise InvalidFileError(f"{shown(path)} cannot be read: {error}.", "Save the network again.") from error
    if not isinstance(found, dict):
        raise InvalidFileError(f"{shown(path)} is no configuration.", "Save the network again.")
    return found


def _require_safetensors(folder: Path, *names: str) -> None:
    """One of these files. Without it a library would take pickled weights, which run code when they are read."""
    if not any((folder / name).is_file() for name in names):
        raise InvalidFileError(f"{shown(folder)} has no {names[0]}.", "Save it again: model.save_pretrained(FOLDER)")


def _require_own_code(folder: Path, config: Config) -> None:
    if "auto_map" in config:
        raise InvalidFileError(
            f"{shown(folder / CONFIG)} asks for code of its own (auto_map), which is not run.",
            "If you trust it, give that code: package.module:build --weights FILE",
        )


def _of_transformers(folder: Path) -> nn.Module:
    model = _library(TRANSFORMERS).AutoModelForSemanticSegmentation
    given = {"trust_remote_code": False, "local_files_only": True, "use_safetensors": True}
    return _checked(folder, TRANSFORMERS, lambda: model.from_pretrained(str(folder), **given))


def _of_smp(folder: Path) -> nn.Module:
    library = _library(SMP)
    return _checked(folder, SMP, lambda: library.from_pretrained(str(folder)))


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = PACKAGES[name]
        raise MissingRuntimeError(
            f"the folder was saved by {package}, which cannot be imported here: {first_line(error)}.",
            f"Install it: pip install {package}",
        ) from error


def _checked(folder: Path, library: str, build: Any) -> nn.Module:  # noqa: ANN401 - of one of the libraries
    try:
        found: nn.Module = build()
    except Exception as error:  # of the libraries: unrelated kinds
        raise InvalidFileError(
            f"{PACKAGES[library]} cannot build {shown(folder)}: {first_line(error)}.", "Save it again with its library."
        ) from error
    return found
