"""What `aegis-doctor` reads in files: datasets, checkpoints, anchors, VLMs. Standard library only.

Only headers and JSON are read, never weights.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from aegis_policy.support.finding import Finding
from aegis_policy.support.json_files import read_json
from aegis_policy.support.tensor_files import read_header

Json = dict[str, Any]
_IMAGES = "observation.images."
_FROZEN = ("freeze", "stop_gradient", "lora")
"""Protections under which the decoder's own weights have neither gradients nor moments."""


def check_dataset(root: Path) -> Iterator[Finding]:
    """Whether a policy can learn from a LeRobotDataset: cameras, state, actions, instructions."""
    info_file = root / "meta" / "info.json"
    if not info_file.is_file():
        yield Finding(
            "error",
            f"{root} holds no meta/info.json",
            "give --dataset.root the folder of a LeRobotDataset, which has meta/, data/ and maybe videos/",
        )
        return
    info = read_json(info_file)
    features = info["features"]
    made = str(info.get("codebase_version", "unknown"))
    if not made.startswith("v3"):
        yield Finding(
            "error",
            f"{root} has the format {made} and LeRobot 0.6 reads v3",
            "convert it with lerobot.scripts.convert_dataset_v21_to_v30",
        )
    cameras = _cameras(features)
    missing = [name for name in ("observation.state", "action") if name not in features]
    if not cameras:
        missing.insert(0, f"camera ({_IMAGES}NAME)")
    if missing:
        yield Finding(
            "error",
            f"{root} has no {', no '.join(missing)}",
            "name it so in the dataset, or a camera with --rename_map",
        )
    wrong = [
        name
        for name in ("observation.state", "action")
        if name in features and len(features[name]["shape"]) != 1
    ]
    if wrong:
        yield Finding("error", f"{', '.join(wrong)} of {root} is no vector", "store it as one row of numbers")
    statistics_file = root / "meta" / "stats.json"
    statistics = read_json(statistics_file) if statistics_file.is_file() else {}
    bare = [
        name
        for name in ("observation.state", "action")
        if name in features and not {"mean", "std"} <= set(statistics.get(name, {}))
    ]
    if bare:
        yield Finding(
            "error",
            f"{statistics_file} has no mean and std of {', '.join(bare)}",
            "lerobot-edit-dataset --operation.type=recompute_stats",
        )
    if not info.get("total_tasks") or _says_nothing(root / "meta" / "tasks.parquet"):
        yield Finding(
            "warning", f"{root} has no instructions", "say one for all with --policy.instruction=TEXT"
        )
    if not info.get("total_frames"):
        yield Finding("error", f"{root} is empty", "record demonstrations")
    if not missing and not wrong:
        yield Finding(
            "ok",
            f"{root}: {info['total_episodes']} episodes, {info['total_frames']} frames at {info['fps']} a second, "
            f"cameras {', '.join(_short(cameras))}, state {features['observation.state']['shape'][0]}, "
            f"action {features['action']['shape'][0]}",
        )


def _says_nothing(tasks: Path) -> bool:
    """Whether all instructions of a dataset are blank, as far as can be read."""
    try:
        from pyarrow import parquet

        table = parquet.read_table(tasks)
    except (ImportError, OSError, ValueError):
        return False
    texts = [text for name in table.column_names if name != "task_index" for text in table[name].to_pylist()]
    return not any(str(text).strip() for text in texts)


def check_policy(folder: Path, dataset: Path | None) -> Iterator[Finding]:
    """Whether a checkpoint is whole and can be resumed, and whether a dataset has what it looks at."""
    from aegis_policy.checkpoint import checks

    inside = folder / "pretrained_model"
    folder = inside if (inside / checks.CONFIG_FILE).is_file() else folder
    found = list(checks.check_checkpoint(folder))
    yield from found
    if any(each.status == "error" for each in found):
        return
    yield from checks.check_kept(folder)
    if (folder.parent / checks.STATE_FOLDER).is_dir():
        yield from checks.check_resumable(folder)
    if dataset is not None and (dataset / "meta" / "info.json").is_file():
        features = read_json(dataset / "meta" / "info.json")["features"]
        compared = list(checks.check_features(read_json(folder / checks.CONFIG_FILE), features))
        yield from compared or [Finding("ok", "the dataset has all that the checkpoint looks at")]


