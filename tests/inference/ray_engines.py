"""Engines for actors that go wrong; actors import this file, so it imports no test."""

import os
from pathlib import Path

from segdeploy.engines import ClassMaps, Engine, Images, NullEngine
from segdeploy.errors import GateFailedError
from segdeploy.spec import Spec

SPEC = Spec("unet", {"multiplier": 0.125}, ("ground", "thing"), ((20, 40, 60), (255, 196, 0)), 64, 64)


class Deadly(NullEngine):
    """Ends its process at an image that is red all over, as one that needs too much memory does."""

    def _submit(self, batch: Images) -> ClassMaps:
        if (batch[..., 0] > 250).all() and (batch[..., 1] < 5).all():
            os._exit(1)
        return super()._submit(batch)


def harmless() -> Engine:
    return NullEngine(SPEC)


def deadly() -> Engine:
    return Deadly(SPEC)


def still_born() -> Engine:
    os._exit(1)


def refuted() -> Engine:
    raise GateFailedError("this engine draws other masks here.", "Export it again.")


def with_one_gpu() -> Engine:
    if os.environ["CUDA_VISIBLE_DEVICES"] != "0":
        raise GateFailedError("Ray gave this actor no GPU.", "Ask for one.")
    return NullEngine(SPEC)


def elsewhere() -> Engine:
    """On a machine that has another folder of photographs under that name."""
    os.chdir(Path("/"))
    return NullEngine(SPEC)
