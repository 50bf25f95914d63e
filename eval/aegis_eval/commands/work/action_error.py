"""The work of `aegis-action-error`: sampled chunks beside what the demonstrator did, frame by frame."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lerobot.utils.constants import ACTION
from torch.utils.data import default_collate
from tqdm import tqdm

from aegis_eval.checkpoints import load_policy, load_processors
from aegis_eval.commands.action_error import ActionErrorConfig, DatasetSource
from aegis_eval.devices import torch_device
from aegis_eval.results.provenance import provenance
from aegis_eval.statistics.intervals import mean_interval
from aegis_policy.checkpoint.checks import check_sizes
from aegis_policy.data.batches import check_batch
from aegis_policy.data.checks import check_info, check_vectors
from aegis_policy.data.files import fetch_metadata, open_dataset, read_frame, read_metadata
from aegis_policy.data.frames import check_frames
from aegis_policy.data.records import check_instructions, check_records
from aegis_policy.data.statistics import check_kept
from aegis_policy.support import cli
from aegis_policy.support.errors import AegisError
from aegis_policy.support.finding import enforce
from aegis_policy.support.json_files import write_json

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset


@torch.no_grad()
def action_error(config: ActionErrorConfig) -> Path:
    """Measure, write the error with a 95 % interval (whole episodes resampled) and that of each frame.

    Raises:
        AegisError: flags that name no checkpoint or dataset, or a dataset of another robot.
    """
    started = time.monotonic()
    cli.require_at_least(config, frames=1, draws=1, batch_size=1, seed=0)
    if config.dataset.root is None and config.dataset.repo_id is None:
        raise AegisError(
            "--dataset.root is missing: name a folder of demonstrations, or give --dataset.repo_id."
        )
    device = torch_device(config.device)
    policy, folder = load_policy(config.policy)
    policy.to(device)
    before, _ = load_processors(policy, folder, str(device))
    dataset = _open(config.dataset, policy.config, Path(folder))
    indices = frames_spread_over(len(dataset), config.frames)
    noise = _noise(len(indices), config.draws, policy.config, config.seed)
    errors: list[float] = []
    episodes: list[int] = []
    with tqdm(total=len(indices), desc="action error", unit="frame") as bar:
        for chosen, items in _batches(dataset, indices, config.batch_size):
            batch = before(default_collate(items))
            check_batch(policy.config, batch, with_actions=True)
            valid_BH = ~batch["action_is_pad"]
            for draw in noise[:, chosen].to(device):
                chunk_BHA = policy.predict_action_chunk(batch, draw)
                squared_BH = (chunk_BHA - batch[ACTION]).square().mean(-1) * valid_BH
                errors += (squared_BH.sum(1) / valid_BH.sum(1)).tolist()
                episodes += [int(item["episode_index"]) for item in items]
            bar.update(len(items))
    interval = mean_interval(errors, episodes)
    results = {
        "policy": config.policy.path,
        "dataset": str(config.dataset.root or config.dataset.repo_id),
        "action_error": float(np.mean(errors)),
        "ci": interval,
        "frames": len(indices),
        "draws": config.draws,
        "episodes": len(set(episodes)),
        "errors": [round(error, 6) for error in errors],
        "episode_of_error": episodes,
        "provenance": provenance(config.seed, time.monotonic() - started),
    }
    write_json(config.output, results, indent=None)
    low, high = interval
    print(
        f"action error {results['action_error']:.4f} [{low:.4f}, {high:.4f}], {len(indices)} frames of "
        f"{results['episodes']} episodes, normalised units\nwrote {config.output}"
    )
    return config.output


def frames_spread_over(total: int, count: int) -> list[int]:
    """`count` frames of `total`, or all if there are fewer, evenly spread."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist()


def _open(source: DatasetSource, policy_config: Any, checkpoint: Path) -> "LeRobotDataset":
    """The demonstrations, once the policy is known to read them; its own statistics normalise them."""
    from aegis_policy.data.chunk_reading import choose_reading  # brings LeRobot's data sets with it

    choose_reading()
    if source.root is not None:
        metadata = read_metadata(source.root, "--dataset.root")
    else:
        metadata = fetch_metadata(str(source.repo_id))
    enforce(check_info(metadata))
    enforce(
        [
            *check_sizes(_features(policy_config), metadata.features),
            *check_vectors(metadata, checkpoint if checkpoint.is_dir() else None),
            *check_frames(metadata),
            *check_kept(policy_config, checkpoint, metadata.stats, {}),
            *check_records(metadata),
            *check_instructions(metadata, policy_config.instruction),
        ]
    )
    steps = [step / metadata.fps for step in policy_config.action_delta_indices]
    return open_dataset(metadata, delta_timestamps={ACTION: steps})


def _features(policy_config: Any) -> dict[str, Any]:
    """What a policy reads and gives, as its `config.json` has it."""
    parts = ("input_features", "output_features")
    return {part: {key: asdict(each) for key, each in getattr(policy_config, part).items()} for part in parts}


def _noise(frames: int, draws: int, policy_config: Any, seed: int) -> torch.Tensor:
    shape = (draws, frames, policy_config.chunk_size, policy_config.action_dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _batches(
    dataset: "LeRobotDataset", indices: Sequence[int], size: int
) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
    for places in batched(range(len(indices)), size):
        yield list(places), [read_frame(dataset, indices[place]) for place in places]
