"""The file of somebody else in ONNX Runtime, as it is: one image in, its outputs out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segdeploy import extras
from segdeploy.errors import InvalidFileError

if TYPE_CHECKING:
    import onnx

FATAL = 4  # ONNX Runtime's log level: failures are raised, the log would say them twice
Array = NDArray[Any]


class Original:
    """A network that runs; `inputs` and `outputs` are the names in their order."""

    def __init__(self, source: "Path | onnx.ModelProto", *, optimised: bool = True) -> None:
        self._session = session(source, optimised=optimised)
        self.outputs = [value.name for value in self._session.get_outputs()]

    def run(self, name: str, given: Array, outputs: list[str] | None = None) -> dict[str, Array]:
        """The outputs by name. Raise InvalidFileError where the graph cannot take what it is given."""
        wanted = self.outputs if outputs is None else outputs
        try:
            found = self._session.run(wanted, {name: given})
        except Exception as error:  # ONNX Runtime raises a dozen unrelated kinds
            raise InvalidFileError(
                f"ONNX Runtime fails on an input of shape {list(given.shape)}: {reason_of(error)}",
                "Give another --size, or export the network again.",
            ) from error
        return dict(zip(wanted, map(np.asarray, found), strict=True))


@extras.named_where_missing()
def session(source: "Path | onnx.ModelProto", *, optimised: bool = True, save_to: Path | None = None) -> Any:  # noqa: ANN401 - the module is lazy
    """An ONNX Runtime session on the CPU; with `save_to` it is optimised in standard operators alone, and kept."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    if save_to is not None:
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(save_to)
    content = str(source) if isinstance(source, Path) else source.SerializeToString()
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen unrelated kinds
        raise InvalidFileError(
            f"ONNX Runtime cannot load the network: {reason_of(error)}", "Export it again from where it was trained."
        ) from error


def reason_of(error: Exception) -> str:
    """The first line of what ONNX Runtime says."""
    return str(error).strip().splitlines()[0][:300]


def first_not_finite(path: Path, name: str, given: Array) -> str:
    """The first node of a graph whose result is not finite for an input, in the order they run in."""
    import onnx

    model = onnx.load(path)
    known = {value.name for value in model.graph.output}
    made = [(node.output[0], node.name or node.op_type) for node in model.graph.node if node.output[0]]
    model.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor, _ in made if tensor not in known)
    found = Original(model, optimised=False).run(name, given, [tensor for tensor, _ in made])
    broken = (node for tensor, node in made if found[tensor].dtype.kind == "f" and not np.isfinite(found[tensor]).all())
    return next(broken, "the output")
