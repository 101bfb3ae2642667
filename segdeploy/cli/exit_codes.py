"""How commands end, besides with the exit code of an error (`segdeploy.errors`)."""

from typing import Final

DEFECT: Final = 1
ENVIRONMENT: Final = 3
FAILED_GATE: Final = 4
FAILED_IMAGES: Final = 5
INTERRUPTED: Final = 130
