"""The classes of an image as COCO's run lengths, one JSON file an image, for `pycocotools.mask.frPyObjects`."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.inference.outputs._base import Segmented

SUFFIX = ".json"
SHOWS_PHOTO = False


def encode(segmented: Segmented) -> bytes:
    """A list of COCO's `stuff` annotations: category (its index and name), area, bounding box, and the run lengths.

    Run lengths go down the columns, from the left, and begin with pixels that are not of the class.
    """
    class_map, names = segmented.class_map, segmented.spec.classes
    values, ends = _runs(class_map)
    found = [
        _annotation(class_map, values == index, ends, {"category_id": int(index), "category": names[index]})
        for index in np.unique(values)
        if index < len(names)
    ]
    return (json.dumps(found) + "\n").encode()


def _runs(class_map: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """The class of every run of one class down the columns, and where each ends."""
    column_wise = class_map.ravel(order="F")
    ends = np.append(np.flatnonzero(column_wise[1:] != column_wise[:-1]) + 1, column_wise.size)
    return column_wise[ends - 1], ends


def _annotation(
    class_map: NDArray[np.uint8], is_class: NDArray[np.bool_], ends: NDArray[np.intp], category: dict[str, Any]
) -> dict[str, Any]:
    last = np.append(is_class[1:] != is_class[:-1], True)  # runs of other classes that follow one another are one
    lengths = np.diff(ends[last], prepend=0).tolist()
    counts = [0, *lengths] if is_class[0] else lengths
    rows, columns = (np.flatnonzero((class_map == category["category_id"]).any(axis=axis)) for axis in (1, 0))
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return {
        **category,
        "area": sum(counts[1::2]),
        "bbox": [int(side) for side in box],
        "iscrowd": 1,
        "segmentation": {"size": list(class_map.shape), "counts": counts},
    }
