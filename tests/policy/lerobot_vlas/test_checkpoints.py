"""Checkpoints of protected policies: what they hold, how they go on, and what becomes of them elsewhere."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from findings import told
from lerobot.policies import make_pre_post_processors
from lerobot.utils.constants import OBS_LANGUAGE_TOKENS
from safetensors.torch import load_file, save_file
from tiny_vlas import TYPES, load, random_batch, train
from transformers import AutoTokenizer

from aegis_eval.checkpoints import PolicySource, load_policy_vlm, load_vla
from aegis_eval.commands.export import ExportConfig
from aegis_eval.commands.work.export import export
from aegis_eval.doctor.files import check_dataset, check_policy
from aegis_policy.anchors.building import build_anchor
from aegis_policy.isolation import Anchor
from aegis_policy.lerobot_vlas.inner import backbone_of, inner_model, layers_left_out
from aegis_policy.lerobot_vlas.plain import save_plain
from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import read_json, write_json
from aegis_policy.vqa.examples import VQAExample

MakeVLA = Callable[..., Any]
Saved = Callable[..., tuple[Path, Path]]


def chunk(policy: Any) -> torch.Tensor:
    """What a policy would do, always from the same noise."""
    torch.manual_seed(0)
    return policy.eval().predict_action_chunk(random_batch(policy, 3))


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


def test_a_plain_policy_has_the_tokenizer_that_lerobot_may_keep_beside_one(
    make_vla: MakeVLA, tmp_path: Path
) -> None:
    policy = make_vla("aegis_smolvla", protection="none")
    saved, plain = tmp_path / "saved", tmp_path / "plain"
    policy.save_pretrained(saved)
    processors = make_pre_post_processors(policy.config)
    for each in processors:
        each.save_pretrained(saved)
    plain.mkdir()
    save_plain(policy, saved, plain)
    again, _ = make_pre_post_processors(policy.config, pretrained_path=plain)
    sample = {"observation.state": torch.ones(1, 5), "task": ["reach"]}
    tokens = [each(dict(sample))[OBS_LANGUAGE_TOKENS] for each in (processors[0], again)]
    assert torch.equal(*tokens)


def test_a_checkpoint_is_read_without_the_weights_of_the_vlm_it_was_made_from(
    make_vla: MakeVLA, vlm_of: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(vlm_of("eo1"), tmp_path / "qwen")
    policy = make_vla("aegis_eo1", protection="none", vlm_base=tmp_path / "qwen")
    policy.save_pretrained(tmp_path / "saved")
    (tmp_path / "qwen" / "model.safetensors").unlink()
    again, _ = load_vla(str(tmp_path / "saved"))
    torch.testing.assert_close(chunk(again), chunk(policy))


def test_what_adapters_do_beside_16_bits_is_not_lost_in_a_plain_policy(
    make_vla: MakeVLA, tmp_path: Path
) -> None:
    policy = make_vla("aegis_pi05", protection="lora", dtype="bfloat16")
    train(policy, 5)
    policy.save_pretrained(tmp_path / "saved")
    (tmp_path / "plain").mkdir()
    save_plain(load_vla(str(tmp_path / "saved"))[0], tmp_path / "saved", tmp_path / "plain")
    theirs = dict(inner_model(load(tmp_path / "plain")).named_parameters())
    layers = {key: layer for key, layer in inner_model(policy).named_modules() if hasattr(layer, "lora_A")}
    assert layers
    for key, layer in layers.items():
        begun = layer.base_layer.weight.float()
        added = layer.get_delta_weight("default").float()
        torch.testing.assert_close(theirs[f"{key}.weight"] - begun, added, rtol=1e-2, atol=1e-6)


def test_adapters_may_come_in_a_new_training(make_vla: MakeVLA, tmp_path: Path) -> None:
    make_vla("aegis_pi05", protection="none").save_pretrained(tmp_path / "saved")
    policy = make_vla("aegis_pi05", pretrained_path=tmp_path / "saved", protection="lora")
    train(policy, 2)
    assert any("lora_A" in key and p.any() for key, p in policy.named_parameters())


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


def test_a_smolvla_without_its_last_layers_is_not_asked(make_vla: MakeVLA, tmp_path: Path) -> None:
    policy = make_vla("smolvla", num_vlm_layers=1)
    assert layers_left_out(policy) == 1
    vlm = backbone_of(policy, "cut")
    assert vlm.num_layers == 1 and not vlm.whole
    picture = np.zeros((32, 32, 3), np.uint8)
    anchor = build_anchor(
        vlm, [VQAExample(picture, "what")], kinds=["subspace"], source="black", batch_size=1
    )
    assert anchor.factors and all(each.gradient_K is None for each in anchor.factors.values())
    policy.save_pretrained(tmp_path / "cut")
    source = PolicySource(str(tmp_path / "cut"))
    assert not load_policy_vlm(source)[0].whole
    with pytest.raises(AegisError, match="has left out the last decoder layers of its VLM"):
        load_policy_vlm(source, to_answer=True)


@pytest.mark.parametrize("name", ["pi0", "pi05"])
def test_relative_actions_are_lerobots(
    make_vla: MakeVLA,
    name: str,
    relative_dataset: Path,
    tiny_dataset: Path,
    tiny_vlm_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_the_hub = AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda _, **options: of_the_hub(tiny_vlm_dir, **options)
    )
    flags = {"use_relative_actions": "true", "n_action_steps": 1}
    policy = make_vla(f"aegis_{name}", relative_dataset, **flags, protection="none")
    assert policy.config.action_feature_names == ["a.pos", "b.pos", "gripper.pos"]
    policy.config.normalization_mapping = {"STATE": "IDENTITY", "ACTION": "IDENTITY", "VISUAL": "IDENTITY"}
    pair = make_pre_post_processors(policy.config, dataset_stats={})
    for each in (policy, *pair):
        each.save_pretrained(tmp_path)
    reloaded = make_pre_post_processors(policy.config, pretrained_path=str(tmp_path))
    state, actions = torch.ones(1, 5), torch.arange(12.0).view(1, 4, 3)
    for before, after in (pair, reloaded):
        learned = before({"observation.state": state, "action": actions, "task": ["reach"]})["action"]
        torch.testing.assert_close(learned, actions - torch.tensor([1.0, 1.0, 0.0]))
        torch.testing.assert_close(after(learned), actions)
    base = tmp_path / "base"
    make_vla(name, relative_dataset, **flags).save_pretrained(base)
    assert "cameras front, wrist" in told(check_dataset(relative_dataset, base, ["--n_action_steps=1"]))
    assert "are of absolute actions" in told(
        check_dataset(tiny_dataset, base, ["--relative_exclude_joints=[]"])
    )


def test_relative_actions_that_would_go_wrong_are_refused(
    make_vla: MakeVLA, relative_dataset: Path, tmp_path: Path
) -> None:
    relative: dict[str, Any] = {"protection": "none", "use_relative_actions": "true"}
    with pytest.raises(AegisError, match=r"goes with --policy\.n_action_steps=1, not 4"):
        make_vla("aegis_pi0", relative_dataset, **relative)
    relative["n_action_steps"] = 1
    with pytest.raises(AegisError, match=r"does not say what the dimensions of action are called"):
        make_vla("aegis_pi0", **relative)
    with pytest.raises(AegisError, match=r"are of absolute actions.* --operation\.chunk_size=4"):
        make_vla("aegis_pi0", **relative, relative_exclude_joints=[])
    base, folder = tmp_path / "base", tmp_path / "checkpoint"
    make_vla("pi0", relative_dataset, use_relative_actions="true").save_pretrained(base)
    with pytest.raises(
        AegisError, match=r"names a policy of relative actions.*--policy\.use_relative_actions=true"
    ):
        make_vla("aegis_pi0", protection="none", pretrained_path=base)
    make_vla("aegis_pi0", relative_dataset, **relative, pretrained_path=base).save_pretrained(folder)
    with pytest.raises(AegisError, match=r"use_relative_actions=false does not fit the weights"):
        make_vla("aegis_pi0", protection="none", pretrained_path=folder)


@pytest.mark.parametrize("name", TYPES)
def test_the_doctor_says_what_a_training_would_find(
    make_vla: MakeVLA, save_base_and_anchor: Saved, name: str, tiny_dataset: Path, tmp_path: Path
) -> None:
    base, anchor = save_base_and_anchor(name)
    assert f"ok: {base}: a {name} without a protection" in told(check_policy(base, None))
    policy = make_vla(f"aegis_{name}", pretrained_path=base, anchor_path=anchor)
    train(policy, 1)
    folder = tmp_path / "checkpoint" / "pretrained_model"
    policy.save_pretrained(folder)
    found = told(check_policy(folder.parent, tiny_dataset))
    assert f"ok: {folder}: aegis of the VLM in a aegis_{name}" in found and "error" not in found
    assert "The subspace anchor protects" in found
    assert "cameras front, wrist, state 5, action 3" in told(check_dataset(tiny_dataset, folder))
    with pytest.raises(AegisError, match=rf"instruction is no flag of a policy of type aegis_{name}"):
        told(check_dataset(tiny_dataset, folder, ["--instruction=reach"]))


def test_the_doctor_finds_what_is_broken_in_a_checkpoint(
    make_vla: MakeVLA, save_base_and_anchor: Saved, tmp_path: Path
) -> None:
    base, anchor = save_base_and_anchor("pi05")
    policy = make_vla("aegis_pi05", pretrained_path=base, anchor_path=anchor)
    train(policy, 1)
    folder = tmp_path / "pretrained_model"
    policy.save_pretrained(folder)
    write_json(folder / "policy_preprocessor.json", {"name": "policy_preprocessor", "steps": []})
    assert f"error: {folder / 'policy_preprocessor.json'} has no step" in told(check_policy(folder, None))
    (folder / "policy_preprocessor.json").unlink()
    weights = load_file(folder / "model.safetensors")
    first = next(iter(weights))
    nowhere = {key: each * torch.nan if key == first else each for key, each in weights.items()}
    save_file(nowhere, folder / "model.safetensors")
    found = told(check_policy(folder, None))
    assert "error: " in found and "weights that are not finite: " in found and "ok: " not in found
    save_file({key: each for key, each in weights.items() if key != first}, folder / "model.safetensors")
    with pytest.raises(AegisError, match=r"did not give .* of this aegis_"):
        told(check_policy(folder, None))
    save_file(weights, folder / "model.safetensors")
    (folder / "anchor.safetensors").unlink()
    with pytest.raises(AegisError, match=r"anchor\.safetensors"):
        told(check_policy(folder, None))


def test_a_policy_that_lerobot_does_not_have_has_no_plain_type(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(AegisError, match=r"is none of aegis_smolvla, aegis_pi0, .*, which --plain is for"):
        export(ExportConfig(PolicySource(str(tiny_checkpoint)), tmp_path / "out", plain=True))
    assert not (tmp_path / "out").exists()


def test_another_protection_does_not_go_on_from_adapters(make_vla: MakeVLA, tmp_path: Path) -> None:
    make_vla("aegis_pi05", protection="lora").save_pretrained(tmp_path / "saved")
    with pytest.raises(
        AegisError, match=r"lora has adapters, for which none has no place.*--plain and begin"
    ):
        make_vla("aegis_pi05", pretrained_path=tmp_path / "saved", protection="none")
    config = read_json(tmp_path / "saved" / "config.json")
    write_json(tmp_path / "saved" / "config.json", {**config, "type": "act"})
    with pytest.raises(AegisError, match="is a policy of type act"):
        make_vla("aegis_pi05", pretrained_path=tmp_path / "saved", protection="lora")
