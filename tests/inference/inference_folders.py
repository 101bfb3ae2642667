"""What the tests of `infer` share: segment a folder with the small network, and look at what was written."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdeploy import api
from segdeploy.engines import Engine
from segdeploy.inference import journal, run, sources
from segdeploy.inference.options import FOLDER, FolderOptions
from segdeploy.inference.report import Report, Summary
from segdeploy.inference.source_list import SourceList
from segdeploy.inference.work import Task

ORT = ("--engine", "ort:fp32")
AGAIN = FolderOptions(again=True)
WITH_OVERLAYS = ("mask", "overlay")


def segment(*inputs: str, out: str = "masks", write: Sequence[str] = ("mask",), how: FolderOptions = FOLDER) -> Report:
    """Segment with the network of the working directory, as the command does."""
    return api.infer(inputs, out=out, model="unet", engine="ort:fp32", write=write, folder=how)


def written(engine: Engine, *kinds: str, done: Callable[[], None] = lambda: None) -> Summary:
    """Segment photos with an open engine; masks go to masks, other outputs beside it."""
    images, _ = sources.find(["photos"], leave_out=Path("masks"))
    return run.run(engine, task(images, *kinds, how=AGAIN), done=done)


def task(images: SourceList, *kinds: str, how: FolderOptions = FOLDER) -> Task:
    """To make outputs of these images in masks."""
    return Task(sources=images, out=Path("masks"), made_with="test", outputs=kinds or ("mask",), options=how)


def below(folder: str | Path) -> list[str]:
    """Every file, relative to the folder, but for the journal and the reports."""
    files = (path.relative_to(folder) for path in Path(folder).rglob("*") if not path.is_dir())
    return sorted(str(file) for file in files if journal.FOLDER not in file.parts)


def found(*inputs: str, out: str = "masks") -> tuple[list[str], int]:
    images, skipped = sources.find(inputs, leave_out=Path(out))
    return [str(source.relative) for source in images], skipped


def indices(mask: Path) -> NDArray[np.uint8]:
    with Image.open(mask) as image:
        return np.array(image)
