"""A tiny VLM with its anchor, a tiny LeRobot dataset, and policies and batches made of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from findings import edited
from lerobot.configs import FeatureType, PolicyFeature
from PIL import Image
from training_steps import MakeBatch, MakePolicy

from aegis_policy.anchors.building import build_anchor
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.protections import PROTECTIONS
from aegis_policy.support.json_files import read_json
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vqa.examples import VQAExample

CAMERAS = ("observation.images.front", "observation.images.wrist")
TASKS = ("reach the red cube", "push the green sphere to the blue zone", "pick up the yellow cylinder")
STATE_DIM, ACTION_DIM, HORIZON = 5, 3, 4

TINY = {"chunk_size": HORIZON, "n_action_steps": 2, "expert_width": 16, "expert_depth": 2, "expert_heads": 2}


@pytest.fixture(scope="session")
def make_batch() -> MakeBatch:
    """`make_batch(size=4, seed=0)`: a normalised batch; the last sample's chunk ends in padding."""
    return _make_batch


def _make_batch(size: int = 4, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    is_pad_BH = torch.zeros(size, HORIZON, dtype=torch.bool)
    is_pad_BH[-1, HORIZON // 2 :] = True
    return {
        **{camera: torch.rand(size, 3, 32, 32, generator=generator) for camera in CAMERAS},
        "observation.state": torch.randn(size, STATE_DIM, generator=generator),
        "action": torch.randn(size, HORIZON, ACTION_DIM, generator=generator),
        "action_is_pad": is_pad_BH,
        "task": [TASKS[index % len(TASKS)] for index in range(size)],
    }


@pytest.fixture(scope="session")
def tiny_anchor(tiny_vlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The anchor of the tiny VLM, from one batch of random images and questions."""
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    images = np.random.default_rng(1).integers(0, 255, (16, 32, 32, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("anchor") / "anchor.safetensors"
    examples = (VQAExample(image, "what colour is the cube") for image in images)
    kinds = ["gaussian", "subspace", "fisher"]
    build_anchor(vlm, examples, kinds=kinds, source="noise", batch_size=8, share=1.0).save(path)
    return path


@pytest.fixture(scope="session")
def tiny_vqa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six pictures, each of one colour, with a question about it and the answer."""
    folder = tmp_path_factory.mktemp("vqa")
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
    lines = []
    for index, (name, colour) in enumerate(list(colours.items()) * 2):
        Image.new("RGB", (32, 32), colour).save(folder / f"{index}.png")
        record = {"image": f"{index}.png", "question": "what colour is the cube", "answer": name}
        lines.append(json.dumps(record))
    (folder / "questions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def relative_dataset(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset with names and the statistics of relative actions, as `lerobot-edit-dataset` computes them."""
    from lerobot.datasets.dataset_tools import recompute_stats
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = read_json(tiny_dataset / "meta" / "info.json")["features"]
    joints = ["a.pos", "b.pos", "gripper.pos", "d.pos", "e.pos"]
    features["observation.state"]["names"], features["action"]["names"] = joints, joints[:ACTION_DIM]
    root = edited(tiny_dataset, tmp_path_factory.mktemp("data") / "relative", features=features)
    recompute_stats(LeRobotDataset("local/tiny", root=root), relative_action=True, chunk_size=HORIZON)
    return root


@pytest.fixture(scope="session")
def make_config(tiny_vlm_dir: Path, tiny_anchor: Path, tiny_vqa: Path) -> Callable[..., AegisConfig]:
    """`make_config(protection=..., **options)`: on the tiny VLM and its anchor; `aegis` is the paper's unless told."""

    def make(protection: str = "aegis", **options: Any) -> AegisConfig:
        if getattr(PROTECTIONS.get(protection), "needs_anchor", False):
            options.setdefault("anchor_path", tiny_anchor)
        if protection == "aegis":
            options.setdefault("anchor", "gaussian")
        if protection in ("replay", "knowledge_insulation") and options.get("replay_batch_size") != 0:
            options = {"replay_data": str(tiny_vqa), "replay_batch_size": 2, **options}
        return AegisConfig(
            **{
                "vlm": str(tiny_vlm_dir),
                "protection": protection,
                "device": "cpu",
                "input_features": {
                    **{camera: PolicyFeature(FeatureType.VISUAL, (3, 32, 32)) for camera in CAMERAS},
                    "observation.state": PolicyFeature(FeatureType.STATE, (STATE_DIM,)),
                },
                "output_features": {"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))},
                **TINY,
                **options,
            }
        )

    return make


@pytest.fixture(scope="session")
def make_policy(make_config: Callable[..., AegisConfig]) -> MakePolicy:
    """`make_policy(protection=..., **options)`: a fresh policy, its zero-initialised layers woken up."""

    def make(protection: str = "aegis", **options: Any) -> AegisPolicy:
        torch.manual_seed(0)
        policy = AegisPolicy(make_config(protection, **options))
        for parameter in policy.expert.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
        return policy

    return make


@pytest.fixture(scope="session")
def tiny_flags(tiny_dataset: Path) -> list[str]:
    """Flags that train a tiny policy on the tiny dataset, fresh or further."""
    return [
        "--dataset.repo_id=local/tiny",
        f"--dataset.root={tiny_dataset}",
        "--batch_size=4",
        "--num_workers=0",
        "--log_freq=1",
    ]


@pytest.fixture(scope="session")
def fresh_flags(tiny_flags: list[str], tiny_vlm_dir: Path, tiny_anchor: Path) -> list[str]:
    """Flags of a fresh `--policy.protection=aegis` run with the paper's anchor."""
    return [
        *tiny_flags,
        "--policy.type=aegis",
        "--policy.device=cpu",
        f"--policy.vlm={tiny_vlm_dir}",
        "--policy.anchor=gaussian",
        f"--policy.anchor_path={tiny_anchor}",
        *(f"--policy.{key}={value}" for key, value in TINY.items()),
    ]
