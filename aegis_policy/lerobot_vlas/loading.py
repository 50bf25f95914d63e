"""Whether a policy of LeRobot's has the weights that it was to load: its own `from_pretrained` may go on without."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from aegis_policy.support.errors import AegisError, one_line, some


@dataclass(frozen=True)
class _Stored:
    """A weight in a file, while LeRobot renames it."""

    name: str

    def clone(self) -> "_Stored":
        return self


def require_loaded(policy: Any, file: Path) -> None:
    """See that every weight came from a file: LeRobot goes on with random ones, or some, where it could not load.

    Args:
        policy: one of LeRobot's, protected or not.
        file: its `model.safetensors`.

    Raises:
        AegisError: the file cannot be read, or did not give a weight.
    """
    names_of: dict[int, list[str]] = {}
    for name, parameter in policy.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    weights = {id(parameter): parameter for parameter in policy.parameters()}
    missing = []
    try:
        with safe_open(file, "pt") as held:
            there = _by_their_names_in(policy, held.keys())
            for key, names in names_of.items():
                stored = next((there[name] for name in names if name in there), None)
                if stored is None or not _begins_with(weights[key], held.get_slice(stored)):
                    missing.append(names[0])
    except (OSError, SafetensorError) as error:
        raise AegisError(
            f"{file} cannot be read ({one_line(error)}): take the folder as training saved it."
        ) from error
    if missing:
        raise AegisError(
            f"{file} did not give {some(missing)} of this {policy.name}: see that the flags are those of the policy "
            "that was saved there (sizes, number of layers, vlm_model_name)."
        )


def _by_their_names_in(policy: Any, names: list[str]) -> dict[str, str]:
    """Name in the policy -> name in a file; `pi0` and `pi05` rename what openpi wrote, and find one in another."""
    found = {name: _Stored(name) for name in names}
    if rename := getattr(policy, "_fix_pytorch_state_dict_keys", None):
        found = rename(found, policy.config)
    return {f"model.{name.removeprefix('model.')}": stored.name for name, stored in found.items()}


def _begins_with(weight: Tensor, stored: Any) -> bool:
    """Whether a weight's first row is that of a stored one."""
    if list(weight.shape) != stored.get_shape():
        return False
    row = stored[:1] if weight.ndim else torch.as_tensor(stored[:])
    held = (weight.detach()[:1] if weight.ndim else weight.detach()).cpu()
    return torch.allclose(row.to(held.dtype), held, rtol=0.0, atol=0.0, equal_nan=True)
