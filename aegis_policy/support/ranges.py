"""Numbers of a configuration that can be used: draccus takes null, NaN and what has no end for any number."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from aegis_policy.support.errors import AegisError

Ranges = Mapping[str, tuple[float, float]]
"""Field -> least and greatest value."""


def refuse_null(config: Any, prefix: str) -> None:
    """Make sure that no field is None which has another default.

    Args:
        config: a dataclass.
        prefix: of its flags, `--policy.` for instance.

    Raises:
        AegisError: names the first that is, or that holds one.
    """
    for each in fields(config):
        value = getattr(config, each.name)
        opened = value is None and each.default not in (None, MISSING)
        if opened or (isinstance(value, tuple) and None in value):
            raise AegisError(f"{prefix}{each.name} is null: give a value, or leave it out.")


def check_ranges(config: Any, prefix: str, ranges: Ranges) -> None:
    """Make sure that all numbers are finite and those in `ranges` within them; else like `refuse_null`.

    Raises:
        AegisError: names the first that is not.
    """
    for each in fields(config):
        if not all(map(math.isfinite, _floats(getattr(config, each.name)))):
            raise AegisError(
                f"{prefix}{each.name}={getattr(config, each.name)} is not finite: give a number."
            )
    for name, (least, greatest) in ranges.items():
        value = getattr(config, name)
        if value is not None and not least <= value <= greatest:
            end = f"between {least} and {greatest}" if greatest < math.inf else f"at least {least}"
            raise AegisError(f"{prefix}{name}={value} must be {end}.")


def _floats(value: Any) -> Iterator[float]:
    """The numbers with a point in a field's value."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, Mapping):
        yield from _floats(tuple(value.values()))
    elif is_dataclass(value):
        yield from _floats(tuple(vars(value).values()))
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _floats(each)
