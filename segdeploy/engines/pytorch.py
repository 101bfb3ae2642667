"""PyTorch itself, the reference: opens a checkpoint, runs the deployed form of the network."""

import dataclasses
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

from segdeploy import cores, extras, models
from segdeploy.artifact import Artifact
from segdeploy.checkpoints import opening
from segdeploy.engines._base import RUN, ClassMaps, Engine, Images, RunOptions, unknown_device
from segdeploy.errors import MissingRuntimeError
from segdeploy.spec import Precision, Spec

if TYPE_CHECKING:
    from segdeploy.models import Deployed

RUNTIME = "torch"
OPENS = "checkpoint"
PACKAGES = ("torch",)
DEVICES = ("cuda", "cpu")
CONCURRENT = False  # one pool of threads for the whole process
FORM = None


class TorchEngine(Engine):
    runtime: ClassVar[str] = RUNTIME
    concurrent: ClassVar[bool] = CONCURRENT

    def __init__(self, deployed: "Deployed", spec: Spec, *, device: str) -> None:
        super().__init__(spec, device=device, delivered=Precision.FP32)
        self._deployed = deployed.to(device)

    def _submit(self, batch: Images) -> ClassMaps:
        import torch

        with torch.inference_mode():
            class_maps: ClassMaps = self._deployed(torch.tensor(batch, device=self.device)).cpu().numpy()
        return class_maps

    def device_ms(self, batch: Images, *, runs: int) -> list[float] | None:
        """By events around the network alone, its input already on the device; None on the CPU."""
        import torch

        if self.device == "cpu":
            return None
        images = torch.tensor(batch, device=self.device)
        found = []
        with torch.inference_mode():
            self._deployed(images)
            for _ in range(runs):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                start.record()
                self._deployed(images)
                end.record()
                end.synchronize()
                found.append(start.elapsed_time(end))
        return found

    def _release(self) -> None:
        del self._deployed


def open(artifact: Artifact, *, device: str, options: RunOptions = RUN) -> TorchEngine:  # noqa: A001
    """Load a checkpoint at the size its artifact says. Threads hold for the whole process: torch has one pool."""
    torch = import_runtime()
    if device not in DEVICES:
        raise unknown_device(RUNTIME, device, DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingRuntimeError(
            "PyTorch cannot use CUDA here.", "Use --device cpu, or install a CUDA build of torch and a driver."
        )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # fp32 was asked
    cores.limit_torch()
    if options.threads:
        torch.set_num_threads(options.threads)
    network = opening.load(artifact.path, artifact.spec)
    network.check_size(artifact.spec.height, artifact.spec.width)
    spec = dataclasses.replace(artifact.spec, output="class_map")
    return TorchEngine(models.deployed(network, spec).eval(), spec, device=device)


@extras.named_where_missing()
def import_runtime() -> ModuleType:
    import torch

    return torch


def devices() -> list[str]:
    return list(DEVICES) if import_runtime().cuda.is_available() else ["cpu"]
