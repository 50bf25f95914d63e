"""What the `aegis-*` commands share: draccus flags in, one sentence out when the input cannot be used."""

import os
import sys
from collections.abc import Callable
from typing import Any

import draccus

from aegis_policy.errors import AegisError


def run[Config](config_class: type[Config], command: Callable[[Config], Any]) -> None:
    """Parse `sys.argv` into `config_class` and call `command`; a user's error ends with its sentence and status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        command(draccus.parse(config_class=config_class))
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except AegisError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
