"""The `--device` flag of the `aegis-*` commands."""

import torch

from aegis_policy.support.errors import AegisError


def torch_device(name: str | None) -> torch.device:
    """The device of a `--device` flag; without one, CUDA if there is any.

    Raises:
        AegisError: there is no such device.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise AegisError(f"--device={name}: torch sees no CUDA device here; leave the flag out or give cpu.")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise AegisError(f"--device={name} is not a torch device: give cuda or cpu.") from error
