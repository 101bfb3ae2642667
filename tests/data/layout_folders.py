"""How a labelled folder is written in each layout, for the contract tests to read."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
from conftest import photograph
from numpy.typing import NDArray
from PIL import Image

Masks: TypeAlias = Mapping[str, NDArray[np.uint8]]  # by the names of their pictures, without an ending
Writer: TypeAlias = Callable[[Path, Masks], None]


def write_plain(root: Path, masks: Masks) -> None:
    for seed, (name, mask) in enumerate(masks.items()):
        height, width = mask.shape
        for folder, pixels in (("images", photograph(height, width, seed)), ("masks", mask)):
            (root / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{name}.png")


WRITERS: dict[str, Writer] = {"plain": write_plain}
