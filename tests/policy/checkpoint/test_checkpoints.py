"""A checkpoint is all one needs: it moves, and it carries its VLM, its processor and its anchor."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from safetensors.torch import load_file, save_file
from training_steps import MakeBatch, MakePolicy, build_optimizer, training_step

from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.isolation import Anchor, GaussianAnchor
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.backbone import VLMBackbone

MakeConfig = Callable[..., AegisConfig]


def _changed_file(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    save_file(tensors, checkpoint / "model.safetensors")


def test_a_checkpoint_acts_and_answers_the_same_after_it_moved_and_its_vlm_is_gone(
    tiny_vlm_dir: Path, tiny_anchor: Path, make_config: MakeConfig, make_batch: MakeBatch, tmp_path: Path
) -> None:
    shutil.copytree(tiny_vlm_dir, tmp_path / "vlm")
    shutil.copy(tiny_anchor, tmp_path / "anchor.safetensors")
    policy = AegisPolicy(
        make_config(
            vlm=str(tmp_path / "vlm"),
            anchor="gaussian+subspace",
            anchor_path=tmp_path / "anchor.safetensors",
        )
    )
    optimizer = build_optimizer(policy)
    for seed in range(3):
        training_step(policy, optimizer, make_batch(seed=seed))
    policy.eval()  # before, for to hold weights twice rounds them twice
    policy.save_pretrained(tmp_path / "saved")

    batch, noise = make_batch(), torch.randn(4, 4, 3)
    images = [np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)] * 2
    questions = ["what colour is the cube", "is the cube red"]
    actions, answers = policy.predict_action_chunk(batch, noise), policy.vlm.answer(images, questions)

    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "saved", tmp_path / "elsewhere" / "checkpoint")
    shutil.rmtree(tmp_path / "vlm")
    (tmp_path / "anchor.safetensors").unlink()
    restored = AegisPolicy.from_pretrained(tmp_path / "elsewhere" / "checkpoint")

    assert torch.equal(restored.predict_action_chunk(batch, noise), actions)
    assert restored.vlm.answer(images, questions) == answers
    assert restored.config.vlm == str(tmp_path / "vlm")
    assert restored.anchor is not None
    kept, original = restored.anchor, policy.anchor
    assert original is not None and kept.metadata == original.metadata
    assert torch.equal(kept.gaussians["all"].mean_LD, original.gaussians["all"].mean_LD)
    for name, factors in original.factors.items():
        assert torch.equal(kept.factors[name].inputs.vectors_DK, factors.inputs.vectors_DK)


@pytest.mark.parametrize(
    ("protection", "options", "held"),
    [
        ("aegis", {"anchor": "gaussian"}, {"gaussian"}),
        ("aegis", {"anchor": "subspace"}, {"inputs", "gradient"}),
        ("aegis", {"anchor": "gaussian+subspace"}, {"gaussian", "inputs", "gradient"}),
        ("w2_penalty", {}, {"gaussian"}),
        ("ewc", {}, {"importance"}),
    ],
)
def test_a_checkpoint_carries_no_more_of_the_anchor_than_its_protection_needs(
    make_policy: MakePolicy, tmp_path: Path, protection: str, options: dict[str, Any], held: set[str]
) -> None:
    make_policy(protection, **options).save_pretrained(tmp_path)
    assert {key.split("/")[0] for key in load_file(tmp_path / "anchor.safetensors")} == held
    assert AegisPolicy.from_pretrained(tmp_path).anchor is not None


def test_a_restored_policy_trains_against_the_restored_anchor(
    make_policy: MakePolicy, make_batch: MakeBatch, tmp_path: Path
) -> None:
    policy = make_policy("aegis")
    policy.save_pretrained(tmp_path)
    distances = []
    for each in (policy, AegisPolicy.from_pretrained(tmp_path)):
        build_optimizer(each)
        distances.append(each.train()(make_batch())[1]["gaussian_anchor_distance"])
    assert distances[0] == distances[1] > 0


def test_the_checkpoint_says_how_it_was_protected(
    make_policy: MakePolicy, tiny_vlm_dir: Path, tiny_anchor: Path, tmp_path: Path
) -> None:
    make_policy("aegis").save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    assert isinstance(config, AegisConfig)
    assert config.protection == "aegis" and config.vlm == str(tiny_vlm_dir)
    assert config.anchor_info is not None and config.anchor_info["path"] == str(tiny_anchor)
    assert config.vlm_fingerprint == VLMBackbone.from_pretrained(tiny_vlm_dir).fingerprint()


def test_a_checkpoint_that_lost_its_anchor_is_refused(make_policy: MakePolicy, tmp_path: Path) -> None:
    make_policy("aegis").save_pretrained(tmp_path)
    (tmp_path / "anchor.safetensors").unlink()
    with pytest.raises(AegisError, match=r"holds no anchor\.safetensors"):
        AegisPolicy.from_pretrained(tmp_path)


def test_a_checkpoint_without_some_weights_is_refused(make_policy: MakePolicy, tmp_path: Path) -> None:
    make_policy("none").save_pretrained(tmp_path)
    _changed_file(tmp_path, lambda tensors: tensors.pop("expert.embed_state.weight"))
    with pytest.raises(AegisError, match=r"lacks expert.embed_state.weight and has nothing too many"):
        AegisPolicy.from_pretrained(tmp_path)


def test_a_truncated_checkpoint_is_refused(make_policy: MakePolicy, tmp_path: Path) -> None:
    make_policy("none").save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AegisError, match=r"model.safetensors is truncated"):
        AegisPolicy.from_pretrained(tmp_path)


def test_weights_of_other_sizes_are_refused(make_policy: MakePolicy, tmp_path: Path) -> None:
    make_policy("none").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "expert_width": 32}))
    with pytest.raises(
        AegisError, match=r"does not fit its configuration: expert\..* has the shape"
    ) as raised:
        AegisPolicy.from_pretrained(tmp_path)
    assert len(str(raised.value)) < 500


def test_another_vlm_named_beside_a_checkpoint_is_refused(make_policy: MakePolicy, tmp_path: Path) -> None:
    make_policy("none").save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    config.vlm = "google/paligemma2-3b-mix-224"
    with pytest.raises(AegisError, match=r"--policy.vlm=google/.* does not fit the weights"):
        AegisPolicy.from_pretrained(tmp_path, config=config)


def test_a_folder_without_the_vlm_is_no_checkpoint(make_policy: MakePolicy, tmp_path: Path) -> None:
    make_policy("none").save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "vlm")
    with pytest.raises(AegisError, match=r"no vlm/ folder.*pretrained_model"):
        AegisPolicy.from_pretrained(tmp_path)


def test_fine_tuning_an_unprotected_checkpoint_with_protection_takes_the_named_anchor(
    make_policy: MakePolicy, tiny_anchor: Path, tmp_path: Path
) -> None:
    make_policy("none").save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    config.protection = "aegis"
    with pytest.raises(AegisError, match=r"--policy.anchor_path"):
        AegisPolicy.from_pretrained(tmp_path, config=config)
    config.anchor_path = tiny_anchor
    policy = AegisPolicy.from_pretrained(tmp_path, config=config)
    assert policy.anchor is not None and policy.config.anchor_path is None


def test_a_fresh_protected_policy_without_an_anchor_names_the_flag_and_the_command(
    make_config: MakeConfig,
) -> None:
    with pytest.raises(AegisError, match=r"needs the anchor.*aegis-anchor.*--policy.anchor_path"):
        AegisPolicy(make_config("aegis", anchor_path=None))


def test_an_anchor_that_is_not_there_is_named(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(AegisError, match=rf"--policy.anchor_path={tmp_path}/nowhere.*no anchor"):
        AegisPolicy(make_config("aegis", anchor_path=tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("layers", "width", "fingerprint", "complaint"),
    [(3, 32, None, "3 layers"), (2, 16, None, "size 16"), (2, 32, "another", "made from weights another")],
)
def test_an_anchor_of_another_vlm_is_refused(
    make_config: MakeConfig, tmp_path: Path, layers: int, width: int, fingerprint: str | None, complaint: str
) -> None:
    metadata = {"vlm": "other"} | ({"fingerprint": fingerprint} if fingerprint else {})
    gaussian = GaussianAnchor(torch.zeros(layers, width), torch.ones(layers, width), 10)
    Anchor({"all": gaussian}, metadata=metadata).save(tmp_path / "anchor.safetensors")
    with pytest.raises(AegisError, match=rf"{complaint}.*: .*with aegis-anchor --vlm="):
        AegisPolicy(make_config("aegis", anchor_path=tmp_path / "anchor.safetensors"))


@pytest.mark.parametrize("part", ["vision_tower", "projector"])
def test_an_anchor_of_a_vlm_with_another_tower_or_projector_is_refused(
    make_config: MakeConfig, tiny_vlm_dir: Path, tiny_anchor: Path, tmp_path: Path, part: str
) -> None:
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    with torch.no_grad():
        for parameter in getattr(vlm, part).parameters():
            parameter.mul_(1.1)
    vlm.save_pretrained(tmp_path / "other")
    config = make_config("aegis", vlm=str(tmp_path / "other"))
    with pytest.raises(
        AegisError, match=r"--policy.anchor_path=.*was made from weights .* but the model has"
    ):
        AegisPolicy(config)
    anchor = Anchor.load(tiny_anchor)
    of_decoder = anchor.metadata["fingerprint"].split("-")[0]
    earlier = replace(anchor, metadata={**anchor.metadata, "fingerprint": of_decoder})
    earlier.save(tmp_path / "anchor.safetensors")
    AegisPolicy(make_config("aegis", vlm=config.vlm, anchor_path=tmp_path / "anchor.safetensors"))


def test_a_truncated_anchor_is_refused(make_config: MakeConfig, tiny_anchor: Path, tmp_path: Path) -> None:
    path = tmp_path / "anchor.safetensors"
    path.write_bytes(tiny_anchor.read_bytes()[:-20])
    with pytest.raises(AegisError, match=r"--policy.anchor_path=.*truncated"):
        AegisPolicy(make_config("aegis", anchor_path=path))


def test_what_a_save_that_was_killed_left_is_gone_after_the_next(
    make_policy: MakePolicy, tmp_path: Path
) -> None:
    """safetensors writes to `.tmp` and six letters first; LeRobot's state of the optimizer lies beside the policy."""
    saved, state = tmp_path / "000002" / "pretrained_model", tmp_path / "000002" / "training_state"
    for folder in (saved, state):
        folder.mkdir(parents=True)
        (folder / ".tmpAbC123").write_bytes(b"half")
        (folder / "mine").write_text("precious")
    make_policy().save_pretrained(saved)
    assert not list(tmp_path.rglob(".tmp*")) and len(list(tmp_path.rglob("mine"))) == 2
