"""What the `aegis-*` commands share: draccus flags in, one sentence out when input or disk cannot be used."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import fields
from itertools import zip_longest
from typing import Any

import draccus
from draccus.utils import DraccusException

from aegis_policy.support import opengl
from aegis_policy.support.disk import refusal
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import alone, require_file


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
        with ExitStack() as held:
            if file is not None:
                require_file(getattr(config, file), f"--{file}")
            if place := file or folder:
                held.enter_context(alone(getattr(config, place), f"--{place}"))
            command(config)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except (AegisError, DraccusException) as error:
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
    """The arguments, where `--flag` alone of a flag that is a yes or no becomes `--flag=true`, as draccus wants it."""
    switches = {f"--{field.name}" for field in fields(config_class) if field.type is bool}
    return [
        f"{argument}=true"
        if argument in switches and (following is None or following.startswith("--"))
        else argument
        for argument, following in zip_longest(arguments, arguments[1:])
    ]


def _sentence(error: BaseException) -> str:
    """The first sentence of ours in the chain of causes, else what the parser says."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, AegisError):
            return str(cause)
        cause = cause.__cause__
    return str(error)
