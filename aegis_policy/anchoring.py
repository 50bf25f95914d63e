"""Which anchor a policy has, and how it keeps it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from aegis_policy.errors import AegisError
from aegis_policy.isolation import AnchorError, GaussianAnchor
from aegis_policy.protection import Protection
from aegis_policy.vlm import EMBEDDED_VLM, embedded_anchor

if TYPE_CHECKING:
    from aegis_policy.configuration_aegis import AegisConfig


class StoredAnchor(nn.Module):
    """A Gaussian anchor as persistent buffers, so that it travels in the policy's `model.safetensors`."""

    mean_LD: Tensor
    std_LD: Tensor
    count: Tensor
    present: Tensor

    def __init__(self, num_layers: int, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("mean_LD", torch.zeros(num_layers, hidden_size))
        self.register_buffer("std_LD", torch.zeros(num_layers, hidden_size))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("present", torch.zeros((), dtype=torch.bool))

    def store(self, anchor: GaussianAnchor) -> None:
        """Keep a copy of `anchor`, whose sizes must be those of this store."""
        self.mean_LD.copy_(anchor.mean_LD)
        self.std_LD.copy_(anchor.std_LD)
        self.count.fill_(anchor.count)
        self.present.fill_(True)

    def restore(self, metadata: dict[str, str]) -> GaussianAnchor | None:
        """The anchor that is kept, or None."""
        if not self.present:
            return None
        return GaussianAnchor(self.mean_LD, self.std_LD, int(self.count), metadata)


def adopt_anchor(stored: StoredAnchor, config: "AegisConfig", protection: Protection) -> None:
    """See that a protection with an anchor has one: the flag's, the checkpoint's, or the embedded VLM's.

    What was read from a file moves into `stored`, and `config.anchor_path` is cleared: from here on the anchor
    belongs to the policy.

    Raises:
        AegisError: there is none, or it is not the anchor of this VLM.
    """
    if not protection.needs_anchor or (config.anchor_path is None and stored.present):
        return
    if config.anchor_path is None and config.vlm != EMBEDDED_VLM:
        raise AegisError(
            f"--policy.protection={config.protection} needs the anchor of --policy.vlm={config.vlm}: make it "
            f"with aegis-anchor --vlm={config.vlm} --out=anchor.safetensors and name it with "
            "--policy.anchor_path=anchor.safetensors."
        )
    path = config.anchor_path or embedded_anchor()
    try:
        anchor = GaussianAnchor.load(path)
        num_layers, hidden_size = stored.mean_LD.shape
        anchor.check(num_layers, hidden_size, config.vlm_fingerprint)
    except AnchorError as error:
        raise AegisError(f"--policy.anchor_path={path} cannot be used: {error}") from error
    stored.store(anchor)
    config.anchor_info = {**anchor.metadata, "path": str(path)}
    config.anchor_path = None
