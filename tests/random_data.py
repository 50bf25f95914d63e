"""Small LeRobotDatasets and folders of questions about noise, in the forms of real ones."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_random_dataset(
    root: Path,
    cameras: Mapping[str, tuple[int, int]],
    *,
    state: int,
    action: int,
    tasks: Sequence[str],
    frames: int = 6,
    fps: int = 10,
    dtype: str = "float32",
) -> Path:
    """An episode of `frames` frames for each task; `cameras` are dataset keys with heights and widths.

    State and actions are of `dtype`, and lie between 0 and 1 where that is `bool`, else wherever whole numbers differ.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    names = ["height", "width", "channels"]
    dataset = LeRobotDataset.create(
        repo_id=f"local/{root.name}",
        fps=fps,
        root=root,
        features={
            **{key: {"dtype": "image", "shape": (*size, 3), "names": names} for key, size in cameras.items()},
            "observation.state": {"dtype": dtype, "shape": (state,), "names": None},
            "action": {"dtype": dtype, "shape": (action,), "names": None},
        },
        use_videos=False,
    )
    rng = np.random.default_rng(0)
    whole = not dtype.startswith("float")

    def vector(size: int) -> np.ndarray:
        values = rng.integers(0, 2 if dtype == "bool" else 200, size) if whole else rng.normal(size=size)
        return values.astype(dtype)

    for task in tasks:
        for _ in range(frames):
            pictures = {
                key: rng.integers(0, 255, (*size, 3), dtype=np.uint8) for key, size in cameras.items()
            }
            vectors = {"observation.state": vector(state), "action": vector(action)}
            dataset.add_frame({**pictures, **vectors, "task": task})
        dataset.save_episode()
    dataset.finalize()
    return root


def write_random_questions(folder: Path, *, count: int = 4, answer: str | None = None) -> Path:
    """Pictures with a `questions.jsonl`, as `aegis-anchor --vqa` takes them."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    lines = []
    for index, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{index}.png")
        said = {} if answer is None else {"answer": answer}
        lines.append(json.dumps({"image": f"{index}.png", "question": "what is on the table?", **said}))
    (folder / "questions.jsonl").write_text("\n".join(lines))
    return folder
