"""The work of `aegis-anchor`: one pass over samples, which an interrupted command continues.

The samples go through the model's own processor and prompt, image and question together, and the model answers them;
running text it reads plain. While it does, `subspace` sketches the covariance of what goes into every linear layer,
whose leading directions are what the default protection blocks; layers that read the same tensor share a sketch.
`gaussian` streams the moments of every decoder layer's output over all valid tokens of the questions (arXiv
2604.16067 uses 3,000 VQAv2 samples). `fisher` takes four backward passes more of every sample for the Fisher
information of single weights about the model's own predictions: the sum over tokens, each answer's three heaviest terms
exactly, the others together. At the end the gradient of some answers tells how much of it lies along the directions
kept.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from itertools import batched, chain
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from aegis_eval.checkpoints import load_policy_vlm
from aegis_eval.commands.anchor import AnchorConfig
from aegis_eval.devices import torch_device
from aegis_eval.results.provenance import package_versions
from aegis_policy.anchors.building import RobotFrame, anchor_of_batches
from aegis_policy.anchors.kinds import KINDS
from aegis_policy.anchors.unfinished import UnfinishedPass
from aegis_policy.data.batches import says_something
from aegis_policy.isolation import DEFAULT_SHARE, Anchor
from aegis_policy.pretrained import EMBEDDED_VLM
from aegis_policy.support import cli
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import atomic_write, is_file
from aegis_policy.support.finding import enforce
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vqa.examples import INDEX_FILE, VQAExample, load_vqa
from aegis_policy.vqa.sources import offered, parse_source, split_sources
from aegis_policy.vqa.texts import RUNNING, read_paragraphs, text_file

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

_TABLES = frozenset((".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow"))
"""Ends of files' names that questions are read from."""
_RECORDED = _TABLES | {".mp4"}
"""The same of a LeRobotDataset."""


def make_anchor(config: AnchorConfig) -> Anchor:
    """Write the anchor of a VLM and name the file.

    Raises:
        AegisError: the VLM or the samples cannot be read, or a flag cannot be.
    """
    cli.require_at_least(config, samples=1, batch_size=1, seed=0)
    share = DEFAULT_SHARE if config.share is None else config.share
    if not 0 < share <= 1:
        raise AegisError(f"--share={share} must lie above 0 and not above 1.")
    if not config.kinds or set(config.kinds) - set(KINDS):
        raise AegisError(f"--kinds={config.kinds} must name one or more of {', '.join(KINDS)}.")
    if config.policy.path is not None and config.vlm != EMBEDDED_VLM:
        raise AegisError("give one of --policy.path (the VLM inside a policy) and --vlm.")
    named = config.policy.path or config.vlm
    if config.vqa is None and named != EMBEDDED_VLM:
        raise AegisError(
            f"--vqa is missing: say what {named} must go on answering, with --vqa=FOLDER (a questions.jsonl with "
            "its pictures) or --vqa=vqav2:FOLDER (a benchmark's official files)."
        )
    config = replace(config, vqa="tabletop" if config.vqa is None else config.vqa, share=share)
    sources = split_sources(str(config.vqa))
    if "" in sources:
        raise AegisError(
            f"--vqa={config.vqa} names no source, or none beside a +: name one, or leave the + out."
        )
    _require_questions(config, sources)
    for source in filter(_is_dataset, sources):
        _robot_data(_place(source), config.cameras)  # before what takes long
    device = torch_device(config.device)
    vlm = _load(config).to(device)
    if not vlm.whole and (asking := [kind for kind in config.kinds if KINDS[kind].asks]):
        raise AegisError(
            f"--kinds={config.kinds}: {named} has left out the last decoder layers of its VLM and does not "
            f"answer, which {asking[0]} is about; take --kinds=[subspace]."
        )
    samples = _samples(config, sources, vlm)
    total = sum(len(each) if isinstance(each, Sized) else config.samples for each in samples)
    unfinished = _unfinished(config, sources, samples, vlm.fingerprint())
    anchor = anchor_of_batches(
        vlm,
        chain.from_iterable(batched(each, config.batch_size) for each in samples),
        kinds=config.kinds,
        source=_described(sources),
        share=share,
        total=total,
        seed=config.seed,
        unfinished=unfinished,
    )
    with atomic_write(config.out) as beside:
        anchor.save(beside)
    unfinished.discard()
    asked, found = config.samples * len(sources), int(anchor.metadata["samples"])
    fewer = f" ({asked} were asked for: there are no more)" if found < asked else ""
    size = config.out.stat().st_size / 1e6
    print(
        f"wrote {config.out}: {', '.join(sorted(set(config.kinds)))} from {found} samples{fewer}, {size:.1f} MB"
    )
    if anchor.factors:
        print(_directions(anchor))
    return anchor


