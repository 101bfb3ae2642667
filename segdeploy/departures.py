"""Looks for the first layer in which a graph departs from what its masks are compared with."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from segdeploy import engines, precision, with_torch, workspace
from segdeploy.artifact import Artifact
from segdeploy.certificate import Certificate, Departure
from segdeploy.data.dataset import Picture
from segdeploy.progress import Progress
from segdeploy.proof.reference import Reference
from segdeploy.proof.samples import FileSamples
from segdeploy.proof.stages import FP32_STAGE, StageRun
from segdeploy.spec import Precision

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from segdeploy.precision import Tolerance
    from segdeploy.proof.bisection import Look, Run
    from segdeploy.proof.torch_reference import TorchReference


@dataclasses.dataclass(frozen=True, slots=True)
class Departures:
    """What the first failing stage does otherwise than its reference, or the last one that ran, on its worst image."""

    graph: Artifact
    file: Artifact
    found: Certificate
    reference: Reference

    def departure(self, runs: "Sequence[StageRun]", pictures: Sequence[Picture], progress: Progress) -> Departure:
        bisection = with_torch.bisection()
        name = self.found.first_failing_stage or self.found.proven_to
        stage = next(each for run in runs for each in run.each_batch if each.name == name)
        place = self._worst(pictures, stage.name)
        picture = pictures[place]
        if name == FP32_STAGE and _was_module(self.graph):
            return _not_the_original(picture)
        image = FileSamples(pictures, self.graph.spec).of(place).image
        with progress(f"Looking into {self.file.path.stem}", 1) as done:
            rounding, model, run = self._looked_into(stage)
            look = self._look(stage, model, image, run)
            done()
        drawn = None if stage.engine is None else stage.engine.classify(image[None])[0]
        expected, _ = self.reference.class_map(image)
        otherwise = bisection.none_found(look, drawn, expected, passed=self.found.passed)
        name, photo = stage.name, picture.image.name
        departure: Departure = bisection.departure(
            look, stage=name, rounding=rounding, image=photo, otherwise=otherwise
        )
        if self.file.kind == "plan" and stage.name == "engine":
            about = "A plan cannot be looked into without building another: this is of the graph it was built from."
            departure = dataclasses.replace(departure, text=f"{departure.text} {about}")
        return departure

    def _look(self, stage: "StageRun", model: "onnx.ModelProto", image: "NDArray[np.uint8]", run: "Run") -> "Look":
        """Beside our network in PyTorch; a graph that was adopted, beside what it was made of.

        That is the ONNX file for the float32 graph, and this for one of low precision.
        """
        import onnx

        bisection, foreign = with_torch.bisection(), self.graph.origin.foreign
        look: Look
        if foreign is None:
            walked = cast("TorchReference", self.reference)
            look = bisection.look(walked.network, self.graph.spec, model, image, run=run)
        elif self._is_of_fp32(stage):
            original = workspace.original_of(self.graph)
            look = with_torch.beside_original().look(original, foreign.reading, model, image, run=run)
        else:
            exact = onnx.load(workspace.fp32_graph_of(self.graph).path)
            look = bisection.look_beside(exact, model, image, run=run)
        return look

    def _rounding(self, stage: "StageRun") -> "Tolerance":
        rounding: Tolerance
        if not self._is_of_fp32(stage):
            rounding = precision.module(self.graph.precision).TOLERANCE
        elif self.graph.origin.foreign is None:
            rounding = with_torch.bisection().FLOAT32
        else:
            rounding = with_torch.beside_original().ADDED_UP
        return rounding

    def _is_of_fp32(self, stage: "StageRun") -> bool:
        return stage.name == FP32_STAGE or self.graph.precision is Precision.FP32

    def _worst(self, pictures: Sequence[Picture], stage: str) -> int:
        worst = next(each.worst_images for each in self.found.stages if each.name == stage)
        names = [each.image.name for each in pictures]
        return names.index(worst[0].image) if worst and worst[0].image in names else 0

    def _looked_into(self, stage: "StageRun") -> "tuple[Tolerance, onnx.ModelProto, Run]":
        """What a stage runs, as a graph, what rounding explains there, and what gives all outputs of a copy.

        The copy runs in the arithmetic of that stage.
        """
        import onnx

        from segdeploy.engines import ort

        search = with_torch.quantization()
        graph = workspace.fp32_graph_of(self.graph) if stage.name == FP32_STAGE else self.graph
        rounding = self._rounding(stage)
        model = onnx.load(graph.path)
        if stage.name == "engine" and stage.engine is not None and self.file.kind == "graph":
            tensors = engines.of_graphs(stage.engine.runtime).tensors
            return rounding, model, functools.partial(tensors, device=stage.engine.device)
        model, optimised = search.arithmetic(graph, model, as_written=True)
        return rounding, model, functools.partial(ort.tensors, device="cpu", optimised=optimised)


def can_look_into(graph: Artifact) -> bool:
    """Whether there is something to compare its layers with: the float32 graph of a torch module has nothing."""
    return graph.precision is not Precision.FP32 or not _was_module(graph)


def _was_module(graph: Artifact) -> bool:
    return graph.origin.foreign is not None and graph.origin.foreign.kind != "ONNX"


def _not_the_original(picture: Picture) -> Departure:
    return Departure(
        stage=FP32_STAGE,
        kind="none found",
        layer=None,
        between=None,
        error=None,
        tolerance=0.0,
        image=picture.image.name,
        layers_compared=0,
        text="The float32 graph itself does not draw what the module draws that was adopted: adopt it again.",
    )
