"""What a check of the machine, or of files, found: one line, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One line of a check; `mend` is empty where nothing is wrong."""

    status: Status
    what: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.mend}" if self.mend else self.what
