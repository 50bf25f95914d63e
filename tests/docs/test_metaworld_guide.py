"""The commands of the Meta-World guide, with fewer episodes and steps."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from aegis_eval.results.rollouts import read_rollouts

pytest.importorskip("metaworld")

_GUIDE = (Path(__file__).parents[2] / "docs" / "metaworld.md").read_text()
_SMALL = {
    "aegis-record": ["--episodes=2", "--env.image_size=64", "--num_workers=1"],
    "lerobot-train": [
        "--steps=2",
        "--save_freq=2",
        "--batch_size=2",
        "--policy.expert_width=16",
        "--policy.expert_depth=2",
        "--policy.expert_heads=2",
    ],
    "lerobot-eval": [
        "--env.image_size=64",
        "--env.episode_length=3",
        "--eval.n_episodes=2",
        "--eval.batch_size=2",
    ],
}


def test_the_table_of_both_skills_is_what_the_raw_json_says() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "results" / "2026-11-27-metaworld"
    names, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.findall(r"^\| \| `none`.*?(?=\n\n)", _GUIDE, re.M | re.S)[0].splitlines()
        if "---" not in line
    )
    for column, name in enumerate(names):
        if not name:
            continue
        run = folder / name.strip("`")
        rolled = read_rollouts(run)
        figures = {task.task.removesuffix("-v3"): _percent(task.rate, task.ci, 0) for task in rolled.tasks}
        figures["all"] = _percent(rolled.overall.rate, rolled.overall.ci, 0)
        kept = json.loads((run / "vqa.json").read_text())["pretrained"]["paired"]
        low, high = kept["ci"]
        lost = "0" if low == high == 0 else _percent(-kept["difference"], (-high, -low), 1)
        figures["answers lost, points"] = lost
        assert {row[0]: row[column] for row in rows} == figures


def _percent(value: float, ci: Sequence[float], digits: int) -> str:
    low, high = (f"{100 * end:.{digits}f}".replace("-", "−") for end in ci)
    return f"{100 * value:.{digits}f} [{low}, {high}]"


@pytest.mark.slow
def test_from_demonstrations_to_success_rates(
    shell: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (block,) = re.findall(r"^```\n(aegis-record.*?)^```", _GUIDE, re.M | re.S)
    commands = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines() if line]
    assert [command[0] for command in commands] == list(_SMALL)
    # What LeRobot evaluates with unless it is told otherwise: worker processes.
    in_processes = [*commands[2], "--eval.use_async_envs=true", "--output_dir=outputs/in_processes"]
    for command in [*commands, in_processes]:
        done = shell(*command, *_SMALL[command[0]], cwd=tmp_path, timeout=2400)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[-3000:]}"
    (here,) = (tmp_path / "outputs" / "eval").rglob("eval_info.json")
    for file in (here, tmp_path / "outputs" / "in_processes" / "eval_info.json"):
        measured = json.loads(file.read_text())
        assert set(measured["per_group"]) == {"reach-v3", "push-v3", "drawer-open-v3"}
        assert measured["overall"]["n_episodes"] == 6
    assert len(list((tmp_path / "outputs" / "eval").rglob("*.mp4"))) >= 3

    _assert_that_lerobots_environment_takes_it(
        tmp_path / "outputs/metaworld/checkpoints/last/pretrained_model"
    )


def _assert_that_lerobots_environment_takes_it(checkpoint: Path) -> None:
    """A few steps in `--env.type=metaworld`, whose pictures are 480 x 480."""
    from lerobot.envs.configs import MetaworldEnv
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.processor import PolicyProcessorPipeline
    from lerobot.scripts.lerobot_eval import rollout

    from aegis_policy.modeling_aegis import AegisPolicy

    policy = AegisPolicy.from_pretrained(checkpoint).eval()
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(checkpoint))
    vector = MetaworldEnv(task="reach-v3").create_envs(1)["reach-v3"][0]
    vector.envs[0]._max_episode_steps = 2
    nothing: PolicyProcessorPipeline = PolicyProcessorPipeline(steps=[])
    result = rollout(vector, policy, nothing, nothing, before, after, seeds=[0])
    vector.close()
    assert result["action"].shape == (1, 2, 4)
