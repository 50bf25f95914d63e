"""Other people's packages beside this one: what they say of our data, their robots, their benchmarks.

`make test-tools` installs them beside the environment, in `.other_packages`.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.envs.utils import preprocess_observation

from aegis_eval.checkpoints import PolicySource, load_policy, load_processors

pytestmark = pytest.mark.tools

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
_PACKAGES = _ROOT / ".other_packages"
_GRIPPER = "3"
_CPU = ("--policy.device=cpu", "--num_workers=0")
_SMALL = ("--policy.expert_width=16", "--policy.expert_depth=2", "--policy.expert_heads=2")
_SO101 = ("--env.image_obs=true", "--env.random_block_position=true", "--env.action_scale=0.025")
_SERVER = _ROOT / "eval" / "harnesses" / "vla_eval_server.py"
Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them on Python's path, here and in every command."""
    if not (_PACKAGES / ".installed").is_file():
        pytest.skip("make test-tools installs them")
    monkeypatch.setenv("PYTHONPATH", f"{_PACKAGES}:{_HERE}", prepend=os.pathsep)
    for folder in (_HERE, _SERVER.parent, _PACKAGES):
        monkeypatch.syspath_prepend(folder)


@pytest.fixture(scope="module")
def recording(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `aegis-record` writes."""
    root = tmp_path_factory.mktemp("recorded") / "data"
    flags = ("--env.type=aegis_tabletop", "--env.task=pick", "--episodes=6", "--repo_id=local/tabletop")
    _done(shell("aegis-record", *flags, f"--root={root}"))
    return root


def _done(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def _program(shell: Shell, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return shell(sys.executable, str(_PACKAGES / "bin" / name), *arguments, fork=False)


def test_lerobot_doctor_finds_no_fault_in_a_recording(shell: Shell, recording: Path) -> None:
    """Its warnings are of a gripper that stays open or closed, and of episodes as short as these are."""
    report = json.loads(_done(_program(shell, "lerobot-doctor", "check", "--json", str(recording))))
    severities = {check["name"]: check["severity"] for check in report["checks"]}
    assert len(severities) > 8 and set(severities.values()) <= {"PASS", "WARN"}
    warned = {name for name, severity in severities.items() if severity == "WARN"}
    assert warned <= {
        "Action Quality",
        "Anomaly Detection",
        "Episode Health",
        "Per-Episode Summary",
        "Training Readiness",
    }


def test_lerobot_lint_finds_no_fault_in_a_recording(shell: Shell, recording: Path, tmp_path: Path) -> None:
    """What it calls errors: a gripper that closes within a frame, and two checks of its own.

    Those compare a state and an action of the same length, and end with an IndexError on 8 and 4 dimensions.
    """
    found = tmp_path / "lint.json"
    _program(shell, "lelint", "check", str(recording), f"--json={found}")
    findings = [each for each in json.loads(found.read_text())["findings"] if each["severity"] != "info"]
    of_its_own = {"ACTION_STATE_DIVERGENCE_CRASHED", "ACTION_RANGE_MISMATCH_CRASHED"}
    faults = [each for each in findings if each["check"] not in of_its_own and each["joint"] != _GRIPPER]
    assert findings and faults == []


def test_a_third_partys_robot_is_learned_and_rolled_out(shell: Shell, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "train"
    _done(shell(sys.executable, str(_HERE / "so101_demonstrations.py"), str(data), "2", "8", fork=False))
    _done(
        shell(
            "lerobot-train",
            "--policy.type=aegis",
            '--policy.instruction="reach the cube"',
            *_CPU,
            *_SMALL,
            "--dataset.repo_id=local/so101",
            f"--dataset.root={data}",
            f"--output_dir={out}",
            "--steps=2",
            "--batch_size=2",
            "--env.type=so101",
            *_SO101,
            "--env_eval_freq=0",
            fork=False,
        )
    )
    checkpoint = out / "checkpoints" / "last" / "pretrained_model"
    rolled = tmp_path / "rollouts"
    _done(
        shell(
            "lerobot-eval",
            f"--policy.path={checkpoint}",
            "--policy.device=cpu",
            "--env.type=so101",
            *_SO101,
            "--env.episode_length=4",
            "--eval.n_episodes=1",
            "--eval.batch_size=1",
            f"--output_dir={rolled}",
            fork=False,
        )
    )
    assert json.loads((rolled / "eval_info.json").read_text())["overall"]["n_episodes"] == 1


@contextmanager
def _server(checkpoint: Path, log: Path) -> Iterator[int]:
    """A model server of vla-eval on a free port, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        _SERVER,
        f"--args.checkpoint={checkpoint}",
        "--args.device=cpu",
        f"--port={port}",
    ]
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                        assert answer.status == 200
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                    time.sleep(0.5)
            yield port
        finally:
            process.kill()


