"""The instruction set is the widest that every processor has, by what the kernel says of them."""

import platform
from pathlib import Path

import pytest

from segdeploy import arithmetic
from segdeploy.proof import executed
from segdeploy.spec import Precision

X86 = "processor\t: {index}\nmodel name\t: Some CPU\nflags\t\t: fpu sse2 sse4_1 {flags}\nbugs\t\t: avx512_vnni\n\n"
ARM = "processor\t: {index}\nBogoMIPS\t: 50.00\nFeatures\t: fp {flags}\nCPU part\t: 0xd0c\n\n"
SETS = [
    (X86, "", "sse4.1"),
    (X86, "avx", "avx"),
    (X86, "avx avx2 fma", "avx2"),
    (X86, "avx avx2 avx512f", "avx2"),
    (X86, "avx avx2 avx512f avx512bw", "avx512"),
    (X86, "avx avx2 avx_vnni", "avx-vnni"),
    (X86, "avx avx2 avx512f avx512bw avx512_vnni", "avx512-vnni"),
    (X86, "avx avx2 avx512bw avx512_vnni avx_vnni", "avx512-vnni"),
    (X86, "avx avx2 avx512_vnni amx_bf16 amx_tile", "avx512-vnni"),
    (X86, "avx avx2 avx512_vnni amx_tile amx_int8", "amx-int8"),
    (ARM, "asimd", "neon"),
    (ARM, "asimd asimddp", "neon-dotprod"),
    (ARM, "asimd asimddp sve i8mm", "neon-i8mm"),
]


def plant(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    path = folder / "cpuinfo"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(arithmetic, "CPUINFO", path)


@pytest.mark.parametrize("form,flags,name", SETS, ids=[each[2] for each in SETS])
def test_the_instruction_set_is_the_widest_for_int8(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str, flags: str, name: str
) -> None:
    """A flag counts where it stands among the flags, and as a whole word: avx512_vnni is no avx_vnni."""
    plant(monkeypatch, tmp_path, "".join(form.format(index=index, flags=flags) for index in range(2)))
    assert arithmetic.instruction_set() == name
    assert executed.has_units(Precision.INT8, "cpu") == (name in arithmetic.SUMS_BYTES)


def test_what_only_some_cores_have_does_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A thread may run on any of them."""
    large, small = ARM.format(index=0, flags="asimd asimddp i8mm"), ARM.format(index=1, flags="asimd asimddp")
    plant(monkeypatch, tmp_path, large + small)
    assert arithmetic.instruction_set() == "neon-dotprod"


@pytest.mark.parametrize("text", ["", "processor\t: 0\ncpu\t\t: POWER9\n"], ids=["empty", "other"])
def test_a_system_that_does_not_say_has_the_name_of_its_architecture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    plant(monkeypatch, tmp_path, text)
    assert arithmetic.instruction_set() == platform.machine()
    monkeypatch.setattr(arithmetic, "CPUINFO", tmp_path / "absent")
    assert arithmetic.instruction_set() == platform.machine()


def test_byte_sums_are_of_known_sets() -> None:
    assert set(arithmetic.INSTRUCTION_SETS.values()) > arithmetic.SUMS_BYTES
