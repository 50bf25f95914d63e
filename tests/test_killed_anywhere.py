"""Every command that works for long, killed at any moment and given again: nothing is lost, repeated or half.

Moments are drawn, from a seed, among all changes of files that the command makes, a share of them in each part of its
run; a few are chosen. How many kills landed is counted.
"""

import hashlib
import json
import random
import re
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import killing
import pyarrow.parquet as pq
import pytest
from random_data import write_random_dataset, write_random_questions
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_vlms import smallest_size_flags

from aegis_eval.commands.anchor import AnchorConfig
from aegis_eval.commands.work.anchor import make_anchor
from aegis_policy.checkpoint.checks import check_checkpoint, check_resumable
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.support.json_files import read_json

pytestmark = pytest.mark.slow
SEED = 0
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Case:
    """A command, how it is killed, and what must come of it.

    Attributes:
        words: the command, for a folder to work in.
        result: what a finished folder holds, as plain data that two runs have in common.
        kills: how often it is killed at a moment that is drawn.
        moments: patterns of changes: it is killed before the last one that matches, too.
        kept: what a killed command has finished, by name; compared before and after the command that goes on.
        check: sees, of the folder of a killed command, that nothing half is taken for whole.
        patched: see `killing.run`.
    """

    words: Callable[[Path], list[str]]
    result: Callable[[Path], Any]
    kills: int
    moments: Sequence[str] = ()
    kept: Callable[[Path], Mapping[str, Any]] = lambda folder: {}
    went_on: Callable[[Mapping[str, Any], killing.Ended], bool] = lambda kept, ended: True
    check: Callable[[Path], None] = lambda folder: None
    patched: Mapping[str, Any] = field(default_factory=dict)


def run_to_the_end(case: Case, folder: Path) -> killing.Ended:
    ended = killing.run(case.words(folder), folder, patched=case.patched)
    assert ended.status == 0 or "already holds" in ended.output, ended.output[-3000:]
    return ended


def moments(case: Case, changes: Sequence[str], rng: random.Random) -> list[int]:
    """Numbers of changes: one in each equal part of them, then those that were chosen."""
    drawn = [int((part + rng.random()) / case.kills * len(changes)) for part in range(case.kills)]
    chosen = [
        max(i for i, each in enumerate(changes) if re.search(pattern, each)) for pattern in case.moments
    ]
    return [*drawn, *chosen]


def strays(folder: Path) -> list[str]:
    """Files that nobody will look at again. Locks of rendered pictures stay."""
    hidden = [path for path in folder.rglob("*") if re.match(r"^\.|.*\.(tmp|part|old)\b", path.name)]
    return [str(path.relative_to(folder)) for path in hidden if path.parent.name != "cache"]


def kill_and_go_on(case: Case, tmp_path: Path) -> int:
    """Kill at every moment, twice in a row at each other one; returns how many kills landed."""
    rng, landed = random.Random(SEED), 0
    whole = tmp_path / "whole"
    whole.mkdir()
    changes = run_to_the_end(case, whole).changes
    expected = case.result(whole)
    assert not strays(whole)
    for number, moment in enumerate(moments(case, changes, rng)):
        folder = tmp_path / f"killed-{number}"
        folder.mkdir()
        for again in range(1 + number % 2):
            by = SIGNALS[(number + again) % len(SIGNALS)]
            moment = moment if not again else rng.randrange(1, 12)
            ended = killing.run(case.words(folder), folder, change=moment, by=by, patched=case.patched)
            where = f"killed by {by.name} at change {moment} ({[*changes, 'end'][min(moment, len(changes))]})"
            print(f"{folder.name}: {where}, status {ended.status}")
            if ended.status == 0:  # it had less left to do than that
                assert again, where
                break
            landed += "already holds" not in ended.output
            case.check(folder)
        kept = case.kept(folder)
        ended = run_to_the_end(case, folder)
        assert case.went_on(kept, ended), (where, kept, ended.output[-2000:])
        assert case.result(folder) == expected, where
        assert not strays(folder), where
    return landed