def test_vla_eval_runs_its_episodes_with_a_checkpoint(
    shell: Shell, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with _server(tiny_checkpoint, tmp_path / "server.log") as port:
        benchmark = {
            "benchmark": "vla_eval_tabletop:Tabletop",
            "episodes_per_task": 2,
            "max_steps": 12,
            "params": {"task": "reach", "max_episode_steps": 12},
        }
        config = {
            "server": {"url": f"ws://127.0.0.1:{port}"},
            "output_dir": str(tmp_path / "results"),
            "benchmarks": [benchmark],
        }
        (tmp_path / "eval.yaml").write_text(json.dumps(config))
        _done(_program(shell, "vla-eval", "run", "--no-docker", f"--config={tmp_path / 'eval.yaml'}"))
    (found,) = [json.loads(path.read_text()) for path in (tmp_path / "results").rglob("*.json")]
    episodes = [episode for task in found["tasks"] for episode in task["episodes"]]
    assert len(episodes) == 2 and all(episode["steps"] == 12 for episode in episodes)
    assert {type(episode["metrics"]["success"]) for episode in episodes} == {bool}
    assert not any("failure_reason" in episode for episode in episodes)


def test_what_vla_eval_steps_is_what_the_policy_answers_in_lerobot(tiny_checkpoint: Path) -> None:
    """Each chunk is that of LeRobot's own processors and policy, of the pictures, state and words that were sent."""
    import anyio
    from vla_eval.connection import Connection
    from vla_eval.model_servers.serve import serve_async
    from vla_eval.runners.sync_runner import SyncEpisodeRunner
    from vla_eval_server import AegisModelServer
    from vla_eval_tabletop import Tabletop

    benchmark = Tabletop("reach", 12)
    server = AegisModelServer(str(tiny_checkpoint), device="cpu")

    async def episode() -> None:
        async with anyio.create_task_group() as tasks:
            port = await tasks.start(serve_async, server, "127.0.0.1", 0)
            async with Connection(f"ws://127.0.0.1:{port}") as connection:
                (task,) = benchmark.get_tasks()
                torch.manual_seed(0)
                await SyncEpisodeRunner().run_episode(benchmark, task, connection, max_steps=12)
            tasks.cancel_scope.cancel()

    anyio.run(episode)
    benchmark.env.close()

    policy, folder = load_policy(PolicySource(str(tiny_checkpoint)))
    before, behind = load_processors(policy, folder, "cpu")
    torch.manual_seed(0)
    expected = []
    for sent in benchmark.seen[: len(benchmark.done) : policy.config.n_action_steps]:
        pixels = {camera: picture[None] for camera, picture in sent["images"].items()}
        batch = preprocess_observation({"pixels": pixels, "agent_pos": sent["states"][None]})
        batch["task"] = [sent["task_description"]]
        expected.append(behind(policy.predict_action_chunk(before(batch)))[0].numpy())
    assert len(benchmark.done) == 12 and len(expected) == 2
    np.testing.assert_allclose(np.stack(benchmark.done), np.concatenate(expected)[:12], rtol=0, atol=1e-5)


def test_a_checkpoint_that_is_not_there_ends_the_server_with_a_sentence(shell: Shell, tmp_path: Path) -> None:
    done = shell(sys.executable, str(_SERVER), f"--args.checkpoint={tmp_path / 'nowhere'}", fork=False)
    assert done.returncode == 2
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "--args.checkpoint=" in error and "name the `pretrained_model` folder" in error
    assert "Traceback" not in done.stderr
