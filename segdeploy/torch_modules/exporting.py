"""A module becomes a program of torch.export, and that an ONNX graph; what cannot be exported is named."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from segdeploy import extras
from segdeploy.errors import InvalidFileError
from segdeploy.graphs.to_onnx import OPSET, layer_name
from segdeploy.torch_modules import rewriting
from segdeploy.torch_modules.archives import first_line, quiet
from segdeploy.torch_modules.outputs import Named
from segdeploy.torch_modules.trial import noise

IMAGES = "images"
_FAILING_NODE = re.compile(r"Error when translating node %(\w+)")
REWRITE = "Write it in operators that ONNX has, or replace that module."


@dataclasses.dataclass(frozen=True, slots=True)
class Exported:
    """A program of torch.export, and its ONNX graph as bytes; opset 20, one input (N, C, H, W) of float32."""

    program: ExportedProgram
    onnx: bytes


def exported(module: Named, example: Tensor, named: str) -> Exported:
    """For any number of images, where the module allows it, else for one.

    Raise InvalidFileError with the operator and the module within it that cannot be exported.
    """
    channels, height, width = example.shape[1:]
    pair = noise(channels, (height, width), 2)
    try:
        return _exported(module, pair, {0: torch.export.Dim("N", min=1)}, named)
    except InvalidFileError:
        return _exported(module, example, None, named)


def _exported(module: Named, images: Tensor, dynamic: dict[int, torch.export.Dim] | None, named: str) -> Exported:
    try:
        with quiet(), torch.no_grad():
            shapes = None if dynamic is None else {IMAGES: dynamic}
            program = torch.export.export(module, (images,), dynamic_shapes=shapes)
    except Exception as error:  # of torch.export and of the user's code: unrelated kinds
        place = _place(module, error)
        raise InvalidFileError(
            f"torch.export cannot trace {named}, in {place}: {first_line(error).rstrip('.')}.",
            "Its path must not depend on what the image shows: write it in tensor operators (torch.where).",
        ) from error
    return Exported(program, _onnx(program, named))


@extras.named_where_missing()
def _onnx(program: ExportedProgram, named: str) -> bytes:
    import onnxscript  # noqa: F401 - torch's exporter needs it, and would say so in its own words

    names = list(_output_names(program))
    try:
        with quiet(), torch.no_grad():
            found = torch.onnx.export(
                rewriting.rewritten(program),
                dynamo=True,
                opset_version=OPSET,
                input_names=[IMAGES],
                output_names=names,
                verbose=False,
            )
    except Exception as error:  # of the exporter: unrelated kinds
        raise _cannot_export(program, error, named) from error
    assert found is not None  # noqa: S101 - dynamo=True always gives a program
    model = found.model_proto
    used = Counter[str]()
    for node in model.graph.node:
        node.name = layer_name(node, used, "module.")
    return bytes(model.SerializeToString())


def _output_names(program: ExportedProgram) -> Iterator[str]:
    """The keys of what `Named` gives, in the order in which the program gives it."""
    spec = program.call_spec.out_spec
    yield from map(str, spec.context)


def _place(module: nn.Module, error: BaseException) -> str:
    """The innermost module whose `forward` an exception came through, by its name."""
    known = {id(inner): name for name, inner in module.named_modules()}
    found, frame = "", error.__traceback__
    while frame is not None:
        own = frame.tb_frame.f_locals.get("self")
        if frame.tb_frame.f_code.co_name == "forward" and id(own) in known:
            found = known[id(own)]
        frame = frame.tb_next
    return _named(found)


def _named(path: str) -> str:
    inner = path.removeprefix("module").lstrip(".")
    return f"its module {inner!r}" if inner else "the module itself"


def _cannot_export(program: ExportedProgram, error: BaseException, named: str) -> InvalidFileError:
    causes = list(_causes(error))
    failing = next((found[1] for each in causes if (found := _FAILING_NODE.search(str(each))) is not None), None)
    with quiet():
        taken_apart = program.run_decompositions()  # as the exporter sees it
    node = next((each for each in taken_apart.graph.nodes if each.name == failing), None)
    if node is None:
        reason = first_line(causes[-1]).rstrip(".")
        return InvalidFileError(f"torch.onnx.export cannot write {named}: {reason}.", REWRITE)
    stack = list(node.meta.get("nn_module_stack", {}).values())
    place = _named(stack[-1][0] if stack else "")
    return InvalidFileError(f"ONNX cannot express {node.target} of {place} in {named}.", REWRITE)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
