"""LeRobot's own commands, unmodified, from a shell: train, resume, fine-tune, and what wrong flags get."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lerobot.configs.train import TrainPipelineConfig
from safetensors.torch import load_file
from training_steps import MakeBatch

from aegis_policy.modeling_aegis import AegisPolicy

Shell = Callable[..., subprocess.CompletedProcess[str]]


def needs(*fields: str) -> pytest.MarkDecorator:
    """For a LeRobot whose training has these parts of a configuration."""
    missing = set(fields) - TrainPipelineConfig.__dataclass_fields__.keys()
    return pytest.mark.skipif(bool(missing), reason=f"this LeRobot has no {', '.join(missing)}")


@pytest.fixture(scope="module")
def run(shell: Shell, fresh_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a protected training of four steps."""
    output = tmp_path_factory.mktemp("train") / "run"
    flags = [*fresh_flags, f"--output_dir={output}", "--steps=4", "--save_freq=2"]
    done = shell("lerobot-train", *flags, fork=False)
    assert done.returncode == 0, done.stderr[-3000:]
    log = done.stdout + done.stderr
    for figure in (
        "flow_loss:",
        "gaussian_anchor_distance:",
        "gaussian_conflict_fraction:",
        "gaussian_energy_shed:",
        "gaussian_unprojected_layers:",
    ):
        assert figure in log
    assert re.search(r"Effective batch size: 4 x 1\b.* = 4", log)
    return output


def _anchor(checkpoint: Path) -> torch.Tensor:
    return load_file(checkpoint / "pretrained_model" / "anchor.safetensors")["gaussian/all/mean"]


def test_training_writes_checkpoints_that_load_and_act(run: Path, make_batch: MakeBatch) -> None:
    saved = sorted(path.name for path in (run / "checkpoints").iterdir() if not path.is_symlink())
    assert saved == ["000002", "000004"]
    policy = AegisPolicy.from_pretrained(run / "checkpoints" / "last" / "pretrained_model")
    assert policy.select_action(make_batch()).isfinite().all()
    folder = run / "checkpoints" / "last" / "pretrained_model"
    data = json.loads((folder / "train_config.json").read_text())["dataset"]["repo_id"]
    assert f"| demonstrations | {data} |" in (folder / "README.md").read_text()


def test_resuming_goes_on_where_it_stopped_with_the_same_anchor(run: Path, shell: Shell) -> None:
    checkpoint = run / "checkpoints" / "000004"
    config = checkpoint / "pretrained_model" / "train_config.json"
    done = shell("lerobot-train", f"--config_path={config}", "--resume=true", "--steps=6")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step:5 " in done.stdout + done.stderr and "step:4 " not in done.stdout + done.stderr
    resumed = run / "checkpoints" / "000006"
    assert json.loads((resumed / "training_state" / "training_step.json").read_text())["step"] == 6
    assert torch.equal(_anchor(resumed), _anchor(checkpoint)) and _anchor(resumed).any()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ["--policy.optimizer_lr=1e-7"],
            "--policy.optimizer_lr=1e-07 changes nothing when a training is resumed",
        ),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                (["--optimizer.lr=1e-7"], "--optimizer.lr=1e-07 changes nothing when a training is resumed"),
                (
                    ["--policy.protection=none"],
                    "--policy.protection=none cannot change when a training is resumed",
                ),
                (["--policy.train_projector=true"], "--policy.train_projector=true cannot change when"),
                (["--policy.chunk_size=8"], "--policy.chunk_size=8 does not fit the weights"),
            )
        ),
    ],
)
def test_what_cannot_change_when_a_training_is_resumed_is_named_by_its_flag(
    run: Path, shell: Shell, flags: list[str], sentence: str
) -> None:
    config = run / "checkpoints" / "000002" / "pretrained_model" / "train_config.json"
    done = shell("lerobot-train", f"--config_path={config}", "--resume=true", *flags)
    assert done.returncode != 0
    last = done.stderr.rstrip().splitlines()[-1]
    assert sentence in last and len(last) < 500


