"""What an interrupted training continues from: weights, optimizer state and the step, in one safetensors file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import atomic_write


class TrainingState:
    """Saves and restores `model` and its `optimizers` at `path`, for one set of `settings`.

    Every parameter belongs to one of the optimizers, whose state of it holds tensors only.
    """

    def __init__(
        self,
        path: Path,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        settings: dict[str, Any],
    ) -> None:
        self.path = path
        self.model = model
        self.optimizers = optimizers
        self.settings = settings

    def save(self, step: int, elapsed: float) -> None:
        """Write everything after `step` steps, `elapsed` seconds of training so far."""
        tensors = {f"model.{name}": parameter.detach().cpu() for name, parameter in self._parameters()}
        for name, parameter in self._parameters():
            for key, tensor in self._optimizer(parameter).state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = tensor.detach().cpu()
        metadata = {"step": str(step), "elapsed": str(elapsed), "settings": json.dumps(self.settings)}
        with atomic_write(self.path) as beside:
            save_file(tensors, beside, metadata)

    def load(self) -> tuple[int, float] | None:
        """Restore what was saved; returns (steps done, seconds trained), or None if nothing was.

        Raises:
            AegisError: the state is unreadable or was made with other settings.
        """
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise AegisError(f"{self.path} is not readable ({error}): remove it to start again.") from error
        saved = json.loads(metadata["settings"])
        if saved != self.settings:
            keys = saved.keys() | self.settings.keys()
            other = sorted(key for key in keys if saved.get(key) != self.settings.get(key))
            raise AegisError(
                f"{self.path} was trained with other values of {', '.join(other)}: give the same flags to "
                "continue it, or remove it to start again."
            )
        with torch.no_grad():
            for name, parameter in self._parameters():
                parameter.copy_(tensors[f"model.{name}"])
                keys = [key.removesuffix(f".{name}") for key in tensors if key.endswith(f".{name}")]
                state = {key: tensors[f"{key}.{name}"] for key in keys if "." not in key and key != "model"}
                if state:
                    self._optimizer(parameter).state[parameter] = state
        return int(metadata["step"]), float(metadata["elapsed"])

    def _optimizer(self, parameter: Tensor) -> torch.optim.Optimizer:
        return next(
            optimizer
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            if any(parameter is member for member in group["params"])
        )

    def _parameters(self) -> list[tuple[str, Tensor]]:
        return list(self.model.named_parameters())
