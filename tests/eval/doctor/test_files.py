"""What `aegis-doctor` reads in files, and whether they fit each other."""

import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from findings import edited, told
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.policies.factory import make_policy
from random_data import write_random_dataset
from safetensors.torch import save_file

from aegis_eval.commands.anchor import AnchorConfig
from aegis_eval.commands.work.anchor import make_anchor
from aegis_eval.doctor.files import (
    Training,
    check_anchor,
    check_dataset,
    check_policy,
    check_vlm,
    vlm_memory,
)
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.isolation import DEFAULT_SHARE, Anchor, LinearFactors, Spectrum
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.protections import PROTECTIONS
from aegis_policy.support.errors import AegisError


def test_a_checkpoint_is_compared_with_a_dataset(tiny_checkpoint: Path, tiny_dataset: Path, tmp_path: Path):
    assert "error: observation.state has the shape [5] in the dataset and [8] in the checkpoint" in told(
        check_policy(tiny_checkpoint, tiny_dataset)
    )
    features = json.loads((tiny_dataset / "meta" / "info.json").read_text())["features"]
    features["observation.images.top"] = features.pop("observation.images.front")
    other = edited(tiny_dataset, tmp_path / "other", features=features)
    found = told(check_policy(tiny_checkpoint, other))
    assert "the dataset has no observation.images.front" in found and "cameras it does not look at: " in found
    assert """--rename_map='{"observation.images.top": "observation.images.front"}'""" in found
    del features["observation.state"]
    found = told(
        check_policy(tiny_checkpoint, edited(tiny_dataset, tmp_path / "stateless", features=features))
    )
    assert "has no observation.images.front, observation.state" in found and "--rename_map" not in found
    features["observation.state"] = {"dtype": "float32", "shape": [8], "names": None}
    features["observation.images.front"] = features["observation.images.top"]
    features["action"]["shape"] = [4]
    fitting = edited(tiny_dataset, tmp_path / "fitting", features=features)
    assert "ok: the dataset has all that the checkpoint looks at" in told(
        check_policy(tiny_checkpoint, fitting)
    )
    assert "holds no config.json" in told(check_policy(tmp_path, None))


@pytest.mark.parametrize("dtype, refused", [("int64", True), ("float32", False), ("float64", False)])
def test_a_checkpoint_from_before_the_step_that_makes_floats_is_not_trained_on_whole_numbers(
    tiny_checkpoint: Path, tmp_path: Path, dtype: str, refused: bool
):
    cameras = dict.fromkeys(("observation.images.front", "observation.images.wrist"), (96, 96))
    root = write_random_dataset(tmp_path / "data", cameras, state=8, action=4, tasks=["reach"], dtype=dtype)
    assert "older version" not in told(check_dataset(root, tiny_checkpoint))
    old = tmp_path / "old"
    shutil.copytree(tiny_checkpoint, old)
    steps = json.loads((old / "policy_preprocessor.json").read_text())
    steps["steps"] = [each for each in steps["steps"] if each.get("registry_name") != "aegis_vectors"]
    (old / "policy_preprocessor.json").write_text(json.dumps(steps))
    sentence = "was saved by an older version of this package"
    assert (sentence in told(check_dataset(root, old))) is refused
    config = PreTrainedConfig.from_pretrained(old)
    config.pretrained_path = old
    meta = LeRobotDatasetMetadata("local/data", root=root)
    with pytest.raises(AegisError, match=sentence) if refused else nullcontext():
        make_policy(config, ds_meta=meta)


def test_an_incomplete_checkpoint_is_named(tiny_checkpoint: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, copy)
    (copy / "model.safetensors").unlink()
    assert "lacks model.safetensors" in told(check_policy(copy, None))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"type": "act"}))
    assert "is a policy of type act, not aegis" in told(check_policy(copy, None))