def check_anchor(path: Path, vlm: str, fingerprint: Callable[[str], str]) -> Iterator[Finding]:
    """Whether a file is an anchor, and of this VLM; `fingerprint` loads one and hashes its weights."""
    rebuild = f"make it with aegis-anchor --vlm={vlm} --vqa=QUESTIONS --out={path}"
    if not path.is_file():
        yield Finding("error", f"there is no anchor at {path}", rebuild)
        return
    metadata = read_header(path).get("__metadata__", {})
    if metadata.get("kind") != "aegis-anchor":
        yield Finding("error", f"{path} is no anchor", rebuild)
        return
    about = f"{path}: of {metadata.get('vlm')}, {metadata.get('samples')} samples of {metadata.get('source')}"
    try:
        found = fingerprint(vlm)
    except RuntimeError as error:
        yield Finding(
            "error",
            f"--policy.vlm={vlm} cannot be loaded ({error})",
            "name a transformers directory or hub id",
        )
        return
    if found != metadata.get("fingerprint"):
        yield Finding(
            "error",
            f"{about}; its fingerprint is {metadata.get('fingerprint')} and that of {vlm} is {found}",
            f"--policy.vlm={metadata.get('vlm')}, or an anchor of {vlm}: aegis-anchor --vlm={vlm} --vqa=QUESTIONS "
            "--out=ANOTHER_FILE",
        )
    else:
        yield Finding("ok", about)


@dataclass(frozen=True)
class Training:
    """The flags of a training that decide how much memory it takes, see `AegisConfig`."""

    protection: str = "aegis"
    frozen_dtype: str = "float32"
    optimizer_bits: int = 32

    def bytes(self, frozen: int, learning: int) -> int:
        """What a VLM takes before activations: of so many parameters, those of the decoder layers last.

        Weights that learn, and gradients, are float32; a projection, or a penalty on weights, holds one more copy of
        what learns. LoRA's adapters are not counted.
        """
        frozen_bytes = 2 if self.frozen_dtype == "bfloat16" else 4
        if self.protection in _FROZEN:
            return frozen_bytes * (frozen + learning)
        copies = 3 if self.protection in ("aegis", "l2_sp", "ewc") else 2
        return frozen_bytes * frozen + (4 * copies + 2 * self.optimizer_bits // 8) * learning


def vlm_memory(vlm: str, training: Training, largest: int | None) -> Iterator[Finding]:
    """What training a VLM takes before activations, counted from its files, against the largest GPU's bytes."""
    if vlm == "embedded":
        return
    files = sorted(Path(vlm).glob("*.safetensors"))
    if not files:
        yield Finding(
            "warning",
            f"--policy.vlm={vlm} is no folder with safetensors files here: its memory is not known",
            "harmless for a hub id; otherwise correct the path",
        )
        return
    tensors = {
        name: each for path in files for name, each in read_header(path).items() if name != "__metadata__"
    }
    count = sum(prod(each["shape"]) for each in tensors.values())
    learning = sum(prod(each["shape"]) for name, each in tensors.items() if _learns(name))
    needed = training.bytes(count - learning, learning)
    about = (
        f"{vlm}: {count / 1e9:.2f} billion parameters, {learning / 1e9:.2f} in its decoder layers; training "
        f"with --policy.protection={training.protection} takes about {needed / 2**30:.1f} GiB before activations and "
        "expert"
    )
    if largest is not None and needed > largest:
        yield Finding(
            "error",
            about + f", more than {largest / 2**30:.0f} GiB",
            f"{_less(training)}; or a GPU with more memory",
        )
    else:
        yield Finding("ok", about)


def _less(training: Training) -> str:
    flags = [
        *(["--policy.optimizer_bits=8"] if training.optimizer_bits == 32 else []),
        *(
            ["--policy.frozen_dtype=bfloat16 --policy.dtype=bfloat16"]
            if training.frozen_dtype == "float32"
            else []
        ),
        *(["--policy.protection=lora"] if training.protection != "lora" else []),
    ]
    return f"{', '.join(flags) or 'a smaller VLM'} take less"


def _learns(name: str) -> bool:
    """Whether a weight is of a decoder layer: those train, vision tower and embeddings do not."""
    return ".layers." in name and not any(part in name for part in ("vision", "visual", "encoder"))


def _cameras(features: Json) -> list[str]:
    return [name for name in features if name.startswith(_IMAGES) or name == "observation.image"]


def _short(cameras: list[str]) -> list[str]:
    return [name.removeprefix(_IMAGES) for name in cameras]
