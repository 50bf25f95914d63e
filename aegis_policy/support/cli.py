"""What the `aegis-*` commands share: draccus flags in, one sentence out when input or disk cannot be used."""

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import fields, is_dataclass
from itertools import zip_longest
from operator import attrgetter
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import draccus
import yaml
from draccus.utils import DraccusException

from aegis_policy.support import opengl
from aegis_policy.support.disk import refusal
from aegis_policy.support.errors import AegisError, one_line
from aegis_policy.support.files import alone, require_file

_WRITTEN = {str, Path, type(None)}


def run[Config](
    config_class: type[Config],
    command: Callable[[Config], Any],
    *,
    file: str | None = None,
    folder: str | None = None,
) -> None:
    """Parse `sys.argv` into `config_class` and call `command`; a user's error ends with its sentence and status 2.

    Args:
        config_class: a dataclass of flags.
        command: what to do.
        file, folder: the flag, if there is one, that names what the command writes in the end. It is seen before the
            work that this can be written, and that no other command is about to.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    opengl.chosen()
    try:
        config = draccus.parse(config_class=config_class, args=_spelled_out(config_class, sys.argv[1:]))
        _require_values(config)
        with ExitStack() as held:
            if file is not None:
                require_file(getattr(config, file), f"--{file}")
            if place := file or folder:
                held.enter_context(alone(getattr(config, place), f"--{place}"))
            command(config)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except (AegisError, DraccusException, yaml.YAMLError) as error:
        print(f"error: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if (sentence := refusal(error)) is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)


def require_at_least(config: Any, **least: int) -> None:
    """Refuse flags of `config` that are below the least value given here by name; None passes.

    Raises:
        AegisError: names the first.
    """
    for name, value in least.items():
        given = getattr(config, name)
        if given is not None and given < value:
            raise AegisError(f"--{name}={given} must be at least {value}.")


def shrink(config: Any, **small: Any) -> None:
    """Give the flags of a dataclass that were left at their defaults these values instead."""
    for field in fields(config):
        if field.name in small and getattr(config, field.name) == field.default:
            setattr(config, field.name, small[field.name])


def _spelled_out(config_class: type, arguments: Sequence[str]) -> list[str]:
    """The arguments as draccus wants them, which reads them all as YAML.

    `--flag` alone of a flag that is a yes or no becomes `--flag=true`, and `a,b` of one that is a list `[a,b]`. What a
    text or a path is given becomes a quoted scalar, or a folder called `a #b`, `007` or `[new]` would be another one;
    `null` still leaves it open, if it may be.

    Raises:
        AegisError: a flag is given nothing.
    """
    kinds = dict(_flags(config_class))
    spelled, behind = [], ""
    for argument, following in zip_longest(arguments, arguments[1:]):
        flag, equals, value = argument.partition("=")
        if kinds.get(argument) is bool and (following is None or following.startswith("--")):
            spelled.append(f"{argument}=true")
        elif flag in kinds:
            spelled.append(f"{flag}={_as_yaml(flag, kinds[flag], value)}" if equals else flag)
        else:
            spelled.append(_as_yaml(behind, kinds[behind], argument) if behind in kinds else argument)
        behind = argument
    return spelled


def _as_yaml(flag: str, kind: Any, value: str) -> str:
    """What a flag of this type was given, as YAML.

    Raises:
        AegisError: nothing, as a shell's variable that is not set gives.
    """
    if not value.strip():
        raise AegisError(f"{flag} has an empty value: give it one, or leave it out.")
    if get_origin(kind) is list:
        return value if value.lstrip()[0] in "[-" else f"[{value}]"
    choices = _choices(kind)
    if not choices <= _WRITTEN or (value == "null" and type(None) in choices):
        return value
    # As YAML that is nothing but this text.
    return yaml.safe_dump(value, default_style='"', width=math.inf).strip()


def _require_values(config: Any) -> None:
    """Refuse a flag that has no value, or one that is no number, where its type wants one.

    Raises:
        AegisError: names the first.
    """
    for flag, kind in _flags(type(config)):
        value = attrgetter(flag.removeprefix("--"))(config)
        if value is None and type(None) not in _choices(kind):
            raise AegisError(f"{flag}=null: give it a value, or leave it out.")
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, float) and not math.isfinite(each):
                raise AegisError(f"{flag}={value} must be finite.")


def _flags(config_class: type, above: str = "--") -> Iterator[tuple[str, Any]]:
    """All flags with their types, those of flags with dots too."""
    for name, kind in get_type_hints(config_class).items():
        if isinstance(kind, type) and is_dataclass(kind):
            yield from _flags(kind, f"{above}{name}.")
        else:
            yield f"{above}{name}", kind


def _choices(kind: Any) -> set[Any]:
    """The types of which a flag may be one; a list of texts is no text."""
    return set(get_args(kind)) if get_origin(kind) in (Union, UnionType) else {kind}


def _sentence(error: Exception) -> str:
    """The first sentence of ours in the chain of causes, else what the parser says."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, AegisError):
            return str(cause)
        cause = cause.__cause__
    said = one_line(error)
    return said if isinstance(error, DraccusException) else f"a flag is no YAML: {said}."
