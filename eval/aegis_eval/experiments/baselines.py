"""Arms that ignore their instruction, and the expert, in the scenes in which a comparison's policies are rolled out."""

from collections.abc import Mapping, Sequence

from aegis_envs.tabletop.baselines import ARMS, named_shares, success_shares
from aegis_envs.tabletop.env import seeded_episode
from aegis_envs.tabletop.episodes import look_alike, retarget
from aegis_envs.tabletop.tasks import Episode
from aegis_eval.results.baselines import EXPERT, Baseline
from aegis_eval.results.compared import Compared


def measured(
    episodes: Mapping[str, int], splits: Sequence[str], seed: int, pairs: Mapping[str, int]
) -> dict[str, Baseline]:
    """Every arm, the expert too, in the scenes of a comparison.

    Args:
        episodes: task -> initial states of each split.
        splits: of the tabletop.
        seed: of the first scene.
        pairs: task -> scenes of `aegis-swap`, from the same seed on.
    """
    success = {
        split: {
            task: success_shares(task, split, range(seed, seed + count)) for task, count in episodes.items()
        }
        for split in splits
    }
    named = {task: named_shares(_swapped(task, seed, count)) for task, count in pairs.items()}
    return {
        name: Baseline(
            name,
            {
                split: {task: shares[name] for task, shares in tasks.items()}
                for split, tasks in success.items()
            },
            {task: shares[name] for task, shares in named.items()},
        )
        for name in ARMS
    }


def of_comparison(compared: Compared) -> list[Baseline]:
    """The arms that ignore their instruction, in the scenes of a comparison that was written without them."""
    run = compared.runs[0]
    found = measured(
        {task: len(outcomes) for task, outcomes in run.rollouts["test"].items()},
        list(run.rollouts),
        compared.provenance["seed"],
        {task: counts["pairs"] for task, counts in run.swaps.items()},
    )
    return [arm for name, arm in found.items() if name != EXPERT]


def _swapped(task: str, seed: int, pairs: int) -> list[Episode]:
    """The rollouts of `aegis-swap`: each scene with its own target and with the one most like it."""
    episodes = [seeded_episode(task, "test", seed + pair) for pair in range(pairs)]
    return [each for own in episodes for each in (own, retarget(own, look_alike(own.scene, own.target)))]
