"""`aegis-swap`: who listens is told from who does not."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aegis_envs.tabletop.env import TabletopEnv
from aegis_envs.tabletop.episodes import look_alike
from aegis_envs.tabletop.expert import expert_action
from aegis_eval.checkpoints import PolicySource
from aegis_eval.commands.swap import SwapConfig
from aegis_eval.commands.work.swap import probe_controller, swap
from aegis_eval.controllers import PolicyController
from aegis_policy.support.errors import AegisError


def obedient(envs, observations, first):
    return np.stack([expert_action(env.sim, env.episode) for env in envs])


def deaf():
    """Serves the object the scene's seed first asked for, whatever is asked now."""
    first_target: dict[str, str] = {}

    def act(envs, observations, first):
        actions = []
        for env in envs:
            scene = json.dumps(env.episode.scene.to_dict())
            target = first_target.setdefault(scene, env.episode.target)
            actions.append(expert_action(env.sim, replace(env.episode, target=target)))
        return np.stack(actions)

    return act


def test_swapping_the_instruction_tells_who_listens_from_who_does_not():
    heard = probe_controller(obedient, 3, batch_size=4)
    assert (heard.followed, heard.changed) == (6, 3)
    ignored = probe_controller(deaf(), 3, batch_size=4)
    assert (ignored.followed, ignored.changed) == (3, 0)
    assert ignored.followed_ci[0] < 0.5 < ignored.followed_ci[1]
    assert json.loads(json.dumps(heard.to_dict()))["followed_rate"] == 1.0


def test_the_other_target_is_the_one_most_like_the_first():
    env = TabletopEnv("reach", "test")
    for seed in range(5):
        env.reset(seed=seed)
        episode = env.episode
        other = look_alike(episode.scene, episode.target)
        assert other != episode.target
        assert len(set(other.split()) & set(episode.target.split())) == 1
    env.close()


def test_a_checkpoint_is_probed_with_its_own_processors(tiny_checkpoint: Path):
    env = TabletopEnv("reach", "test")
    observation, _ = env.reset(seed=0)
    controller = PolicyController(PolicySource(str(tiny_checkpoint)), "cpu")
    torch.manual_seed(0)
    action = controller([env], [observation], True)[0]
    env.close()
    # An untrained expert predicts no velocity, so a chunk is the noise it started from.
    noise = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(0))[0, 0].numpy()
    np.testing.assert_allclose(action, 0.3 + 0.1 * noise, atol=1e-6)


def test_the_command_probes_a_checkpoint_as_its_controller_and_again_alike(
    tiny_checkpoint: Path, tmp_path: Path
):
    source, drawn = PolicySource(str(tiny_checkpoint)), []
    controller = PolicyController(source, "cpu")

    def remembering(envs, observations, first):
        actions = controller(envs, observations, first)
        drawn.append(actions)
        return actions

    probes = [probe_controller(remembering, 1, task="pick", batch_size=2) for _ in range(2)]
    steps = len(drawn) // 2
    np.testing.assert_array_equal(drawn[:steps], drawn[steps:])
    config = SwapConfig(
        source, task="pick", pairs=1, batch_size=2, device="cpu", output=tmp_path / "swap.json"
    )
    written = json.loads(swap(config).read_text())["tasks"]["pick"]
    assert probes[0] == probes[1]
    assert written == json.loads(json.dumps(probes[0].to_dict()))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "--policy.path is missing"),
        ({"pairs": 0}, "--pairs=0 must be at least 1"),
        ({"policy": PolicySource("/x/y"), "task": "juggle"}, "--task=juggle"),
        ({"policy": PolicySource("/x/y"), "split": "val"}, "--split=val"),
    ],
)
def test_what_cannot_be_probed_is_named(options, sentence):
    with pytest.raises(AegisError, match=sentence):
        swap(SwapConfig(**options))
