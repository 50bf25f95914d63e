"""What `aegis-doctor` says of files: datasets, checkpoints, anchors, VLMs.

The checks are those of a training (`checks` modules of `aegis_policy`), imported where they are called: importing this
module takes the standard library alone, for the installation may be broken. Only the anchor's check reads weights.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from aegis_eval.doctor.vlas import check_vla
from aegis_policy.support.errors import AegisError
from aegis_policy.support.finding import Finding
from aegis_policy.support.json_files import read_json
from aegis_policy.support.tensor_files import read_header

_IMAGES = "observation.images."
_INSTRUCTION = "--instruction="
_FROZEN = ("freeze", "stop_gradient", "lora")
"""Protections under which the decoder's own weights have neither gradients nor moments."""
_WITH_REFERENCE = ("l2_sp", "decoupled_l2_sp", "maps", "ewc", "distill")
"""Those that compare with the pretrained weights, and hold them."""
_LAYER = re.compile(r"\.layers\.(\d+)\.")


def check_dataset(root: Path, policy: Path | None = None, flags: Sequence[str] = ()) -> Iterator[Finding]:
    """Whether a policy can learn from a LeRobotDataset: what a training checks at its start.

    Args:
        root: folder of the dataset.
        policy: the checkpoint that the training goes on from; a fresh policy unless given.
        flags: of the policy, without its name (`--instruction=TEXT`).
    """
    import draccus
    from lerobot.configs import FeatureType, PreTrainedConfig
    from lerobot.utils.feature_utils import dataset_to_policy_features

    from aegis_eval.checkpoints import is_vla
    from aegis_policy.configuration_aegis import AegisConfig
    from aegis_policy.data.checks import check_dataset, check_info, check_vla_dataset
    from aegis_policy.data.files import read_metadata

    meta = read_metadata(root, "--dataset.root")
    found = [*check_info(meta)]
    if not found:
        vla = policy is not None and is_vla(str(_inside(policy)))
        if policy is None:
            config = draccus.parse(AegisConfig, args=["--device=cpu", *flags])
        else:
            policy = _inside(policy)
            if vla:
                import aegis_policy.lerobot_vlas.configuration_vlas  # noqa: F401  # their types

                _refuse_others(read_json(policy / "config.json"), flags)
            config = PreTrainedConfig.from_pretrained(policy, cli_overrides=[*flags])
        features = dataset_to_policy_features(meta.features)
        outputs = {key: each for key, each in features.items() if each.type is FeatureType.ACTION}
        config.output_features = outputs
        config.input_features = config.input_features or {
            key: each for key, each in features.items() if key not in outputs
        }
        found = [*(check_vla_dataset(config, meta) if vla else check_dataset(config, meta, policy))]
    yield from found
    if not any(each.status == "error" for each in found):
        cameras = ", ".join(name.removeprefix(_IMAGES) for name in meta.camera_keys)
        yield Finding(
            "ok",
            f"{root}: {meta.total_episodes} episodes, {meta.total_frames} frames at {meta.fps} a second, "
            f"cameras {cameras}, {', '.join(_vectors(meta.features))}",
        )


def _refuse_others(held: Mapping[str, Any], flags: Sequence[str]) -> None:
    """See that flags are fields of a policy's configuration, which is of one of LeRobot's types."""
    for name in (flag.removeprefix("--").partition("=")[0] for flag in flags):
        if name not in held:
            raise AegisError(
                f"--policy.{name} is no flag of a policy of type {held.get('type')}: leave it out."
            )


def _vectors(features: Mapping[str, Any]) -> Iterator[str]:
    """How long the vectors of a dataset are."""
    for name, key in (("state", "observation.state"), ("action", "action")):
        if key in features:
            yield f"{name} {features[key]['shape'][0]}"


def _inside(folder: Path) -> Path:
    """The `pretrained_model` folder of a checkpoint's folder, or itself."""
    inside = folder / "pretrained_model"
    return inside if (inside / "config.json").is_file() else folder


