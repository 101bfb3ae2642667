"""Untrained networks: good for timing, and for nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segdeploy import fitting, images, models, palettes, workspace
from segdeploy._version import __version__
from segdeploy.checkpoints import checkpoint
from segdeploy.names import below
from segdeploy.origin import Origin
from segdeploy.spec import Spec

SIZE = (360, 480)
SEED = 0
STATISTICS = 4  # images that set the normalisation


def checkpoint_of(model: str, variant: Mapping[str, Any], size: tuple[int, int]) -> Path:
    """Write an untrained network, seeded, whose normalisation statistics come from real images.

    `variant`: the options that it is built with; `size` is (height, width) of its input.
    """
    import torch

    palette = palettes.VOC
    torch.manual_seed(SEED)
    network = models.build(model, len(palette.classes), **variant)
    network.check_size(*size)
    spec = Spec(model, dict(variant), palette.classes, palette.colours, *size, margin=network.margin)
    photos = [fitting.prepared(images.read(path), spec) for path in workspace.packaged_images()[:STATISTICS]]
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain average over what follows
    with torch.no_grad():
        models.deployed(network.train(), spec)(torch.tensor(np.stack(photos)))
    path = below(workspace.EXPORTS, f"{model}.random.safetensors")
    checkpoint.save(path, network.state_dict(), spec, origin=Origin(command="random", version=__version__))
    return path
