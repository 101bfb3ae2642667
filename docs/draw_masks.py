"""Draw docs/masks.png: example photographs, their truth, and what each packaged network makes of them."""

import contextlib
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import segdeploy
from segdeploy import images, models, workspace
from segdeploy.checkpoints import checkpoint

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples" / "nuclei"
ROWS = (2, 7, 13, 17)  # of val.txt: fluorescence and stained tissue, sparse and crowded
SIDE, GAP, TITLE = 190, 6, 22


def cell(picture: NDArray[np.uint8]) -> Image.Image:
    """The middle of a picture, square."""
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    square = Image.fromarray(picture[top : top + side, left : left + side])
    return square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def main() -> None:
    names = (EXAMPLES / "val.txt").read_text(encoding="utf-8").split()
    photos = [images.read(EXAMPLES / "images" / names[row]) for row in ROWS]
    truths = [images.read_mask(EXAMPLES / "masks" / names[row]) for row in ROWS]
    colours = checkpoint.read(workspace.PACKAGED / "unet.safetensors").spec.colours
    columns = {"photograph": photos}
    columns["truth"] = [images.overlay(photo, mask, colours) for photo, mask in zip(photos, truths, strict=True)]
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        for name in models.names():
            with segdeploy.open(name, engine="ort:fp32") as engine:
                columns[name] = [images.overlay(photo, engine.segment(photo), colours) for photo in photos]
    page = Image.new("RGB", (len(columns) * (SIDE + GAP) - GAP, TITLE + len(ROWS) * (SIDE + GAP) - GAP), "white")
    pen = ImageDraw.Draw(page)
    for x, (title, pictures) in enumerate(columns.items()):
        pen.text((x * (SIDE + GAP) + 2, 3), title, fill="black", font_size=15)
        for y, picture in enumerate(pictures):
            page.paste(cell(picture), (x * (SIDE + GAP), TITLE + y * (SIDE + GAP)))
    page.quantize(256).save(ROOT / "docs" / "masks.png", optimize=True)


if __name__ == "__main__":
    main()
