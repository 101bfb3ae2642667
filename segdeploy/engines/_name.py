"""What an engine is called, `[RUNTIME:]PRECISION`, and the file that it opens."""

import dataclasses

from segdeploy.artifact import Artifact
from segdeploy.spec import Precision


@dataclasses.dataclass(frozen=True, slots=True)
class EngineName:
    """`ort:fp16`; `runtime` is None where it is left open, and the best usable one is meant."""

    runtime: str | None
    precision: Precision

    def __str__(self) -> str:
        return str(self.precision) if self.runtime is None else f"{self.runtime}:{self.precision}"


@dataclasses.dataclass(frozen=True, slots=True)
class EngineFile:
    """A file that is opened in a runtime on a device (cpu, cuda, auto)."""

    file: Artifact
    runtime: str
    precision: Precision
    device: str

    @property
    def name(self) -> EngineName:
        return EngineName(self.runtime, self.precision)
