"""A network is trained on masks of another layout, and remembers which images validated it, with how they are read."""

from pathlib import Path

import numpy as np
import pytest
from layout_folders import WRITERS
from PIL import Image

import segdeploy
from segdeploy import TrainOptions, workspace
from segdeploy.artifact import Artifact
from segdeploy.checkpoints import checkpoint
from segdeploy.data import layouts
from segdeploy.training.options import Augmentation

SIZE = (32, 32)


def trained(root: Path, name: str) -> tuple[Path, Artifact]:
    """A folder of that layout, and the checkpoint that was trained on it with two processes that read."""
    data = root / "data"
    data.mkdir()
    masks = {f"{index:02}": np.zeros((40, 40), np.uint8) for index in range(6)}
    for index, mask in enumerate(masks.values()):
        mask[: 10 + index] = 1
    WRITERS[name](data, masks)
    options = TrainOptions(Augmentation(crop=SIZE), epochs=1, batch=2, workers=2)
    best = segdeploy.train(
        "unet", data=data, options=options, size=SIZE, variant={"multiplier": 0.0625}, out=root / "new", force=True
    )
    return data, checkpoint.read(best)


@pytest.mark.parametrize("name", ["cityscapes", "coco_instances"])
def test_what_validated_is_remembered_with_its_reading(tmp_path: Path, name: str) -> None:
    data, source = trained(tmp_path, name)
    opened = layouts.open_folder(data)
    training = source.origin.training
    assert training is not None
    assert training.folder is not None
    assert (training.folder.path, training.folder.layout) == ("../data", name)
    assert source.spec.classes == layouts.classes_of(opened, ignore_index=255).names
    found = workspace.validated_on(source)
    assert [each.image.resolve() for each in found] == [each.image for each in opened.val]
    assert [each.mask_sha256 for each in found] == [each.mask_sha256 for each in opened.val]


def test_a_mask_that_changed_or_a_folder_that_is_broken_proves_nothing(tmp_path: Path) -> None:
    data, source = trained(tmp_path, "cityscapes")
    kept = workspace.validated_on(source)
    Image.fromarray(np.full((40, 40), 7, np.uint8)).save(kept[0].label)
    assert [each.image for each in workspace.validated_on(source)] == [each.image for each in kept[1:]]
    (data / "gtFine").rename(data / "gone")
    assert workspace.validated_on(source) == []


def test_a_shape_that_changed_in_the_one_file_proves_nothing(tmp_path: Path) -> None:
    """And what the file says of the other images does not matter."""
    data, source = trained(tmp_path, "coco_instances")
    kept = workspace.validated_on(source)
    path = data / "annotations/instances_val2017.json"
    path.write_text(path.read_text().replace("[0, 0, 40, 0,", "[0, 0, 30, 0,", 1))
    assert len(workspace.validated_on(source)) == len(kept) - 1 == 1
    other = data / "annotations/instances_train2017.json"
    before = workspace.validated_on(source)
    other.write_text(other.read_text().replace("[0, 0, 40, 0,", "[0, 0, 30, 0,"))
    assert workspace.validated_on(source) == before
