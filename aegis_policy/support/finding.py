"""What a check of the machine, or of files, found: one line, and what to do about it.

The same checks run before a training, which `enforce`s what they find, and in `aegis-doctor`, which prints it.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from aegis_policy.support.errors import AegisError

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One line of a check; `mend` is empty where nothing is wrong."""

    status: Status
    what: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.mend}" if self.mend else self.what


def enforce(findings: Iterable[Finding]) -> None:
    """Log the warnings, and as information what is well; then refuse to go on if there is an error.

    Raises:
        AegisError: holds every error found, a line each.
    """
    found = list(findings)
    for each in found:
        if each.status != "error":
            logging.log(logging.WARNING if each.status == "warning" else logging.INFO, str(each))
    if errors := [str(each) for each in found if each.status == "error"]:
        raise AegisError("\n".join(errors))
