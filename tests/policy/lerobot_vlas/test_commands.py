"""From one of LeRobot's policies on disk to one that was protected and is LeRobot's again, by commands alone."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_vlas
from random_data import write_random_dataset, write_random_questions

from aegis_policy.isolation import Anchor
from aegis_policy.support.json_files import read_json

VLMOf = Callable[[str], Path]
Shell = Callable[..., subprocess.CompletedProcess[str]]
ROLLOUT = (
    *("--env.type=aegis_tabletop", "--env.task=reach", "--env.episode_length=6", "--eval.n_episodes=1"),
    *("--eval.batch_size=1", "--eval.use_async_envs=false", "--policy.device=cpu"),
)


@pytest.fixture
def tiny_everywhere(vlm_of: VLMOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process finds types of `tiny_vlas.SIZED` small, and PaliGemma's processor in the hub's cache."""
    site = tmp_path / "site"
    site.mkdir()
    folder = tiny_vlas.shrinking_folder(site, vlm_of("pi0"))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("HF_HOME", str(tiny_vlas.cached_on_the_hub(tmp_path / "hf", vlm_of("pi0"))))


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_everywhere")
@pytest.mark.parametrize("name", tiny_vlas.TYPES)
def test_a_base_is_protected_trained_resumed_rolled_out_and_given_back(
    shell: Shell, name: str, vlm_of: VLMOf, tmp_path: Path
) -> None:
    def run(*command: str) -> str:
        done = shell(*command, fork=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    cameras = dict.fromkeys(("observation.images.front", "observation.images.wrist"), (96, 96))
    data = write_random_dataset(tmp_path / "data", cameras, state=8, action=4, tasks=("reach", "push"))
    questions = write_random_questions(tmp_path / "questions", answer="red")
    base, anchor, out = tmp_path / "base", tmp_path / "anchor.safetensors", tmp_path / "training"
    run(sys.executable, tiny_vlas.__file__, name, str(vlm_of(name)), str(data), str(base))
    run("aegis-anchor", f"--policy.path={base}", f"--vqa={questions}", f"--out={anchor}", "--share=0.3")

    flags = [f"--policy.{key}={value}" for key, value in tiny_vlas.flags_of(name, vlm_of(name)).items()]
    command = ["lerobot-train", f"--policy.type=aegis_{name}", f"--policy.pretrained_path={base}", *flags]
    command += [
        f"--policy.anchor_path={anchor}",
        "--policy.push_to_hub=false",
        "--dataset.repo_id=local/data",
    ]
    command += [f"--dataset.root={data}", f"--output_dir={out}", "--batch_size=2", "--num_workers=0"]
    log = run(*command, "--steps=2", "--log_freq=1")
    assert "subspace_blocked_energy" in log
    checkpoint = out / "checkpoints" / "last" / "pretrained_model"
    config = f"--config_path={checkpoint / 'train_config.json'}"
    run("lerobot-train", config, "--resume=true", "--steps=4")
    assert (out / "checkpoints" / "000004").is_dir()
    assert Anchor.load(checkpoint / "anchor.safetensors").factors.keys() == Anchor.load(anchor).factors.keys()
    refused = shell("lerobot-train", config, "--resume=true", "--policy.protection=none", fork=False)
    assert "protection=none cannot change when a training is resumed" in refused.stderr

    run("lerobot-eval", f"--policy.path={checkpoint}", *ROLLOUT, f"--output_dir={tmp_path / 'rollouts'}")
    plain = tmp_path / "plain"
    run("aegis-export", f"--policy.path={checkpoint}", "--plain", f"--output_dir={plain}")
    assert read_json(plain / "config.json")["type"] == name
    run("lerobot-eval", f"--policy.path={plain}", *ROLLOUT, f"--output_dir={tmp_path / 'plain-rollouts'}")
    infos = [
        read_json(tmp_path / folder / "eval_info.json")["overall"]
        for folder in ("rollouts", "plain-rollouts")
    ]
    assert infos[0]["avg_sum_reward"] == infos[1]["avg_sum_reward"]

    asked = ("--benchmark=custom", f"--vqa.path={questions}", f"--output_dir={tmp_path / 'vqa'}")
    told = run("aegis-vqa", f"--policy.path={checkpoint}", *asked)
    assert "pretrained %" in told, "the base's VLM was asked too"
    drift = tmp_path / "drift.json"
    run("aegis-drift", f"--policy.path={checkpoint}", "--samples=8", f"--output={drift}")
    assert 0 < read_json(drift)["drift"] < 0.5
    half = tmp_path / "half"
    run("aegis-merge", f"--policy.path={checkpoint}", "--alpha=0.5", f"--output_dir={half}")
    halfway = tmp_path / "halfway.json"
    run("aegis-drift", f"--policy.path={half}", "--samples=8", f"--output={halfway}")
    assert 0 < read_json(halfway)["drift"] < read_json(drift)["drift"]
    run("lerobot-eval", f"--policy.path={half}", *ROLLOUT, f"--output_dir={tmp_path / 'merged-rollouts'}")
    run("aegis-export", f"--policy.path={checkpoint}", f"--output_dir={tmp_path / 'vlm'}")
    run("aegis-drift", f"--policy.path={checkpoint}", f"--pretrained={tmp_path / 'vlm'}", f"--output={drift}")
    assert read_json(drift)["drift"] < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_everywhere")
@pytest.mark.parametrize("name", ["aegis", "aegis_pi0"])
def test_relative_actions_are_learned_resumed_and_rolled_out(
    shell: Shell, name: str, tiny_vlm_dir: Path, vlm_of: VLMOf, tmp_path: Path
) -> None:
    def run(*command: str, fails: bool = False) -> str:
        done = shell(*command, fork=False)
        assert bool(done.returncode) is fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    cameras = dict.fromkeys(("observation.images.front", "observation.images.wrist"), (96, 96))
    data = write_random_dataset(tmp_path / "data", cameras, state=8, action=4, tasks=("reach", "push"))
    if name == "aegis":
        flags = {"vlm": str(tiny_vlm_dir), "expert_width": "16", "expert_depth": "2", "expert_heads": "2"}
        flags |= {"chunk_size": "4", "device": "cpu"}
    else:
        flags = tiny_vlas.flags_of("pi0", vlm_of("pi0")) | {"push_to_hub": "false"}
    flags |= {"protection": "none", "use_relative_actions": "true", "relative_exclude_joints": "[]"}
    flags |= {"n_action_steps": "1"}

    def training(root: Path, out: Path) -> list[str]:
        chosen = [f"--policy.{key}={value}" for key, value in flags.items()]
        whole = ["--dataset.repo_id=local/data", f"--dataset.root={root}", f"--output_dir={out}"]
        whole += ["--steps=2", "--batch_size=2", "--num_workers=0"]
        return ["lerobot-train", f"--policy.type={name}", *chosen, *whole]

    refused = run(*training(data, tmp_path / "refused"), fails=True)
    (mend,) = re.findall(r"compute them with (lerobot-edit-dataset .*)", refused)
    out, relative = tmp_path / "training", tmp_path / "relative"
    whole = [f"--root={data}", "--new_repo_id=local/relative", f"--new_root={relative}"]
    run(*shlex.split(mend), "--repo_id=local/data", *whole)
    run(*training(relative, out))
    checkpoint = out / "checkpoints" / "last" / "pretrained_model"
    run("lerobot-train", f"--config_path={checkpoint / 'train_config.json'}", "--resume=true", "--steps=4")
    run("lerobot-eval", f"--policy.path={checkpoint}", *ROLLOUT, f"--output_dir={tmp_path / 'rollouts'}")
    later = ("--policy.n_action_steps=2", f"--output_dir={tmp_path / 'later'}")
    assert "goes with --policy.n_action_steps=1, not 2" in run(
        "lerobot-eval", f"--policy.path={checkpoint}", *ROLLOUT, *later, fails=True
    )
    assert "cameras front, wrist, state 8, action 4" in run(
        "aegis-doctor", f"--policy.path={checkpoint}", f"--dataset.root={relative}"
    )
    assert "are of absolute actions" in run(
        "aegis-doctor", f"--policy.path={checkpoint}", f"--dataset.root={data}", fails=True
    )
