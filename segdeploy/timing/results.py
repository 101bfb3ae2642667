"""What a benchmark found, in a file that keeps the engines that were timed: an earlier result can be run again."""

import base64
import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy import artifact, images, signature
from segdeploy.artifact import Artifact
from segdeploy.checkpoints import checkpoint
from segdeploy.errors import InvalidFileError, InvalidRequestError
from segdeploy.images import Colours
from segdeploy.reporting import _document
from segdeploy.spec import Spec

KIND = "bench"
SCHEMA = _document.SCHEMA
LONGEST_SIDE = 512  # of a picture in a result
SAME_WORK = ("model", "engine", "device", "height", "width", "classes")


def read(path: Path) -> Mapping[str, Any]:
    """A result as it was saved. Raise InvalidRequestError where there is none, InvalidFileError where it is no such."""
    (document,) = _document.read_all([path])
    return document.raw


def save(document: Mapping[str, Any], path: Path, files: Mapping[str, Artifact]) -> None:
    """Write a result, whole or not at all, and keep the files that were timed in a folder beside it.

    They are links to the same bytes where the file system can: segdeploy never changes a file, it writes another.
    """
    folder = path.with_name(f"{path.name}.files")
    places = {name: _keep(file, folder) for name, file in files.items()}
    for subject in document["subjects"]:
        subject["kept"] = os.path.relpath(places[subject["id"]], path.parent)
    artifact.write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())
    in_use = {place.parent.name for place in places.values()}
    for left in folder.iterdir():
        if left.name not in in_use:
            shutil.rmtree(left, ignore_errors=True)


def _keep(file: Artifact, folder: Path) -> Path:
    """A file, its manifest and signature, under its sha256 and under its own name, which a plan must bear."""
    place = folder / file.sha256[:16] / file.path.name
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = [file.path, artifact.manifest_path(file.path), signature.signature_path(file.path)]
        for source in (each for each in beside if each.exists()):
            _link(source, place.with_name(source.name))
    except OSError as error:
        raise artifact.cannot_write(place, error) from error
    return place


def _link(source: Path, target: Path) -> None:
    with artifact.replacing(target) as temporary:
        try:
            os.link(source.resolve(), temporary)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(source, temporary)


def kept(subject: Mapping[str, Any], path: Path, spec: Spec) -> Artifact:
    """The file that an earlier result timed, once it is still the same."""
    if "kept" not in subject:
        raise InvalidRequestError(f"{path} kept no file of {subject['id']}.", "Save it again: segdeploy bench --save")
    place = path.parent / subject["kept"]
    if not place.is_file():
        raise InvalidRequestError(f"{place} is gone.", "Save it again: segdeploy bench --save FILE")
    if place.suffix == ".safetensors":
        found = dataclasses.replace(checkpoint.read(place), spec=spec)
    else:
        found = artifact.read(place)
    if found.sha256 != subject["sha256"]:
        raise InvalidFileError(f"{place} is not the file that was timed.", "Save it again: segdeploy bench --save FILE")
    return found


def require_same_work(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise InvalidRequestError where two subjects do not do the same work."""
    for key in SAME_WORK:
        if then.get(key) != now[key]:
            raise InvalidRequestError(
                f"{key} was {then.get(key)}, is {now[key]}.", "Compare engines of the same network and size."
            )


def drawn(
    photo: NDArray[np.uint8],
    truth: NDArray[np.uint8] | None,
    masks: Mapping[str, NDArray[np.uint8]],
    colours: Colours,
) -> dict[str, Any]:
    """(H0, W0, 3) photo and (H0, W0) class maps, made smaller and encoded for a page."""
    height, width, _ = photo.shape
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    height, width = max(1, round(height * scale)), max(1, round(width * scale))

    def mask(class_map: NDArray[np.uint8]) -> str:
        return _text(images.mask_png(images.to_photo_size(class_map, height=height, width=width), colours))

    return {
        "height": height,
        "width": width,
        "photo": _text(images.jpeg(images.to_network_size(photo, height=height, width=width))),
        "truth": None if truth is None else mask(truth),
        "masks": {name: mask(class_map) for name, class_map in masks.items()},
    }


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