def contents(folder: Path, *left_out: str) -> dict[str, str]:
    """A hash of every file; of tables without what `datasets` notes, of tokenizers without their last call."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in left_out:
            data = path.read_bytes()
            if path.suffix == ".parquet":
                data = repr(pq.read_table(path).to_pydict()).encode()
            elif path.name == "tokenizer.json":
                data = repr({**json.loads(data), "padding": None}).encode()
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def tensors(file: Path) -> dict[str, Any]:
    return {name: x.float().flatten().tolist() for name, x in load_file(file).items()}


def noted(file: Path) -> dict[str, str]:
    """What a safetensors file, if it is there, says of itself."""
    if not file.is_file():
        return {}
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()


def test_recordings(tmp_path: Path) -> None:
    def went_on(kept: Mapping[str, Any], ended: killing.Ended) -> bool:
        told = f"continuing: {len(kept)} of 5 episodes are already there"
        return not kept or told in ended.output or "already holds this recording" in ended.output

    flags = ["--env.type=aegis_tabletop", "--env.task=reach,pick", "--episodes=5", "--seed=5"]
    case = Case(
        words=lambda folder: ["aegis-record", *flags, f"--root={folder / 'data'}"],
        result=lambda folder: contents(folder / "data", "recording.json"),
        kills=4,
        moments=[r"os.rename data$", r"shutil.rmtree \.data\.recording"],
        kept=lambda folder: dict.fromkeys(folder.glob(".data.recording/episode_*.npz")),
        went_on=went_on,
    )
    assert kill_and_go_on(case, tmp_path) >= 6


def test_pretraining(tmp_path: Path) -> None:
    def went_on(kept: Mapping[str, Any], ended: killing.Ended) -> bool:
        begun = re.search(r"aegis-pretrain: .*? (\d+)/8 ", ended.output)
        return not kept or (begun is not None and int(begun[1]) == int(kept["step"]))

    numbers = {"scenes": 8, "steps": 8, "batch_size": 4, "save_freq": 2, "vision_steps": 4, "warmup_steps": 2}
    numbers |= {
        "eval_freq": 8,
        "val_samples": 6,
        "card_samples": 6,
        "transfer_samples": 3,
        "anchor_samples": 6,
    }
    flags = smallest_size_flags()
    flags += [f"--{key}={value}" for key, value in numbers.items()]
    case = Case(
        words=lambda folder: [
            "aegis-pretrain",
            *flags,
            f"--out={folder / 'vlm'}",
            f"--cache_dir={tmp_path / 'cache'}",
        ],
        result=lambda folder: [
            contents(folder / "vlm", "README.md", "anchor.safetensors"),
            tensors(folder / "vlm" / "anchor.safetensors"),
        ],
        kills=3,
        moments=[r"os.rename vlm$"],
        kept=lambda folder: noted(folder / "vlm.training" / "state.safetensors"),
        went_on=went_on,
    )
    assert kill_and_go_on(case, tmp_path) >= 4


def test_anchors(tiny_vlm_dir: Path, tmp_path: Path) -> None:
    def went_on(kept: Mapping[str, Any], ended: killing.Ended) -> bool:
        begun = re.search(r"anchor: .*? (\d+)/12 ", ended.output)
        return not kept or (begun is not None and int(begun[1]) == int(kept["samples"]))

    questions = write_random_questions(tmp_path / "questions", count=12)
    flags = [f"--vlm={tiny_vlm_dir}", f"--vqa={questions}", "--samples=12", "--batch_size=2"]
    case = Case(
        words=lambda folder: [
            "aegis-anchor",
            *flags,
            "--kinds=[gaussian,subspace,fisher]",
            f"--out={folder / 'anchor.safetensors'}",
        ],
        result=lambda folder: tensors(folder / "anchor.safetensors"),
        kills=3,
        moments=[r"os.rename anchor.safetensors$"],
        kept=lambda folder: noted(folder / ".anchor.safetensors.unfinished"),
        went_on=went_on,
        patched={"aegis_policy.anchors.unfinished:SAVE_SECONDS": 0.0},
    )
    assert kill_and_go_on(case, tmp_path) >= 4


@pytest.fixture(scope="module")
def training_flags(
    tiny_vlm_dir: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Flags of a tiny training under the paper's anchor."""
    folder = tmp_path_factory.mktemp("anchor")
    questions = str(write_random_questions(folder / "questions", count=12))
    anchor = folder / "anchor.safetensors"
    make_anchor(
        AnchorConfig(vlm=str(tiny_vlm_dir), vqa=questions, samples=12, kinds=["gaussian"], out=anchor)
    )
    sizes = {"chunk_size": 4, "n_action_steps": 2, "expert_width": 16, "expert_depth": 2, "expert_heads": 2}
    return [
        *("--policy.type=aegis", "--policy.device=cpu", "--batch_size=2", "--num_workers=0", "--log_freq=1"),
        *("--dataset.repo_id=local/tiny", f"--dataset.root={tiny_dataset}", f"--policy.vlm={tiny_vlm_dir}"),
        *("--policy.anchor=gaussian", f"--policy.anchor_path={anchor}"),
        *(f"--policy.{key}={value}" for key, value in sizes.items()),
    ]


