"""The model card of a policy checkpoint: what was trained on what, how it was protected, and what it still answers.

`aegis-vqa` adds its scores to the card of a checkpoint that it asked.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import ModelCardData
from safetensors import safe_open

from aegis_policy.support.files import atomic_write

if TYPE_CHECKING:
    from aegis_policy.configuration_aegis import AegisConfig
    from aegis_policy.protections.coverage import Coverage

CARD_FILE = "README.md"
_BEGIN, _END = "<!-- vqa -->", "<!-- /vqa -->"
_HEADER = "| questions | n | before, % | after, % | change, points |\n|---|---|---|---|---|"
_LOCAL = "local/"
"""Owner of datasets that are on no hub, in this package's guides and experiments."""
_BETWEEN = re.compile(f"(?<={_BEGIN}\n).*?(?={_END})", re.DOTALL)


@dataclass(frozen=True)
class VQAScore:
    """Accuracies, from 0 to 1, of the pretrained model (if it was asked) and of this one on the same questions.

    `change` is their difference with the ends of its 95 % interval, where it is known.
    """

    questions: str
    n: int
    after: float
    before: float | None = None
    change: tuple[float, float, float] | None = None

    def row(self) -> str:
        """A line of the card's table."""
        before = "" if self.before is None else f"{100 * self.before:.1f}"
        change = ""
        if self.change is not None:
            middle, low, high = (100 * value for value in self.change)
            change = f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]"
        return f"| {self.questions} | {self.n} | {before} | {100 * self.after:.1f} | {change} |"


def card_text(
    config: "AegisConfig",
    *,
    steps: int,
    probed: VQAScore | None = None,
    anchor_file: Path | None = None,
    coverages: Iterable["Coverage"] = (),
    dataset: str | None = None,
) -> str:
    """The card of a policy.

    Args:
        config: the policy's.
        steps: of training so far.
        probed: what the probe found before and last.
        anchor_file: what a checkpoint keeps of its anchor.
        coverages: how much the kinds of anchors protect, if training has begun.
        dataset: repository of the demonstrations.
    """
    inputs, outputs = (
        ", ".join(f"{name} {tuple(each.shape)}" for name, each in (features or {}).items())
        for features in (config.input_features, config.output_features)
    )
    about = {
        "VLM": f"{config.vlm}, fingerprint {config.vlm_fingerprint}",
        "protection": config.protection + (f", {config.anchor}" if config.protection == "aegis" else ""),
        **_anchor(config.anchor_info, anchor_file),
        **{f"protected by {coverage.kind}": str(coverage) for coverage in coverages},
        **({"demonstrations": dataset} if dataset else {}),
        "training": f"{steps} steps, learning rates {config.optimizer_lr:g} (expert) and "
        f"{config.optimizer_lr_backbone:g} (backbone)",
        "inputs": inputs,
        "outputs": f"{outputs}, {config.chunk_size} at once",
    }
    table = "\n".join(f"| {name} | {what} |" for name, what in about.items())
    data = ModelCardData(
        library_name="lerobot",
        pipeline_tag="robotics",
        license=config.license,
        datasets=dataset if dataset and not dataset.startswith(_LOCAL) else None,
        tags=sorted({"aegis", "lerobot", "robotics", *(config.tags or [])}),
    )
    return f"""---
{data.to_yaml()}
---

# A policy trained with AEGIS for LeRobot

| | |
|---|---|
{table}

## What the VLM still answers

{_BEGIN}
{_rows([probed] if probed else [])}{_END}

`aegis-vqa --policy.path=THIS_FOLDER` asks, and adds a line here. *Before* is the VLM as it was before any robot;
brackets are 95 % intervals.

## Use

```
lerobot-eval --policy.path=THIS_FOLDER --env.type=...
aegis-export --policy.path=THIS_FOLDER --output_dir=DIR
```
"""


def add_score(folder: Path, score: VQAScore) -> None:
    """Add a line to a checkpoint's card, in place of an earlier one about the same questions.

    A card that somebody has written anew, without the place for such lines, stays as it is.
    """
    path = folder / CARD_FILE
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        return
    found = _BETWEEN.search(text)
    if found is None:
        return
    same = f"| {score.questions} | {score.n} |"
    kept = [line for line in found[0].splitlines()[2:] if line and not line.startswith(same)]
    table = "\n".join([_HEADER, *kept, score.row()]) + "\n"
    with atomic_write(path) as beside:
        beside.write_text(text[: found.start()] + table + text[found.end() :])


def _rows(scores: list[VQAScore]) -> str:
    return "\n".join([_HEADER, *(score.row() for score in scores)]) + "\n" if scores else "Not asked yet.\n"


def _anchor(info: Mapping[str, str] | None, file: Path | None) -> dict[str, str]:
    if info is None:
        return {}
    about = f"{info.get('samples')} samples of {info.get('source')}"
    if file is not None and file.is_file():
        about += f", sha256 of its tensors {_tensors_hash(file)}"
    return {"anchor": about}


def _tensors_hash(file: Path) -> str:
    """The same for the same names and values, in whatever order a file has them."""
    digest = hashlib.sha256()
    with safe_open(file, framework="pt") as tensors:
        for name in sorted(tensors.keys()):
            digest.update(name.encode())
            digest.update(tensors.get_tensor(name).reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
