"""Pictures in a result: small enough for a page, the worst first."""

from pathlib import Path

import numpy as np

from segdeploy.data.dataset import Picture
from segdeploy.timing import pictures


def test_a_picture_is_made_smaller_and_its_masks_with_it() -> None:
    photo, class_map = np.zeros((1000, 600, 3), np.uint8), np.zeros((1000, 600), np.uint8)
    other = class_map.copy()
    other[:250] = 1
    colours = [(0, 0, 0), (255, 0, 0)]
    masks = {"a": class_map, "b": other}
    found = pictures.encoded("a.png", photo, masks, truth=None, reference=class_map, colours=colours)
    assert (found.height, found.width, found.truth) == (512, 307, None)
    assert list(found.masks) == ["a", "b"]
    assert found.agreement == {"a": 1.0, "b": 0.75}


def test_without_a_certificate_the_pictures_stay_in_their_order() -> None:
    listed = [Picture(Path(f"{index}.png"), None) for index in range(3)]
    assert pictures.worst_first([], listed) == listed