def _load(config: AnchorConfig) -> VLMBackbone:
    if config.policy.path is not None:
        return load_policy_vlm(config.policy)[0]
    return VLMBackbone.from_pretrained(config.vlm, flag="--vlm")


def _require_questions(config: AnchorConfig, sources: Sequence[str]) -> None:
    """See that the kinds that are about answers find some.

    Raises:
        AegisError: they do not, or `text:FILE` names no such file.
    """
    mute = [source for source in sources if _is_dataset(source) or _text(source) == RUNNING]
    asking = [kind for kind in config.kinds if KINDS[kind].asks]
    if asking and mute == sources:
        raise AegisError(
            f"--kinds={config.kinds} with --vqa={config.vqa}: robot frames and running text have no answers, which "
            f"{asking[0]} is about; take --kinds=[gaussian,subspace], or add questions (--vqa=SOURCE+{sources[0]})."
        )


def _directions(anchor: Anchor) -> str:
    """How many directions an anchor keeps of its layers' inputs, and what they hold of the answers' gradient."""
    layers = list(anchor.factors.values())
    counts = [len(each.inputs.values_K) for each in layers]
    shares = [len(each.inputs.values_K) / len(each.inputs.vectors_DK) for each in layers]
    told = (
        f"It keeps {_three(counts, '{:.0f}')} directions of the inputs of a linear layer (least, median and most of "
        f"{len(layers)}), {_three(shares, '{:.1%}')} of them all"
    )
    gradients = [float(each.gradient_K.sum()) for each in layers if each.gradient_K is not None]
    if not gradients:
        return f"{told}."
    return f"{told}; they hold {_three(gradients, '{:.1%}')} of the gradient of its answers."


def _three(values: Sequence[float], form: str) -> str:
    """The least, the median and the greatest of some values."""
    return "{}, {} and {}".format(*map(form.format, (min(values), median(values), max(values))))


def _unfinished(
    config: AnchorConfig, sources: Sequence[str], samples: Sequence[Iterable[Any]], fingerprint: str
) -> UnfinishedPass:
    """The place of an interrupted pass, which the same flags over the same samples with the same packages continue."""
    names = ("cameras", "kinds", "share", "samples", "batch_size", "seed")
    identity = [
        fingerprint,
        _described(sources),
        [
            _files_in(_place(source), _RECORDED) if _is_dataset(source) else _pictures(found)
            for source, found in zip(sources, samples, strict=True)
        ],
        package_versions(),
        *(getattr(config, name) for name in names),
    ]
    return UnfinishedPass(config.out.with_name(f".{config.out.name}.unfinished"), json.dumps(identity))


def _samples(config: AnchorConfig, sources: Sequence[str], vlm: VLMBackbone) -> list[Iterable[Any]]:
    """The samples of each source; all questions are looked at, and frames when their turn comes."""
    return [
        _robot_frames(_place(source), config.samples, config.cameras)
        if _is_dataset(source)
        else read_paragraphs(_place(source), config.samples, config.seed)
        if _text(source) == RUNNING
        else load_vqa(source, "--vqa", count=config.samples, seed=config.seed, refuses=vlm.refuses)
        for source in sources
    ]


def _place(source: str) -> Path:
    """Where a source's files are; the empty path if it names none."""
    return Path(parse_source(source, offered())[1])


