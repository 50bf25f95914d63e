"""Every command that writes, where the disk is full or the folder read-only: a sentence, and what was there stays."""

import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
from full_disk import Shell, full_disk, read_only
from random_data import write_random_dataset, write_random_questions
from tiny_vlms import smallest_size_flags

from aegis_eval.commands.vqa import VqaConfig
from aegis_eval.commands.work.vqa import evaluate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def given(
    tiny_vlm_dir: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    """Command -> words, with `OUT` for what it writes."""
    folder = tmp_path_factory.mktemp("given")
    questions = write_random_questions(folder / "questions", count=4)
    cameras = dict.fromkeys(("observation.images.front", "observation.images.wrist"), (96, 96))
    data = write_random_dataset(folder / "data", cameras, state=8, action=4, tasks=["reach"], frames=10)
    evaluate(VqaConfig(vlm=str(tiny_vlm_dir), output_dir=folder / "runs" / "one", samples=4))
    policy, cache = f"--policy.path={tiny_checkpoint}", f"--cache_dir={folder / 'cache'}"
    numbers = {
        "scenes": 4,
        "steps": 2,
        "batch_size": 4,
        "vision_steps": 1,
        "warmup_steps": 0,
        "val_samples": 4,
    }
    numbers |= {"card_samples": 4, "transfer_samples": 4, "anchor_samples": 4}
    little = smallest_size_flags()
    little += [f"--{key}={value}" for key, value in numbers.items()]
    learned = [
        f"--policy.vlm={tiny_vlm_dir}",
        "--policy.type=aegis",
        "--policy.device=cpu",
        "--num_workers=0",
    ]
    learned += [
        "--policy.protection=none",
        "--policy.chunk_size=4",
        "--policy.n_action_steps=2",
        "--batch_size=2",
    ]
    learned += ["--dataset.repo_id=local/tiny", f"--dataset.root={data}", "--steps=2", "--save_freq=1"]
    return {
        "aegis-record": ["--env.type=aegis_tabletop", "--episodes=1", "--root=OUT"],
        "aegis-pretrain": [*little, cache, "--out=OUT"],
        "aegis-anchor": [f"--vlm={tiny_vlm_dir}", f"--vqa={questions}", "--samples=4", "--out=OUT"],
        "lerobot-train": [*learned, "--output_dir=OUT"],
        "aegis-vqa": [policy, "--samples=4", cache, "--output_dir=OUT"],
        "aegis-export": [policy, "--output_dir=OUT"],
        "aegis-merge": [policy, "--output_dir=OUT"],
        "aegis-baseline": ["--episodes=1", "--output=OUT"],
        "aegis-act": [policy, "--scenes=1", "--kinds=[size]", "--output=OUT"],
        "aegis-swap": [policy, "--pairs=1", "--output=OUT"],
        "aegis-drift": [policy, "--samples=4", cache, "--output=OUT"],
        "aegis-action-error": [policy, f"--dataset.root={data}", "--frames=2", "--output=OUT"],
        "aegis-report": [f"--runs={folder / 'runs'}", "--output_dir=OUT"],
        "aegis-compare": ["--quick", "--protections=none", "--seeds=1", "--output_dir=OUT"],
        "aegis-ablate": ["--variants=[]", "--seeds=1", "--episodes=1", "--held_out=1", "--output_dir=OUT"],
        "aegis-demo": ["--quick", "--output_dir=OUT"],
    }


NAMES = [
    "record",
    "pretrain",
    "anchor",
    "vqa",
    "export",
    "merge",
    "baseline",
    "act",
    "swap",
    "drift",
    "action-error",
    "report",
]
EXPERIMENTS = ["compare", "ablate", "demo"]
FILES = {"anchor", "baseline", "swap", "drift", "action-error"}
"""Commands that write one file, in place of an earlier one."""


FULL = ("No space left on device", "File too large")


def told(done: subprocess.CompletedProcess[str], place: Path, *reasons: str) -> None:
    assert done.returncode == 2, done.stdout[-3000:]
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("error: ") and str(place) in last, last
    assert any(reason in last for reason in reasons), last


def words(given: dict[str, list[str]], name: str, out: Path) -> list[str]:
    return [name, *(word.replace("OUT", str(out)) for word in given[name])]


@pytest.mark.parametrize("free", [0, 60_000])
@pytest.mark.parametrize("name", NAMES)
def test_on_a_full_disk(name: str, free: int, given: dict[str, list[str]], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with full_disk(disk, 2_000_000, free) as run:
        out = disk / "result"
        if name in FILES:
            out.touch()
        before = set(disk.iterdir())
        done = run(*words(given, f"aegis-{name}", out))
        if free and done.returncode == 0:
            return  # small enough
        told(done, disk, *FULL)
        kept = [disk / place for place in (".result.recording", "result.training", ".result.answers")]
        left = [path for path in disk.rglob("*") if path.is_file() and path not in before]
        assert all(any(path.is_relative_to(place) for place in kept) for path in left), left
        assert name not in FILES or out.stat().st_size == 0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_on_a_full_disk(name: str, given: dict[str, list[str]], tmp_path: Path) -> None:
    with full_disk(tmp_path / "disk", 1_000_000, 0) as run:
        told(run(*words(given, f"aegis-{name}", tmp_path / "disk" / "result")), tmp_path / "disk", *FULL)


@pytest.mark.parametrize("name", [*NAMES, *EXPERIMENTS])
def test_in_a_read_only_folder(name: str, given: dict[str, list[str]], shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "earlier").write_text("before")
    with read_only(tmp_path / "disk"):
        done = shell(*words(given, f"aegis-{name}", tmp_path / "disk" / "result"))
        told(done, tmp_path / "disk", " cannot be ")
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["earlier"]


@pytest.mark.parametrize("name", [*NAMES, *EXPERIMENTS])
def test_below_a_file(name: str, given: dict[str, list[str]], shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "disk").write_text("before")
    done = shell(*words(given, f"aegis-{name}", tmp_path / "disk" / "result"))
    told(done, tmp_path / "disk", "a file is where a folder is to be")
    assert (tmp_path / "disk").read_text() == "before"


@pytest.mark.parametrize("full", [True, False])
def test_a_training_that_cannot_save_leaves_no_half_policy(
    full: bool, given: dict[str, list[str]], shell: Shell, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    with full_disk(disk, 1_000_000, 100_000) as run, nullcontext() if full else read_only(disk):
        done = (run if full else shell)(*words(given, "lerobot-train", disk / "run"))
        assert done.returncode != 0
        reasons = FULL if full else ("Read-only file system", "Permission denied")
        assert any(reason in done.stdout for reason in reasons), done.stdout[-3000:]
        assert not list(disk.rglob("*.safetensors")) and not list(disk.rglob("last"))
