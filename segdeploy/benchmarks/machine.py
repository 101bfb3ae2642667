"""What a number was measured on."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = (
    "numpy",
    "pillow",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "cuda-bindings",
    "pycuda",
)


def describe() -> dict[str, Any]:
    """Processor, cores this process may use, memory, system and versions."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": versions(),
    }


def versions() -> dict[str, str]:
    found = (dist for dist in importlib.metadata.distributions() if dist.name)
    installed = {dist.name.lower().replace("_", "-"): dist.version for dist in found}
    return {package: installed[package] for package in PACKAGES if package in installed}


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
