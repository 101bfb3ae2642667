"""What an ONNX file, or a file beside it, says of its preprocessing, its size and its classes."""

import ast
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segdeploy import artifact
from segdeploy.errors import InvalidFileError
from segdeploy.origin import Preprocessing

if TYPE_CHECKING:
    import onnx

MOST_BYTES = 2**20  # of a JSON file beside a network
LARGEST = 255.0
THREE = 3
OPENVINO = "model_info "  # how Model API spells `rt_info` in the metadata of an ONNX file
YES = {"true", "yes", "1"}
Facts = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Said:
    """What was found, and `source`: who says it. `size`: (height, width)."""

    source: str
    preprocessing: Preprocessing | None = None
    size: tuple[int, int] | None = None
    classes: tuple[str, ...] = ()


def said(path: Path, model: "onnx.ModelProto") -> Said | None:
    """What is said of a network, by the first who says how its images are prepared; None where nobody does.

    Raise InvalidFileError for a JSON file of a known name that cannot be read: it was meant to be heard.
    """
    own = {each.key: each.value for each in model.metadata_props}
    found = [said for reader in (_ultralytics, _openvino, _timm) if (said := reader(own)) is not None]
    found += [said for name, reader in BESIDE.items() if (said := _beside(path.with_name(name), reader)) is not None]
    return next((said for said in found if said.preprocessing is not None), next(iter(found), None))


def of_values(mean: Any, deviation: Any, *, scale: float, channels: Literal["rgb", "bgr"] = "rgb") -> Preprocessing:  # noqa: ANN401 - of JSON
    """(pixel x scale - mean) / deviation. Raise ValueError for what is no such thing."""
    means, deviations = ([float(value) for value in values] for values in (mean, deviation))
    if len(means) == 1 or len(deviations) == 1:
        means, deviations = (values * (THREE // len(values)) for values in (means, deviations))
    if len(means) != THREE or len(deviations) != THREE or min(deviations) <= 0 or scale <= 0:
        raise ValueError("mean and deviation are not three numbers each, the deviation above 0")
    return Preprocessing(scale=scale, mean=tuple(means), deviation=tuple(deviations), channels=channels)


# In the file itself


def _ultralytics(own: Mapping[str, str]) -> Said | None:
    """Its exporter writes author, names as a Python dictionary and imgsz; pixels in 0..1, RGB."""
    if own.get("author") != "Ultralytics":
        return None
    try:
        names = ast.literal_eval(own.get("names", "{}"))
        sides = ast.literal_eval(own.get("imgsz", "None"))
    except (ValueError, SyntaxError) as error:
        raise InvalidFileError(f"the metadata of Ultralytics are damaged: {error}.", "Export it again.") from error
    classes = tuple(str(names[key]) for key in sorted(names)) if isinstance(names, dict) else ()
    return Said("the metadata of Ultralytics", of_values([0], [1], scale=1 / LARGEST), _sides(sides), classes)


def _openvino(own: Mapping[str, str]) -> Said | None:
    """Model API: (pixel - mean_values) / scale_values, BGR but where reverse_input_channels says RGB."""
    about = {key.removeprefix(OPENVINO): value for key, value in own.items() if key.startswith(OPENVINO)}
    if not {"mean_values", "scale_values"} & set(about):
        return None
    mean, deviation = (
        about.get(key, default).split() for key, default in (("mean_values", "0"), ("scale_values", "1"))
    )
    is_rgb = about.get("reverse_input_channels", "").lower() in YES
    try:
        how = of_values(mean, deviation, scale=1.0, channels="rgb" if is_rgb else "bgr")
    except ValueError as error:
        raise InvalidFileError(f"the rt_info of OpenVINO is damaged: {error}.", "Export it again.") from error
    return Said("the rt_info of OpenVINO", how, classes=tuple(about.get("labels", "").split()))


def _timm(own: Mapping[str, str]) -> Said | None:
    """Mean, std and input_size (C, H, W) of a pretrained_cfg, for values in 0..1, as JSON or as Python prints them."""
    if not {"mean", "std"} <= set(own):
        return None
    try:
        mean, std = (ast.literal_eval(own[key]) for key in ("mean", "std"))
        how = of_values(mean, std, scale=1 / LARGEST)
        sides = ast.literal_eval(own.get("input_size", "None"))
    except (ValueError, SyntaxError, TypeError) as error:
        raise InvalidFileError(f"the metadata of timm are damaged: {error}.", "Export it again.") from error
    return Said("the metadata of timm", how, _sides(sides[-2:] if isinstance(sides, list | tuple) else None))


# Beside the file


def _mmdeploy(document: Facts) -> Said:
    """Normalize: (pixel - mean) / std, in RGB where to_rgb says so; Resize: (width, height)."""
    how, size = None, None
    for step in _steps(document):
        if step.get("type") == "Normalize":
            channels: Literal["rgb", "bgr"] = "rgb" if step.get("to_rgb", True) else "bgr"
            how = of_values(step["mean"], step["std"], scale=1.0, channels=channels)
        elif step.get("type") == "Resize" and (sides := _sides(step.get("size") or step.get("scale"))) is not None:
            size = sides[::-1]
    return Said("mmdeploy's pipeline.json", how, size)


def _steps(document: Facts) -> Iterator[Facts]:
    for task in document.get("pipeline", {}).get("tasks", []):
        yield from (step for step in task.get("transforms", []) if isinstance(step, dict))


def _hugging_face(document: Facts) -> Said:
    """(pixel x rescale_factor - image_mean) / image_std, each step where it is switched on."""
    scale = float(document.get("rescale_factor", 1 / LARGEST)) if document.get("do_rescale", True) else 1.0
    normalised = document.get("do_normalize", "image_mean" in document)
    mean, std = (document["image_mean"], document["image_std"]) if normalised else ([0], [1])
    return Said(
        "Hugging Face's preprocessor_config.json", of_values(mean, std, scale=scale), _sides(document.get("size"))
    )


BESIDE = {"pipeline.json": _mmdeploy, "preprocessor_config.json": _hugging_face}


def _beside(path: Path, reader: Any) -> Said | None:  # noqa: ANN401 - one of the two above
    if not path.is_file():
        return None
    try:
        found: Said = reader(json.loads(artifact.bounded(path, MOST_BYTES)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InvalidFileError(
            f"{path} cannot be read: {reason}.", "Repair it, or give --preset and take it away."
        ) from error
    return found


def _sides(found: Any) -> tuple[int, int] | None:  # noqa: ANN401 - of JSON
    """Two sides, of a pair, of one number, or of {"height": ..., "width": ...}; None for anything else."""
    if isinstance(found, dict):
        found = [found.get("height"), found.get("width")]
    if isinstance(found, int):
        found = [found, found]
    is_pair = isinstance(found, Sequence) and len(found) == 2  # noqa: PLR2004
    if not is_pair or not all(isinstance(side, int) and side > 0 for side in found):
        return None
    return int(found[0]), int(found[1])