def check_policy(folder: Path, dataset: Path | None) -> Iterator[Finding]:
    """Whether a checkpoint is whole and can be resumed, and whether a dataset has what it looks at."""
    from aegis_eval.checkpoints import is_vla
    from aegis_policy.checkpoint import checks

    folder = _inside(folder)
    found = list((check_vla if is_vla(str(folder)) else checks.check_checkpoint)(folder))
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


def check_anchor(path: Path, vlm: str, flags: Sequence[str] = ()) -> Iterator[Finding]:
    """What a training says of an anchor at its start; loads the VLM.

    Args:
        path: of the anchor.
        vlm: as `--policy.vlm` names it.
        flags: of the policy, without its name (`--anchor=gaussian`).
    """
    import draccus

    from aegis_policy.anchors.checks import check_anchor
    from aegis_policy.configuration_aegis import AegisConfig
    from aegis_policy.vlm.backbone import VLMBackbone

    config = draccus.parse(
        AegisConfig, args=["--device=cpu", f"--vlm={vlm}", f"--anchor_path={path}", *flags]
    )
    model = VLMBackbone.from_pretrained(vlm)
    model.end_at(config.backbone_depth)
    yield from check_anchor(path, model, config.resolve_options())


def check_vlm(
    vlm: str, dataset: Path | None = None, flags: Sequence[str] = (), depth: int | None = None
) -> Iterator[Finding]:
    """Whether a VLM can be trained, on a dataset's instructions, as far as files say: what training asks first.

    Weights are not read. A dataset that cannot be read is for `check_dataset`; `flags` are as there, `depth` as in
    `Training`.
    """
    from aegis_policy.data.files import read_metadata
    from aegis_policy.vlm.checks import check_vlm

    texts = [flag.removeprefix(_INSTRUCTION) for flag in flags if flag.startswith(_INSTRUCTION)]
    if dataset is not None and not texts:
        with suppress(AegisError):
            texts = list(map(str, read_metadata(dataset, "--dataset.root").tasks.index))
    yield from check_vlm(vlm, texts=texts, depth=depth)


@dataclass(frozen=True)
class Training:
    """The flags of a training that decide how much memory it takes, see `AegisConfig`."""

    protection: str = "aegis"
    frozen_dtype: str = "float32"
    optimizer_bits: int = 32
    backbone_depth: int | None = None

    def learns(self, name: str) -> bool:
        """Whether a weight is of a decoder layer that learns: vision tower and embeddings do not."""
        found = _LAYER.search(name)
        if found is None or any(part in name for part in ("vision", "visual", "encoder")):
            return False
        return self.backbone_depth is None or int(found[1]) < self.backbone_depth

    def bytes(self, frozen: int, learning: int) -> int:
        """What a VLM takes before activations: of so many parameters, those of the decoder layers last.

        Weights that learn, and gradients, are float32; a penalty on weights holds one more copy of what
        learns, and `aegis` the part that it protects. LoRA's adapters are not counted.
        """
        from aegis_policy.isolation import DEFAULT_SHARE

        frozen_bytes = 2 if self.frozen_dtype == "bfloat16" else 4
        if self.protection in _FROZEN:
            return frozen_bytes * (frozen + learning)
        held = {"aegis": DEFAULT_SHARE, **dict.fromkeys(_WITH_REFERENCE, 1.0)}.get(self.protection, 0.0)
        return frozen_bytes * frozen + int((4 * (2 + held) + 2 * self.optimizer_bits // 8) * learning)


def vlm_memory(vlm: str, training: Training, largest: int | None) -> Iterator[Finding]:
    """What training a VLM takes before activations, counted from its files, against the largest GPU's bytes.

    Files that are not whole are for `check_vlm`.
    """
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
    try:
        tensors = {
            name: each for path in files for name, each in read_header(path).items() if name != "__metadata__"
        }
    except (OSError, ValueError):
        return
    count = sum(prod(each["shape"]) for each in tensors.values())
    learning = sum(prod(each["shape"]) for name, each in tensors.items() if training.learns(name))
    needed = training.bytes(count - learning, learning)
    about = (
        f"{vlm}: {count / 1e9:.2f} billion parameters, {learning / 1e9:.2f} in decoder layers that learn; training "
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