def _is_dataset(source: str) -> bool:
    name, place = parse_source(source, offered())
    return name is None and is_file(Path(place) / "meta" / "info.json")


def _text(source: str) -> str | None:
    """How the file of a source `text:FILE` ends; None of other sources."""
    file = text_file(source, "--vqa=")
    return None if file is None else file.suffix


def _robot_frames(folder: Path, count: int, wanted: str | None) -> Iterator[RobotFrame]:
    """Frames spread evenly over a LeRobotDataset, its cameras in their order there."""
    from aegis_policy.data.files import open_dataset, read_frame

    meta, cameras = _robot_data(folder, wanted)
    dataset = open_dataset(meta)
    if not all(says_something(text) for text in meta.tasks.index):
        logging.warning(f"{folder} has frames without an instruction: the VLM sees their pictures alone.")
    for index in torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().int().tolist():
        frame = read_frame(dataset, index)
        task = frame["task"] if says_something(frame["task"]) else ""
        yield RobotFrame(tuple(frame[camera] for camera in cameras), task)


def _robot_data(folder: Path, wanted: str | None) -> "tuple[LeRobotDatasetMetadata, list[str]]":
    """What is to be seen in a LeRobotDataset: its metadata, and the cameras to look through.

    Raises:
        AegisError: it cannot be read, or has no such cameras.
    """
    from lerobot.utils.feature_utils import dataset_to_policy_features

    from aegis_policy.data.checks import check_info
    from aegis_policy.data.files import read_metadata
    from aegis_policy.data.records import check_records

    meta = read_metadata(folder, "--vqa")
    enforce(check_info(meta))
    enforce(check_records(meta))
    cameras = meta.camera_keys
    if wanted is not None:
        chosen = [f"observation.images.{camera}" for camera in wanted.split(",")]
        if missing := [camera for camera in chosen if camera not in cameras]:
            raise AegisError(
                f"--cameras={wanted}: {folder} has no {missing[0]}; its cameras are {', '.join(cameras)}."
            )
        cameras = [camera for camera in cameras if camera in chosen]
    if not cameras:
        raise AegisError(f"--vqa={folder} is a dataset without a camera: there is nothing to see in it.")
    shapes = {key: each.shape for key, each in dataset_to_policy_features(meta.features).items()}
    if grey := [camera for camera in cameras if shapes[camera][0] != 3]:
        raise AegisError(
            f"Camera {grey[0]} of {folder} has shape {tuple(shapes[grey[0]])}, and the VLM wants colour images "
            "(3, height, width): name the others with --cameras."
        )
    return meta, cameras


def _described(sources: Sequence[str]) -> str:
    return "+".join(f"{source} ({_revision(source)})" for source in sources)


def _revision(source: str) -> str:
    """What tells two states of a source apart: a hash of its index, or of its files' names, sizes and times; or the
    version of the package that offers it."""
    named = parse_source(source, offered())[1] != ""
    place, own_index = _place(source), "meta/info.json" if _is_dataset(source) else INDEX_FILE
    if named and is_file(index := place if is_file(place) else place / own_index):
        with index.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    if named and place.is_dir():
        return _files_in(place, _TABLES)
    versions = package_versions()
    return f"lerobot_policy_aegis {versions.get('lerobot_policy_aegis', 'unknown')}"


def _files_in(folder: Path, suffixes: Collection[str]) -> str:
    """A hash of the names, sizes and times of a folder's files that end in one of these."""
    digest = hashlib.sha256()
    for each in sorted(each for each in folder.rglob("*") if each.suffix in suffixes):
        digest.update(
            f"{each.relative_to(folder)} {each.stat().st_size} {each.stat().st_mtime_ns}\n".encode()
        )
    return digest.hexdigest()[:16]


def _pictures(samples: Iterable[VQAExample | str]) -> str:
    """A hash of the pictures of questions; nothing of those that are rendered, which the version tells."""
    seen = [each.seen or "" for each in samples if isinstance(each, VQAExample)]
    return hashlib.sha256("".join(seen).encode()).hexdigest()[:16]
