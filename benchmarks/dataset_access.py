"""Random access to a recorded dataset: frames a CPU-second on one core, as a policy's training reads them.

    python benchmarks/dataset_access.py [--root=DIR] [--video-root=DIR] [--frames=600] [--chunk=16] [--json=FILE]

Target: 300 frames a second from image features. A frame is both cameras, the state and a chunk of actions; LeRobot's
own way of reading the chunk is printed beside that of `aegis_policy.data.chunk_reading`. Without `--root` a small
dataset is recorded first, and left in a temporary folder only while the benchmark runs.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _report import report
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from aegis_envs.recording.recorder import record
from aegis_envs.recording.sources import RecordConfig, RecordedTabletop
from aegis_policy.data.chunk_reading import read_chunks_by_column


def frames_per_cpu_second(root: Path, frames: int, chunk: int) -> float:
    """Rate of reading `frames` random items of the dataset in `root`."""
    offsets = [step / 10 for step in range(chunk)]
    dataset = LeRobotDataset(
        "local/any", root=root, delta_timestamps={"action": offsets}, video_backend="pyav"
    )
    order = np.random.default_rng(0).integers(len(dataset), size=frames)
    dataset[0]
    start = time.process_time()
    for index in order:
        dataset[int(index)]
    return frames / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--video-root", type=Path)
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.root or Path(folder) / "tabletop"
        if arguments.root is None:
            record(RecordConfig(env=RecordedTabletop(split="train"), root=root, episodes=12))
        figures = {"image, LeRobot": frames_per_cpu_second(root, arguments.frames // 4, arguments.chunk)}
        read_chunks_by_column()
        figures["image"] = frames_per_cpu_second(root, arguments.frames, arguments.chunk)
        if arguments.video_root:
            figures["video"] = frames_per_cpu_second(arguments.video_root, arguments.frames, arguments.chunk)
    report({f"{kind}, frames a CPU-second": rate for kind, rate in figures.items()}, arguments.json)


if __name__ == "__main__":
    main()
