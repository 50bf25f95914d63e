"""What the cost benchmarks share: a policy of any VLM, random batches, and how figures are printed."""

import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature

from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.files import atomic_write
from aegis_policy.isolation import GaussianAnchor, MomentAccumulator
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.vlm import EMBEDDED_VLM, VLMBackbone

CAMERAS = ("observation.images.front", "observation.images.wrist")
STATE_DIM, ACTION_DIM = 8, 4


def random_batch(batch_size: int, image_size: int, chunk_size: int, device: str) -> dict[str, Any]:
    """A batch as the preprocessor would hand it to the policy, of noise."""
    batch: dict[str, Any] = {
        **{camera: torch.rand(batch_size, 3, image_size, image_size, device=device) for camera in CAMERAS},
        "observation.state": torch.randn(batch_size, STATE_DIM, device=device),
        "action": torch.randn(batch_size, chunk_size, ACTION_DIM, device=device),
        "action_is_pad": torch.zeros(batch_size, chunk_size, dtype=torch.bool, device=device),
        "task": ["push the green cylinder to the blue zone"] * batch_size,
    }
    return batch


def make_policy(vlm: str, protection: str, image_size: int, device: str) -> AegisPolicy:
    """A fresh policy, its zero-initialised layers woken up; a missing anchor is made on the spot."""
    anchor_path = None
    if protection == "aegis" and vlm != EMBEDDED_VLM:
        anchor_path = _random_anchor(vlm, image_size)
    config = AegisConfig(
        vlm=vlm,
        protection=protection,
        anchor_path=anchor_path,
        device=device,
        input_features={
            **{camera: PolicyFeature(FeatureType.VISUAL, (3, image_size, image_size)) for camera in CAMERAS},
            "observation.state": PolicyFeature(FeatureType.STATE, (STATE_DIM,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))},
    )
    policy = AegisPolicy(config).to(device)
    for parameter in policy.expert.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return policy


def report(figures: dict[str, Any], json_path: Path | None) -> None:
    """Print the figures, and write them with the machine they were measured on."""
    for key, value in figures.items():
        print(f"{key:<32} {value:.3f}" if isinstance(value, float) else f"{key:<32} {value}")
    if json_path is not None:
        machine = {
            "platform": platform.platform(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        with atomic_write(json_path) as path:
            path.write_text(json.dumps({**figures, "machine": machine}, indent=2) + "\n")
        print(f"wrote {json_path}")


def _random_anchor(vlm: str, image_size: int) -> Path:
    backbone = VLMBackbone.from_pretrained(vlm)
    batch = random_batch(8, image_size, 1, "cpu")
    with torch.no_grad():
        prefix = backbone.encode(backbone.prepare([batch[CAMERAS[0]]], batch["task"]))
    accumulators = [MomentAccumulator() for _ in prefix.hidden_states]
    for accumulator, hidden in zip(accumulators, prefix.hidden_states, strict=True):
        accumulator.update(hidden, prefix.mask)
    path = Path(tempfile.mkdtemp()) / "anchor.safetensors"
    GaussianAnchor.from_accumulators(accumulators, {"vlm": vlm}).save(path)
    return path
