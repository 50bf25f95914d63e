"""Checkpoints of protected policies: what they hold, how they go on, and what becomes of them elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_vlas import TYPES, load, random_batch, train

from aegis_policy.isolation import Anchor
from aegis_policy.lerobot_vlas.inner import backbone_of, inner_model, layers_left_out
from aegis_policy.lerobot_vlas.plain import save_plain
from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import read_json, write_json

MakeVLA = Callable[..., Any]
Saved = Callable[..., tuple[Path, Path]]


def chunk(policy: Any) -> torch.Tensor:
    """What a policy would do, always from the same noise."""
    torch.manual_seed(0)
    return policy.eval().predict_action_chunk(random_batch(3))


@pytest.mark.parametrize("name", TYPES)
def test_a_checkpoint_goes_on_alone(
    make_vla: MakeVLA, save_base_and_anchor: Saved, name: str, tmp_path: Path
) -> None:
    base, anchor = save_base_and_anchor(name)
    policy = make_vla(f"aegis_{name}", pretrained_path=base, anchor_path=anchor, anchor_share=0.2)
    train(policy, 2)
    policy.save_pretrained(tmp_path / "saved")
    anchor.unlink()
    again = load(tmp_path / "saved")
    assert type(again) is type(policy)
    torch.testing.assert_close(chunk(again), chunk(policy), rtol=1e-5, atol=1e-6)
    assert again.config.base == str(base)
    assert again.config.anchor_info["path"] == str(anchor)
    projector = train(again, 1).projectors[0]
    for (_, here), (_, there) in zip(projector.blocks, policy.protection.projectors[0].blocks, strict=True):
        assert torch.equal(here, there)
    assert set(Anchor.load(tmp_path / "saved" / "anchor.safetensors").factors)


@pytest.mark.parametrize("protection", ["none", "lora"])
@pytest.mark.parametrize("name", TYPES)
def test_lerobot_runs_the_plain_policy_as_it_was(
    make_vla: MakeVLA, name: str, protection: str, tmp_path: Path
) -> None:
    policy = make_vla(f"aegis_{name}", protection=protection)
    train(policy, 2, lr=1e-3)
    policy.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert torch.equal(chunk(again), chunk(policy))
    (tmp_path / "plain").mkdir()
    save_plain(again, tmp_path / "saved", tmp_path / "plain")
    assert read_json(tmp_path / "plain" / "config.json")["type"] == name
    theirs = load(tmp_path / "plain")
    assert theirs.name == name
    torch.testing.assert_close(chunk(theirs), chunk(policy), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TYPES)
def test_the_vlm_inside_reads_as_it_does_there(make_vla: MakeVLA, name: str) -> None:
    policy = make_vla(name).eval()
    vlm = backbone_of(policy, name)
    images = [torch.randint(0, 255, (32, 32, 3), dtype=torch.uint8).numpy()]
    inputs = vlm.question_inputs(images, ["what colour is the cube"])
    with torch.no_grad():
        ours = vlm.model(**inputs).logits
        theirs = inner_model(policy)(**inputs).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert isinstance(vlm.answer(images, ["what colour is the cube"])[0], str)
    assert layers_left_out(policy) == 0


def test_layers_that_smolvla_leaves_out_are_counted(make_vla: MakeVLA) -> None:
    policy = make_vla("smolvla", num_vlm_layers=1)
    assert layers_left_out(policy) == 1
    assert backbone_of(policy, "cut").num_layers == 1


def test_another_protection_does_not_go_on_from_adapters(make_vla: MakeVLA, tmp_path: Path) -> None:
    make_vla("aegis_pi05", protection="lora").save_pretrained(tmp_path / "saved")
    with pytest.raises(AegisError, match="lora has adapters, for which none has no place"):
        make_vla("aegis_pi05", pretrained_path=tmp_path / "saved", protection="none")
    config = read_json(tmp_path / "saved" / "config.json")
    write_json(tmp_path / "saved" / "config.json", {**config, "type": "act"})
    with pytest.raises(AegisError, match="is a policy of type act"):
        make_vla("aegis_pi05", pretrained_path=tmp_path / "saved", protection="lora")
