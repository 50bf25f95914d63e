"""What the checks of `aegis-doctor` said, in one line."""

from collections.abc import Iterable
from pathlib import Path
from shutil import copytree

from aegis_policy.support.finding import Finding
from aegis_policy.support.json_files import read_json, write_json


def told(findings: Iterable[Finding]) -> str:
    return " | ".join(f"{each.status}: {each}" for each in findings)


def edited(source: Path, target: Path, **changes: object) -> Path:
    """A copy of a dataset whose `info.json` says something else."""
    copytree(source, target)
    path = target / "meta" / "info.json"
    write_json(path, read_json(path) | changes)
    return target