@pytest.fixture(scope="module")
def small_anchor(tiny_vlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("anchor") / "anchor.safetensors"
    kinds = ["gaussian", "subspace"]
    make_anchor(AnchorConfig(vlm=str(tiny_vlm_dir), vqa="tabletop", kinds=kinds, samples=4, out=path))
    return path


def test_an_anchor_that_serves_is_told_with_what_it_covers(small_anchor: Path, tiny_vlm_dir: Path):
    made, covers = check_anchor(small_anchor, str(tiny_vlm_dir))
    assert (made.status, covers.status) == ("ok", "ok")
    assert f"of {tiny_vlm_dir}, 4 samples of tabletop" in made.what
    assert re.search(
        r"protects \d.* of a layer's input directions, .*\(least, median and most of \d+ layers", covers.what
    )
    (made,) = check_anchor(small_anchor, str(tiny_vlm_dir), ["--anchor=gaussian"])
    assert made.status == "ok"


@pytest.mark.parametrize(
    ("anchor", "flags", "complaint"),
    [
        ("missing", {}, "There is no anchor at"),
        ("truncated", {}, "truncated or not a safetensors file"),
        ("other file", {}, "is None of format None, not 'aegis-anchor'"),
        ("other vlm", {}, "was made from weights another but the model has"),
        (
            "no moments",
            {"anchor": "gaussian"},
            "does not hold what --policy.anchor=gaussian needs: rebuild it with",
        ),
        ("whole", {"protection": "ewc"}, "holds no Fisher information of single weights"),
        ("whole", {"anchor_share": "0.5", "anchor": "gaussian"}, "anchor_share changes nothing"),
        ("no layers", {}, "says nothing about model"),
        ("other widths", {}, "inputs, and the model's"),
    ],
)
def test_the_doctor_says_of_an_anchor_what_a_training_says(
    anchor: str, flags: dict[str, str], complaint: str, small_anchor: Path, tiny_vlm_dir: Path, tmp_path: Path
):
    path = tmp_path / "anchor.safetensors"
    _prepare(anchor, small_anchor, path)
    given = [f"--{name}={value}" for name, value in flags.items()]

    def doctor() -> str:
        return "\n".join(
            str(each) for each in check_anchor(path, str(tiny_vlm_dir), given) if each.status == "error"
        )

    def training() -> str:
        features = {
            "input_features": {
                "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 32, 32)),
                "observation.state": PolicyFeature(FeatureType.STATE, (3,)),
            },
            "output_features": {"action": PolicyFeature(FeatureType.ACTION, (3,))},
        }
        options = {**flags, **({"anchor_share": 0.5} if "anchor_share" in flags else {})}
        AegisPolicy(AegisConfig(vlm=str(tiny_vlm_dir), anchor_path=path, device="cpu", **features, **options))
        return "nothing"

    told = []
    for each in (doctor, training):
        try:
            told.append(each())
        except AegisError as error:
            told.append(str(error))
    assert told[0] == told[1]
    assert complaint in told[0] and "\n" not in told[0]


def _prepare(what: str, small_anchor: Path, path: Path) -> None:
    """A broken anchor, from a whole one."""
    if what == "missing":
        return
    if what == "other file":
        save_file({"x": torch.zeros(2)}, path)
        return
    shutil.copy(small_anchor, path)
    if what == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
        return
    whole = Anchor.load(small_anchor).part(gaussians=["all"], factors=True)
    narrow = {
        name: LinearFactors(Spectrum(torch.ones(1), torch.eye(7)[:, :1].clone(), torch.tensor(1.0)))
        for name in whole.factors
    }
    changed: dict[str, Any] = {
        "other vlm": {"metadata": {**whole.metadata, "fingerprint": "another"}},
        "no moments": {"gaussians": {}},
        "no layers": {"factors": dict(list(whole.factors.items())[:1])},
        "other widths": {"factors": narrow},
    }
    if what in changed:
        replace(whole, **changed[what]).save(path)


def test_memory_is_counted_from_the_files(tmp_path: Path):
    shapes = {
        "model.language_model.layers.0.mlp.weight": (64, 32),
        "model.vision_tower.layers.0.weight": (16, 16),
    }
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    held = int(4 * DEFAULT_SHARE * 64 * 32)
    needed = 4 * (64 * 32 + 16 * 16) + 12 * 64 * 32 + held
    assert [each.status for each in vlm_memory(str(tmp_path), Training(), needed)] == ["ok"]
    assert [each.status for each in vlm_memory(str(tmp_path), Training("none"), needed - held)] == ["ok"]
    assert [each.status for each in vlm_memory(str(tmp_path), Training("lora"), 4 * (64 * 32 + 16 * 16))] == [
        "ok"
    ]
    (found,) = vlm_memory(str(tmp_path), Training(), needed - 1)
    assert (
        found.status == "error" and "--policy.optimizer_bits=8, --policy.frozen_dtype=bfloat16" in found.mend
    )
    small = Training(frozen_dtype="bfloat16", optimizer_bits=8)
    needed = 2 * 16 * 16 + (4 + 4 + 2) * 64 * 32 + held
    assert [each.status for each in vlm_memory(str(tmp_path), small, needed)] == ["ok"]
    (found,) = vlm_memory(str(tmp_path), small, needed - 1)
    assert found.mend.startswith("--policy.protection=lora take less")
    assert [each.status for each in vlm_memory("google/paligemma2-3b-mix-224", Training(), None)] == [
        "warning"
    ]
    assert list(vlm_memory("embedded", Training(), None)) == []


def test_layers_behind_a_policys_depth_take_neither_gradients_nor_moments(tmp_path: Path):
    weights = {f"model.language_model.layers.{layer}.mlp.weight": torch.zeros(8, 8) for layer in (1, 2, 10)}
    save_file(weights, tmp_path / "model.safetensors")
    for depth, learning in ((None, 3), (11, 3), (10, 2), (2, 1)):
        needed = (16 * learning + 4 * (3 - learning)) * 64
        for spare, status in ((0, "ok"), (-1, "error")):
            (found,) = vlm_memory(str(tmp_path), Training("none", backbone_depth=depth), needed + spare)
            assert found.status == status


def test_every_protection_that_holds_pretrained_weights_is_counted_with_them() -> None:
    holding = {name for name, protection in PROTECTIONS.items() if protection.needs_reference}
    plain = Training("none").bytes(100, 1000)
    assert {name for name in PROTECTIONS if Training(name).bytes(100, 1000) == plain + 4 * 1000} == holding


def test_a_depth_that_a_vlm_does_not_have_is_said_as_a_training_says_it(tiny_vlm_dir: Path):
    said = told(check_vlm(str(tiny_vlm_dir), depth=3))
    assert (
        said.startswith("error: --policy.backbone_depth=3: ") and "has 2 decoder layers; take 1 to 2" in said
    )
    assert told(check_vlm(str(tiny_vlm_dir), depth=2)).startswith("ok")