def test_trainings(training_flags: list[str], tmp_path: Path) -> None:
    """As the docs say: resumed from the last checkpoint; before there is one, begun anew."""

    def saved(folder: Path) -> list[Path]:
        last = folder / "run" / "checkpoints" / "last"
        whole = sorted(folder.glob("run/checkpoints/0*/training_state/scheduler_state.json"))
        return [last] if last.is_dir() else [path.parents[1] for path in whole[-1:]]

    def words(folder: Path) -> list[str]:
        if checkpoint := saved(folder):
            config = checkpoint[-1] / "pretrained_model" / "train_config.json"
            return ["lerobot-train", f"--config_path={config}", "--resume=true"]
        shutil.rmtree(folder / "run", ignore_errors=True)
        return [
            "lerobot-train",
            *training_flags,
            f"--output_dir={folder / 'run'}",
            "--steps=6",
            "--save_freq=2",
        ]

    def half_is_refused(folder: Path) -> None:
        for checkpoint in folder.glob("run/checkpoints/0*"):
            policy = checkpoint / "pretrained_model"
            found = [*check_checkpoint(policy), *check_resumable(policy)]
            refused = any(finding.status == "error" for finding in found)
            assert refused != (contents(checkpoint).keys() >= set(whole_files)), found

    def result(folder: Path) -> Any:
        checkpoints = folder / "run" / "checkpoints"
        final = (
            checkpoints / "000006" / "pretrained_model"
        )  # the link to it may have been due when it was killed
        assert AegisPolicy.from_pretrained(final)
        whole_files.extend(contents(final.parent))
        names = {path.relative_to(checkpoints).as_posix() for path in checkpoints.rglob("*")}
        step = read_json(final.parent / "training_state" / "training_step.json")
        return names - {"last"}, tensors(final / "anchor.safetensors"), step

    def went_on(kept: Mapping[str, Any], ended: killing.Ended) -> bool:
        steps = [int(step) for step in re.findall(r" step:(\d) ", ended.output)]
        return steps == list(range(1 + max(map(int, kept), default=0), 7))

    whole_files: list[str] = []
    case = Case(
        words,
        result,
        kills=5,
        moments=[r"os.symlink", r"os.rename .*000006/pretrained_model/model"],
        kept=lambda folder: dict.fromkeys(place.resolve().name for place in saved(folder)),
        went_on=went_on,
        check=half_is_refused,
    )
    assert kill_and_go_on(case, tmp_path) >= 7


