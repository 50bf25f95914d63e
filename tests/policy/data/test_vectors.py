"""State and actions of any dtype and length reach the policy as floating vectors, in training and from a checkpoint."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_policy, make_pre_post_processors
from random_data import write_random_dataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.processor_aegis import make_aegis_pre_post_processors
from aegis_policy.support.errors import AegisError

FRONT = {"observation.images.front": (32, 32)}
DTYPES = ("int64", "int32", "int16", "uint8", "bool", "float16", "float64")


@pytest.mark.parametrize("chunk", [4, 1])
@pytest.mark.parametrize("length", [3, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dataset_of_any_dtype_and_length_is_normalised_by_its_own_deviations(
    make_config: Callable[..., AegisConfig], tmp_path: Path, dtype: str, length: int, chunk: int
) -> None:
    config, statistics, batch = _as_lerobot_gives_it(make_config, dtype, length, chunk)
    before, after = make_aegis_pre_post_processors(config, statistics)
    for each in (before, after):
        each.save_pretrained(tmp_path)
    again, _ = make_pre_post_processors(config, pretrained_path=str(tmp_path))
    for processor in (before, again, before):
        done = processor(
            {key: each.clone() if isinstance(each, Tensor) else each for key, each in batch.items()}
        )
        for key, shape in (("observation.state", (5, length)), ("action", (5, chunk, length))):
            expected = (batch[key].double().reshape(shape) - 0.75) / 0.26
            torch.testing.assert_close(done[key], expected.float())
    assert after(done["action"][:, 0]).shape == (5, length)
    torch.testing.assert_close(
        after(done["action"][:, 0]),
        batch["action"].float().reshape(5, chunk, length)[:, 0],
        rtol=1e-3,
        atol=1e-3,
    )


def _as_lerobot_gives_it(
    make_config: Callable[..., AegisConfig], dtype: str, length: int, chunk: int
) -> tuple[AegisConfig, dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Vectors of length 1 come without their last axis."""
    config = make_config(
        "none",
        chunk_size=chunk,
        n_action_steps=1,
        input_features={
            "observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 32, 32)),
            "observation.state": PolicyFeature(FeatureType.STATE, (length,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (length,))},
    )
    own = {"mean": torch.full((length,), 0.75), "std": torch.full((length,), 0.26)}
    last = () if length == 1 else (length,)
    torch.manual_seed(0)
    batch = {
        "observation.images.front": torch.rand(5, 3, 32, 32),
        "observation.state": torch.randint(0, 2, (5, *last)).to(getattr(torch, dtype)),
        "action": torch.randint(0, 2, (5, chunk, *last)).to(getattr(torch, dtype)),
        "action_is_pad": torch.zeros(5, chunk, dtype=torch.bool),
        "task": ["reach"] * 5,
    }
    return config, {"observation.state": own, "action": own}, batch


@pytest.mark.parametrize("given, shape", [((), (1, 1)), ((1,), (1, 1)), ((7,), (7, 1)), ((7, 1), (7, 1))])
def test_a_state_of_length_one_is_a_vector_alone_and_in_a_batch(
    make_config: Callable[..., AegisConfig], given: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    config, statistics, _ = _as_lerobot_gives_it(make_config, "float32", 1, 4)
    before, _ = make_aegis_pre_post_processors(config, statistics)
    done = before({"observation.state": torch.ones(given), "task": "reach"})
    assert done["observation.state"].shape == shape


@pytest.mark.parametrize(
    "mapping, bounds",
    [
        ("MEAN_STD", {"mean": torch.full((3,), 57.3000001), "std": torch.tensor([1.0, 0.0, 2.0])}),
        ("QUANTILES", {"q01": torch.full((3,), 57.3), "q99": torch.tensor([58.0, 57.3, 59.0])}),
        ("MIN_MAX", {}),
    ],
)
@pytest.mark.parametrize("begun", ["new", "fine-tuned", "loaded"])
def test_a_robot_that_holds_an_unmoved_joint_a_little_differently_is_no_outlier(
    make_config: Callable[..., AegisConfig],
    tmp_path: Path,
    mapping: str,
    bounds: dict[str, Tensor],
    begun: str,
) -> None:
    config, others, batch = _as_lerobot_gives_it(make_config, "float32", 3, 4)
    own = {"min": torch.full((3,), 57.3), "max": torch.tensor([58.0, 57.3, 59.0]), **bounds}
    statistics = {"observation.state": own, "action": own}
    modes = {"STATE": mapping, "ACTION": mapping}
    config.normalization_mapping = {} if begun == "fine-tuned" else modes
    first = others if begun == "fine-tuned" else statistics
    policy = AegisPolicy(config, dataset_stats=first)
    before, after = make_pre_post_processors(config, dataset_stats=first)
    if begun != "new":
        for each in (policy, before, after):
            each.save_pretrained(tmp_path)
        config = AegisConfig.from_pretrained(tmp_path)
        config.normalization_mapping = modes
        options: dict[str, Any] = {}
        changed: dict[str, Any] = {}
        if begun == "fine-tuned":  # as lerobot-train does
            options["dataset_stats"] = changed["stats"] = statistics
            changed["norm_map"] = {FeatureType(key): NormalizationMode(mode) for key, mode in modes.items()}
        policy = AegisPolicy.from_pretrained(tmp_path, config=config, **options)
        before, after = make_pre_post_processors(
            config,
            pretrained_path=str(tmp_path),
            preprocessor_overrides={"normalizer_processor": changed},
            postprocessor_overrides={"unnormalizer_processor": changed},
        )
    losses = []
    for held in (57.3, 57.31):
        near = torch.full((5, 4, 3), 57.5)
        near[..., 1] = held
        torch.manual_seed(0)
        done = before({**batch, "observation.state": near[:, 0], "action": near})
        losses.append(policy.eval()(done)[0].item())
    assert losses[0] == losses[1] < 20
    torch.testing.assert_close(after(torch.rand(1, 3))[0, 1], torch.tensor(57.3), rtol=0, atol=1e-5)


def test_an_edited_checkpoint_names_no_dimension_that_a_vector_lacks(
    make_config: Callable[..., AegisConfig],
) -> None:
    config = make_config("none", constant_dimensions={"action": [7]})
    with pytest.raises(AegisError, match=r"constant_dimensions name 7 of action, which has 3"):
        config.validate_features()


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64, torch.bfloat16])
def test_a_policy_draws_floating_noise_whatever_it_is_given(
    make_policy: Callable[..., AegisPolicy], make_batch: Callable[..., dict[str, Any]], dtype: torch.dtype
) -> None:
    policy = make_policy("none").eval()
    batch = make_batch()
    for key in ("action", "observation.state"):
        batch[key] = (batch[key] > 0).to(dtype)
    plain = {**batch, **{key: batch[key].float() for key in ("action", "observation.state")}}
    losses, chunks = [], []
    for each in (batch, plain):
        torch.manual_seed(1)
        losses.append(policy(each)[0])
        chunks.append(policy.predict_action_chunk(each))
    assert torch.equal(*losses) and torch.equal(*chunks)
    assert chunks[0].dtype == torch.float32


