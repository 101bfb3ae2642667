"""The instructions that the processor multiplies bytes with: the times and the values of int8 depend on them."""

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# The widest first, by the kernel's flags for them (x86 "flags", Arm "Features").
INSTRUCTION_SETS = {
    "amx_int8": "amx-int8",
    "avx512_vnni": "avx512-vnni",
    "avx_vnni": "avx-vnni",
    "avx512bw": "avx512",
    "avx2": "avx2",
    "avx": "avx",
    "sse4_1": "sse4.1",
    "i8mm": "neon-i8mm",
    "asimddp": "neon-dotprod",
    "asimd": "neon",
}
# These add four products of bytes into 32 bits. The rest add pairs of them in 16 bits, which saturate.
SUMS_BYTES = frozenset({"amx-int8", "avx512-vnni", "avx-vnni", "neon-i8mm", "neon-dotprod"})


def instruction_set() -> str:
    """The widest instructions for int8 that every processor here has, such as "avx2", "avx512-vnni" or "neon-dotprod".

    It is the architecture, such as "x86_64", where there are none of these, or where the system does not say.
    """
    flags = _flags()
    return next((name for flag, name in INSTRUCTION_SETS.items() if flag in flags), platform.machine())


def _flags() -> set[str]:
    """What all processors have: the cores of one chip may differ."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.is_file() else []
    each = [set(line.partition(":")[2].split()) for line in lines if line.lower().startswith(("flags", "features"))]
    return set.intersection(*each) if each else set()