def test_questions(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def kept(folder: Path) -> dict[str, int]:
        logs = folder.glob(".vqa.answers/*/rank0.jsonl")
        return {log.parent.name: log.read_text().count("\n") - 1 for log in logs}

    def went_on(kept: Mapping[str, Any], ended: killing.Ended) -> bool:
        asked = sum(
            bool(re.fullmatch(r"open \.vqa\.answers/\w+/rank0\.jsonl", each)) for each in ended.changes
        )
        return "already holds" in ended.output or asked == 2 * 6 - sum(-(-n // 4) for n in kept.values())

    case = Case(
        words=lambda folder: [
            *("aegis-vqa", f"--policy.path={tiny_checkpoint}", "--samples=24", "--batch_size=4"),
            *(f"--output_dir={folder / 'vqa'}", f"--cache_dir={folder / 'cache'}"),
        ],
        result=lambda folder: [
            (folder / "vqa" / "samples.jsonl").read_text(),
            {**read_json(folder / "vqa" / "results.json"), "provenance": None},
        ],
        kills=3,
        moments=[r"open \.vqa\.answers/answering/rank0", r"os.rename vqa$"],
        kept=kept,
        went_on=went_on,
    )
    assert kill_and_go_on(case, tmp_path) >= 5


def test_action_errors(tiny_checkpoint: Path, tmp_path: Path) -> None:
    cameras = dict.fromkeys(("observation.images.front", "observation.images.wrist"), (96, 96))
    data = write_random_dataset(tmp_path / "data", cameras, state=8, action=4, tasks=["reach"], frames=10)
    flags = [f"--policy.path={tiny_checkpoint}", f"--dataset.root={data}", "--frames=6", "--batch_size=2"]
    case = Case(
        words=lambda folder: ["aegis-action-error", *flags, f"--output={folder / 'error.json'}"],
        result=lambda folder: {**read_json(folder / "error.json"), "provenance": None},
        kills=1,
        moments=[r"os.rename error.json$"],
    )
    assert kill_and_go_on(case, tmp_path) >= 2


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that nothing interrupted, of one protection."""
    folder = tmp_path_factory.mktemp("comparison")
    run_to_the_end(COMPARISON, folder)
    return folder


def compared(folder: Path) -> dict[str, Any]:
    """What was counted, without the times it took; of drift the last digits may differ."""
    found = read_json(folder / "out" / "comparison.json")
    (run,) = found["runs"]
    left = ("seconds", "curves", "drift", "drift_per_layer")
    return {
        **found,
        "config": None,
        "provenance": None,
        "runs": {key: run[key] for key in run if key not in left},
    }


COMPARISON = Case(
    words=lambda folder: [
        *("aegis-compare", "--quick", "--protections=none", "--seeds=1", "--episodes=2", "--steps=2"),
        *("--eval_episodes=2", "--samples=6", "--device=cpu", f"--output_dir={folder / 'out'}"),
    ],
    result=compared,
    kills=0,
)


def test_comparisons(comparison: Path, tmp_path: Path) -> None:
    """Killed again and again in one folder, each time in another stage."""
    run = "runs/none-lr0.0003-seed0"
    appear = [".data.*.part/*/meta", f"{run}/training/checkpoints"]
    appear += [f"{run}/rollouts-unseen/videos", f"{run}/.vqa-tabletop.answers"]
    results = ("recording.json", "results.json", "eval_info.json", "swap.json", "drift.json")
    finished: dict[Path, int] = {}
    out = tmp_path / "out"
    for number, pattern in enumerate(appear):
        by = SIGNALS[number % len(SIGNALS)]
        seen = lambda: next(out.glob(pattern), None) is not None  # noqa: B023, E731
        ended = killing.run(COMPARISON.words(tmp_path), tmp_path, seen=seen, by=by)
        assert ended.status not in (0, 2), (pattern, ended.output[-2000:])
        assert not (out / "comparison.json").exists()
        changed = {path: when for path, when in finished.items() if path.stat().st_mtime_ns != when}
        assert not changed, pattern
        files = [path for path in out.rglob("*.json") if path.name in results and ".part" not in str(path)]
        finished |= {path: path.stat().st_mtime_ns for path in files if whole(path)}
    run_to_the_end(COMPARISON, tmp_path)
    assert len(finished) >= 5 and all(path.stat().st_mtime_ns == when for path, when in finished.items())
    assert compared(tmp_path) == compared(comparison)
    assert compared(tmp_path)["runs"]
    assert not strays(out)


def whole(file: Path) -> bool:
    try:
        return bool(read_json(file))
    except ValueError:
        return False


def test_reports(comparison: Path, tmp_path: Path) -> None:
    case = Case(
        words=lambda folder: [
            "aegis-report",
            f"--runs={comparison / 'out'}",
            f"--output_dir={folder / 'out'}",
        ],
        result=lambda folder: contents(folder / "out"),
        kills=2,
        moments=[r"os.rename out/report.html$"],
    )
    assert kill_and_go_on(case, tmp_path) >= 3