def test_a_copied_checkpoint_is_fine_tuned_without_its_vlm(
    run: Path, shell: Shell, tiny_flags: list[str], tiny_vlm_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(run / "checkpoints" / "000004" / "pretrained_model", tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert config["vlm"] == str(tiny_vlm_dir) and config["anchor_path"] is None
    for name in ("config.json", "train_config.json"):
        text = (tmp_path / "copy" / name).read_text()
        (tmp_path / "copy" / name).write_text(text.replace(str(tiny_vlm_dir), "/gone"))
    done = shell(
        "lerobot-train",
        *tiny_flags,
        f"--policy.path={tmp_path / 'copy'}",
        f"--output_dir={tmp_path / 'further'}",
        "--steps=2",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    further = tmp_path / "further" / "checkpoints" / "000002"
    assert torch.equal(_anchor(further), _anchor(run / "checkpoints" / "000004"))


@needs("ema", "accelerator")
def test_averaged_weights_are_a_checkpoint_too_while_gradients_are_accumulated(
    shell: Shell, fresh_flags: list[str], make_batch: MakeBatch, tmp_path: Path
) -> None:
    done = shell(
        "lerobot-train",
        *fresh_flags,
        f"--output_dir={tmp_path / 'run'}",
        "--ema.enable=true",
        "--ema.decay=0.5",
        "--accelerator.gradient_accumulation.steps=2",
        "--policy.scheduler_warmup_steps=0",
        "--steps=4",
        "--save_freq=2",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"Effective batch size: 4 x 1\b.* x 2 .* = 8", done.stdout + done.stderr)
    first, last = (tmp_path / "run" / "checkpoints" / step for step in ("000002", "000004"))
    before, live, averaged = (
        AegisPolicy.from_pretrained(folder)
        for folder in (
            first / "pretrained_model_ema",
            last / "pretrained_model",
            last / "pretrained_model_ema",
        )
    )
    assert averaged.select_action(make_batch()).isfinite().all()
    moved = 0
    for old, new, mean in zip(*(policy.parameters() for policy in (before, live, averaged)), strict=True):
        torch.testing.assert_close(mean, (old + new) / 2)
        moved += not torch.equal(old, new)
    assert 0 < moved < len(list(live.parameters())), "frozen weights stay"
    folders = [last / "pretrained_model", last / "pretrained_model_ema"]
    names = [{path.relative_to(folder) for path in folder.rglob("*")} for folder in folders]
    assert names[0] == names[1]
    assert len({(folder / "README.md").read_text() for folder in folders}) == 1, "the same anchor and steps"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--policy.protection=prayer"], "choose one of none, freeze, stop_gradient, lora"),
        (["--policy.anchor_path=/nowhere.safetensors"], "There is no anchor at /nowhere.safetensors"),
        (["--policy.vlm=/nowhere"], "--policy.vlm=/nowhere is not a transformers model"),
        (
            [
                "--use_policy_training_preset=false",
                "--optimizer.type=adamw",
                "--scheduler.type=constant_with_warmup",
            ],
            "use --optimizer.type=aegis_adamw",
        ),
    ],
)
def test_wrong_flags_end_with_one_clear_sentence(
    shell: Shell, fresh_flags: list[str], tmp_path: Path, flags: list[str], sentence: str
) -> None:
    done = shell("lerobot-train", *fresh_flags, *flags, f"--output_dir={tmp_path / 'run'}", "--steps=2")
    assert done.returncode != 0
    assert sentence in done.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.slow
def test_two_processes_train_through_torchrun(shell: Shell, fresh_flags: list[str], tmp_path: Path) -> None:
    launcher = str(Path(sys.executable).with_name("lerobot-train"))
    done = shell(
        "torchrun",
        "--nproc_per_node=2",
        "--standalone",
        launcher,
        *fresh_flags,
        f"--output_dir={tmp_path / 'run'}",
        "--steps=2",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"Effective batch size: 4 x 2\b.* = 8", done.stdout + done.stderr)
    assert (tmp_path / "run" / "checkpoints" / "000002" / "pretrained_model" / "vlm").is_dir()
