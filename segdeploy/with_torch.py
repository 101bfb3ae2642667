"""The rooms that need PyTorch or onnx, imported when they are asked for: who only runs engines has neither."""

import importlib
from types import ModuleType

from segdeploy import extras


def quantization() -> ModuleType:
    """The search for graphs of low precision. Raise MissingRuntimeError where its packages are not installed."""
    return _imported("segdeploy.quantization.search")


def torch_reference() -> ModuleType:
    """The network in PyTorch. Raise MissingRuntimeError where PyTorch is not installed."""
    return _imported("segdeploy.proof.torch_reference")


def onnx_reference() -> ModuleType:
    """A graph that somebody else trained. Raise MissingRuntimeError where onnx or ONNX Runtime is not installed."""
    return _imported("segdeploy.proof.onnx_reference")


def module_reference() -> ModuleType:
    """A torch module of somebody else. Raise MissingRuntimeError where PyTorch is not installed."""
    return _imported("segdeploy.proof.module_reference")


def bisection() -> ModuleType:
    """The walk beside a graph. Raise MissingRuntimeError where PyTorch is not installed."""
    return _imported("segdeploy.proof.bisection")


def beside_original() -> ModuleType:
    """The walk beside an ONNX file of somebody else. Raise MissingRuntimeError where PyTorch is not installed."""
    return _imported("segdeploy.proof.beside_original")


@extras.named_where_missing()
def _imported(module: str) -> ModuleType:
    return importlib.import_module(module)
