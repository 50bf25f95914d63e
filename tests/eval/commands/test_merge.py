import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from lerobot.configs import PreTrainedConfig

from aegis_eval.checkpoints import PolicySource
from aegis_eval.commands.merge import MergeConfig
from aegis_eval.commands.work.merge import interpolated, merge
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import read_json, write_json
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.merging import merged


def _moved(checkpoint: Path, folder: Path) -> Path:
    """A checkpoint after every one of its weights has moved."""
    policy = AegisPolicy.from_pretrained(str(checkpoint))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    shutil.copytree(checkpoint, folder)
    policy.save_pretrained(folder)
    return folder


@pytest.fixture
def trained(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return _moved(tiny_checkpoint, tmp_path / "trained")


def _merged(checkpoint: Path, folder: Path, alpha: float) -> AegisPolicy:
    merge(MergeConfig(PolicySource(str(checkpoint)), alpha=alpha, output_dir=folder))
    return AegisPolicy.from_pretrained(str(folder))


def test_language_weights_go_back_and_the_rest_stays(trained: Path, tiny_checkpoint: Path, tmp_path: Path):
    policy = _merged(trained, tmp_path / "merged", 0.25)
    before, after = (
        dict(AegisPolicy.from_pretrained(str(each)).named_parameters()) for each in (tiny_checkpoint, trained)
    )
    language = {id(p) for p in policy.vlm.decoder_layers.parameters()}
    for name, parameter in policy.named_parameters():
        if id(parameter) in language:
            expected = before[name] + 0.25 * (after[name] - before[name])
            torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-6)
        else:
            assert torch.equal(parameter, after[name]) and not torch.equal(parameter, before[name])
    files = [{path.name for path in each.iterdir()} for each in (trained, tmp_path / "merged")]
    assert files[1] - files[0] == {"merged.json"} and not files[0] - files[1]
    about = {"policy": str(trained), "alpha": 0.25, "pretrained": policy.config.vlm}
    assert read_json(tmp_path / "merged" / "merged.json") == about


def test_an_alpha_of_one_is_the_policy_and_of_zero_the_pretrained_decoder(trained: Path, tmp_path: Path):
    policy = AegisPolicy.from_pretrained(str(trained))
    whole = _merged(trained, tmp_path / "one", 1.0)
    for mine, theirs in zip(whole.parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-8)
    none = _merged(trained, tmp_path / "zero", 0.0)
    pretrained = VLMBackbone.from_pretrained(policy.config.vlm)
    for mine, theirs in zip(
        none.vlm.decoder_layers.parameters(), pretrained.decoder_layers.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_adapters_shrink_with_what_they_stand_beside(tiny_checkpoint: Path, tmp_path: Path):
    config = cast(AegisConfig, PreTrainedConfig.from_pretrained(tiny_checkpoint))
    adapted = AegisPolicy(replace(config, protection="lora", lora_rank=4))
    shutil.copytree(tiny_checkpoint, tmp_path / "adapted")
    adapted.save_pretrained(tmp_path / "adapted")
    trained = _moved(tmp_path / "adapted", tmp_path / "trained")
    policy = _merged(trained, tmp_path / "merged", 0.5)
    after = merged(AegisPolicy.from_pretrained(str(trained)).vlm.model)
    pretrained = VLMBackbone.from_pretrained(policy.config.vlm)
    ours = merged(policy.vlm.model)
    prefix, compared = policy.vlm.family.decoder_layers, 0
    for name, before in pretrained.model.named_parameters():
        if name.startswith(prefix):
            halfway = before + 0.5 * (after.get_parameter(name) - before)
            torch.testing.assert_close(ours.get_parameter(name), halfway, rtol=0, atol=1e-6)
            compared += 1
    assert compared == len(list(pretrained.decoder_layers.parameters()))


def test_weights_of_another_model_are_refused():
    weight = torch.ones(2, 3)
    with pytest.raises(
        AegisError, match=r"a has the shape \[2, 3\] in the policy and \[3, 2\] .*--pretrained"
    ):
        interpolated({"a": weight}, {"a": weight.T}, 0.5)
    with pytest.raises(AegisError, match=r"The policy has no b, which .*--pretrained"):
        interpolated({"a": weight}, {"a": weight, "b": weight}, 0.5)


def test_weights_in_16_bits_are_mixed_in_32_and_stay_as_long():
    before, after = torch.tensor([1.0]), torch.tensor([1.0078125], dtype=torch.bfloat16)
    mixed = interpolated({"a": after}, {"a": before}, 0.75)["a"]
    assert mixed.dtype == torch.bfloat16 and mixed.item() == 1.0078125


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"alpha": 1.5}, "--alpha=1.5 must lie between 0"),
        ({"alpha": -0.1}, "--alpha=-0.1 must lie between 0"),
        ({}, "--policy.path is missing"),
        ({"output_dir": Path("/")}, "--output_dir=/"),
    ],
)
def test_what_cannot_be_merged_is_named(options, sentence, tmp_path: Path):
    with pytest.raises(AegisError, match=sentence):
        merge(MergeConfig(**{"output_dir": tmp_path / "merged", **options}))


def test_a_pretrained_model_that_is_gone_is_asked_for(trained: Path, tmp_path: Path):
    config = read_json(trained / "config.json") | {"vlm": str(tmp_path / "gone")}
    write_json(trained / "config.json", config)
    with pytest.raises(AegisError, match="name a copy with --pretrained"):
        merge(MergeConfig(PolicySource(str(trained)), output_dir=tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()
