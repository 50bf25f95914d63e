"""What the cost benchmarks share: a policy of any VLM, and random batches."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature

from aegis_policy.anchors.building import build_anchor
from aegis_policy.checkpoint import files
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.isolation import Anchor
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.pretrained import EMBEDDED_VLM
from aegis_policy.protections import PROTECTIONS
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vqa.examples import VQAExample

CAMERAS = ("observation.images.front", "observation.images.wrist")
STATE_DIM, ACTION_DIM = 8, 4
TASK = "push the green cylinder to the blue zone"


def random_batch(
    batch_size: int, image_size: int, chunk_size: int, device: str, cameras: Sequence[str] = CAMERAS
) -> dict[str, Any]:
    """A batch as the preprocessor would hand it to the policy, of noise."""
    batch: dict[str, Any] = {
        **{camera: torch.rand(batch_size, 3, image_size, image_size, device=device) for camera in cameras},
        "observation.state": torch.randn(batch_size, STATE_DIM, device=device),
        "action": torch.randn(batch_size, chunk_size, ACTION_DIM, device=device),
        "action_is_pad": torch.zeros(batch_size, chunk_size, dtype=torch.bool, device=device),
        "task": [TASK] * batch_size,
    }
    return batch


def make_policy(
    vlm: str,
    protection: str,
    image_size: int,
    device: str,
    cameras: Sequence[str] = CAMERAS,
    **options: Any,
) -> AegisPolicy:
    """A fresh policy, its zero-initialised layers woken up; a missing anchor is made on the spot."""
    with tempfile.TemporaryDirectory() as folder:
        needs_anchor = PROTECTIONS[protection].needs_anchor and vlm != EMBEDDED_VLM
        if needs_anchor and options.get("anchor_path") is None:
            options["anchor_path"] = save_random_anchor(vlm, image_size, Path(folder))
        return _awake(AegisPolicy(_config(vlm, protection, image_size, device, cameras, options)).to(device))


@contextmanager
def given(vlm: VLMBackbone, anchor: Anchor | None = None) -> Iterator[None]:
    """Have a policy take this backbone and this anchor, where it would read both from files."""
    with (
        patch.object(VLMBackbone, "from_pretrained", lambda *_, **__: vlm),
        patch.object(files, "find_anchor", lambda *_: anchor),
    ):
        yield


def save_random_anchor(
    vlm: str, image_size: int, folder: Path, kinds: Iterable[str] = ("gaussian", "subspace", "fisher")
) -> Path:
    """An anchor of these kinds, from a few random pictures."""
    images = np.random.default_rng(0).integers(0, 256, (8, image_size, image_size, 3), dtype=np.uint8)
    examples = (VQAExample(image, "what is on the table?") for image in images)
    backbone = VLMBackbone.from_pretrained(vlm)
    build_anchor(backbone, examples, kinds=sorted(kinds), source="noise", batch_size=8).save(
        folder / "anchor.safetensors"
    )
    return folder / "anchor.safetensors"


def _config(
    vlm: str,
    protection: str,
    image_size: int,
    device: str,
    cameras: Sequence[str],
    options: dict[str, Any],
) -> AegisConfig:
    return AegisConfig(
        vlm=vlm,
        protection=protection,
        device=device,
        **options,
        input_features={
            **{camera: PolicyFeature(FeatureType.VISUAL, (3, image_size, image_size)) for camera in cameras},
            "observation.state": PolicyFeature(FeatureType.STATE, (STATE_DIM,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))},
    )


def _awake(policy: AegisPolicy) -> AegisPolicy:
    for parameter in policy.expert.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return policy
