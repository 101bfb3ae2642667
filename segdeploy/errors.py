"""Errors a user can act on: what is wrong with its values, and what to do. Each kind has its exit code."""


class SegdeployError(Exception):
    """A failure with a remedy; the command line prints both lines and ends with `exit_code`. Processes can send it."""

    exit_code = 1

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)  # both: unpickling calls the class with what is given here
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}\n{self.remedy}"


class InvalidRequestError(SegdeployError):
    """An unknown name, an option out of range, a missing path, an empty folder."""

    exit_code = 2


class MissingRuntimeError(SegdeployError):
    """A package, a device or a driver that is not here."""

    exit_code = 3


class InvalidFileError(SegdeployError):
    """A file that exists but is corrupt, foreign, of another architecture, or not what its manifest says."""

    exit_code = 3


class GateFailedError(SegdeployError):
    """A proof that was asked for and does not hold: parity, a budget, a precision."""

    exit_code = 4