@pytest.mark.parametrize("dtype, length", [("int64", 3), ("float32", 1)])
def test_a_dataset_on_disk_is_trained_on(
    make_config: Callable[..., AegisConfig], tmp_path: Path, dtype: str, length: int
) -> None:
    root = write_random_dataset(
        tmp_path / "data", FRONT, state=length, action=length, tasks=["reach", "push"], dtype=dtype
    )
    dataset = LeRobotDataset("local/data", root=root)
    config = make_config("none", input_features=None, output_features=None)
    policy = make_policy(config, ds_meta=dataset.meta)
    before, after = make_pre_post_processors(config, dataset_stats=dataset.meta.stats)
    times = resolve_delta_timestamps(config, dataset.meta)
    items = LeRobotDataset("local/data", root=root, delta_timestamps=times)
    batch = before(next(iter(DataLoader(items, batch_size=6))))
    assert policy(batch)[0] < 10
    assert after(policy.select_action(batch)).shape == (6, length)


def test_a_checkpoint_whose_deviations_were_rounded_to_whole_numbers_is_refused(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(tiny_checkpoint, old)
    (file,) = old.glob("policy_preprocessor_step_*_normalizer_processor.safetensors")
    save_file({name: each.long() for name, each in load_file(file).items()}, file)
    with pytest.raises(AegisError, match=r"holds .*\.std in whole numbers.*train the policy anew"):
        AegisPolicy.from_pretrained(old)


@pytest.mark.slow
@pytest.mark.parametrize("dtype, length", [("int64", 3), ("bool", 1)])
def test_it_is_trained_on_resumed_and_measured_by_the_commands(
    shell: Callable[..., subprocess.CompletedProcess[str]],
    fresh_flags: list[str],
    tmp_path: Path,
    dtype: str,
    length: int,
) -> None:
    root = write_random_dataset(
        tmp_path / "data", FRONT, state=length, action=length, tasks=["reach", "push"], dtype=dtype
    )
    flags = [each for each in fresh_flags if not each.startswith("--dataset")]
    flags += ["--dataset.repo_id=local/data", f"--dataset.root={root}", f"--output_dir={tmp_path / 'run'}"]
    done = shell("lerobot-train", *flags, "--steps=2", "--save_freq=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    checkpoint = tmp_path / "run" / "checkpoints" / "last" / "pretrained_model"
    done = shell(
        "lerobot-train",
        f"--config_path={checkpoint / 'train_config.json'}",
        "--resume=true",
        "--steps=4",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    done = shell(
        "aegis-action-error",
        f"--policy.path={checkpoint}",
        f"--dataset.root={root}",
        "--frames=4",
        "--device=cpu",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "outputs" / "action_error.json").read_text())["action_error"] < 10
