"""What a mask shows is held to `run.DRAWS`: while that stays, masks of earlier versions count as done."""

import hashlib
from pathlib import Path

import numpy as np
from conftest import SPEC
from PIL import Image

from segdeploy import NullEngine, fitting, images
from segdeploy.inference import run

DRAWN = {1: "97705ef4768c55a0a42e7710f8b717dde5e6c8e9af55d81e4548b81be29fdca5"}


def test_other_pixels_need_another_number(tmp_path: Path) -> None:
    """Where reading, resizing or drawing changed on purpose: raise `run.DRAWS` and add the digest."""
    ramp = np.add.outer(np.arange(90) * 2, np.arange(70) * 3).astype(np.uint8)
    Image.fromarray(np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=2)).save(tmp_path / "a.png")
    photo = images.opened_photograph(tmp_path / "a.png")
    with NullEngine(SPEC) as engine:
        class_map = engine.classify(fitting.prepared(photo, SPEC)[None])[0]
    large = images.to_photo_size(class_map, height=photo.height, width=photo.width)
    assert hashlib.sha256(large.tobytes()).hexdigest() == DRAWN[run.DRAWS]
