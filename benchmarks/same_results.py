"""Does a change leave alone what the program computes? Record its results before, compare them after.

    python benchmarks/same_results.py record --output=before.json     # in the environment of the old checkout
    python benchmarks/same_results.py record --output=after.json      # in that of the new one
    python benchmarks/same_results.py compare before.json after.json

Everything goes through the commands of the environment that runs this script, so the script itself may be newer or
older than what it looks at. Recorded are digests of the demo's rollouts, answers and table, of every parameter after
five training steps of each protection, of an anchor's tensors, of the answers to 200 questions, and of the page made
from the committed comparison. On two cores it takes a quarter of an hour; `--skip=demo` leaves the longest part out.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from safetensors import safe_open

_ROOT = Path(__file__).resolve().parents[1]
_COMPARISON = _ROOT / "benchmarks" / "results" / "2026-11-27-comparison" / "comparison.json"
_PROTECTIONS = {
    **{name: [f"--policy.protection={name}"] for name in ("none", "freeze", "stop_gradient", "lora")},
    **{name: [f"--policy.protection={name}"] for name in ("w2_penalty", "l2_sp", "knowledge_insulation")},
    "ewc": ["--policy.protection=ewc", "--policy.anchor_path={fisher}"],
    "replay": ["--policy.protection=replay", "--policy.replay_data=tabletop"],
    "aegis": ["--policy.protection=aegis", "--policy.vqa_probe_freq=2"],
    **{f"aegis {anchor}": [f"--policy.anchor={anchor}"] for anchor in ("gaussian", "subspace+gaussian")},
}
_ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
    "OMP_NUM_THREADS": "2",
    "OMP_WAIT_POLICY": "passive",
    "HF_HUB_OFFLINE": "1",
    "MUJOCO_GL": "egl",
}
"""Two threads wherever it runs, for sums depend on their number; passive, so that other work may go on beside."""
_DIFFERS_BY_NATURE = re.compile(
    r"\b[0-9a-f]{12}(\+changes)?\b|\d{4}-\d\d-\d\dT[\d:+]+|\d+(\.\d)? (seconds|minutes)"
)
"""Commit, time and duration in a page."""


def main() -> None:
    """Record or compare, as the arguments say; a difference ends with status 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, dest="command")
    recording = commands.add_parser("record")
    recording.add_argument("--output", type=Path, required=True)
    recording.add_argument("--skip", nargs="*", default=[], choices=list(_PARTS))
    comparing = commands.add_parser("compare")
    comparing.add_argument("files", type=Path, nargs=2)
    given = parser.parse_args()
    if given.command == "record":
        record(given.output, [name for name in _PARTS if name not in given.skip])
    else:
        sys.exit(compare(*given.files))


def record(output: Path, parts: Iterable[str]) -> None:
    """Write what each part computes, as name -> digest."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in parts:
            print(f"{name} ...", flush=True)
            results = _PARTS[name](Path(folder))
            found |= {f"{name}: {key}": value for key, value in results.items()}
            output.write_text(json.dumps(found, indent=1) + "\n")
    print(f"wrote {output}: {len(found)} results")


def compare(before: Path, after: Path) -> int:
    """Print how many results of each part are the same, and which are not; 0 if all are."""
    old, new = (json.loads(path.read_text()) for path in (before, after))
    common = old.keys() & new.keys()
    differing = sorted(key for key in common if old[key] != new[key])
    parts: dict[str, list[bool]] = {}
    for key in sorted(common):
        parts.setdefault(key.rpartition(": ")[0], []).append(old[key] == new[key])
    for part, same in parts.items():
        print(f"{part}: {sum(same)} of {len(same)} the same")
    for title, keys in (
        ("different", differing),
        ("only before", sorted(old.keys() - common)),
        ("only after", sorted(new.keys() - common)),
    ):
        print(f"{title}: {len(keys)}")
        for key in keys[:40]:
            print(f"  {key}")
    return int(bool(differing) or old.keys() != new.keys())


def _demo(folder: Path) -> dict[str, str]:
    said = _run("aegis-demo", f"--output_dir={folder / 'demo'}")
    table = said[said.rindex("Pretrained") :].partition("\n\n")[0]
    found = {"table": table}
    for run in ("none", "aegis"):
        root = folder / "demo" / run
        found |= {f"{run} {key}": value for key, value in _answers(root / "vqa").items()}
        found[f"{run} rollouts"] = _digest(_episodes(root / "rollouts" / "eval_info.json"))
        found |= _tensors(next(root.glob("training/checkpoints/0*")) / "pretrained_model", prefix=f"{run} ")
    return found


def _training(folder: Path) -> dict[str, str]:
    data = _recording(folder)
    fisher = folder / "fisher.safetensors"
    _run("aegis-anchor", "--vqa=tabletop", "--kinds=[fisher]", "--samples=32", f"--out={fisher}")
    found: dict[str, str] = {}
    for name, flags in _PROTECTIONS.items():
        out = folder / "training" / name
        _run(
            "lerobot-train",
            "--policy.type=aegis",
            "--policy.device=cpu",
            "--dataset.repo_id=local/same",
            f"--dataset.root={data}",
            f"--output_dir={out}",
            "--steps=5",
            "--save_freq=5",
            "--batch_size=8",
            "--num_workers=0",
            "--seed=0",
            *(flag.format(fisher=fisher) for flag in flags),
        )
        found |= _tensors(out / "checkpoints" / "000005" / "pretrained_model", prefix=f"{name}: ")
    return found


def _anchor(folder: Path) -> dict[str, str]:
    out = folder / "anchor.safetensors"
    _run("aegis-anchor", "--vqa=tabletop", "--samples=300", f"--out={out}")
    return _file_tensors(out)


def _vqa(folder: Path) -> dict[str, str]:
    _run("aegis-vqa", "--vlm=embedded", "--split=val", "--samples=200", f"--output_dir={folder / 'vqa'}")
    return _answers(folder / "vqa")


def _page(folder: Path) -> dict[str, str]:
    _run("aegis-report", f"--runs={_COMPARISON}", f"--output_dir={folder / 'page'}")
    page = (folder / "page" / "report.html").read_text()
    return {
        "text and tags": _digest(_shown(page)),
        "Markdown": _digest((folder / "page" / "comparison.md").read_text()),
        "summary.json": _digest(json.loads((folder / "page" / "summary.json").read_text())),
    }


_PARTS: dict[str, Callable[[Path], dict[str, str]]] = {
    "vqa": _vqa,
    "page": _page,
    "anchor": _anchor,
    "training": _training,
    "demo": _demo,
}


def _recording(folder: Path) -> Path:
    data = folder / "data"
    _run("aegis-record", "--env.type=aegis_tabletop", "--env.task=reach", "--episodes=4", f"--root={data}")
    return data


def _run(program: str, *arguments: str) -> str:
    """What a command of this environment prints."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / program), *arguments],
        env=_ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{program} {' '.join(arguments)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def _tensors(checkpoint: Path, prefix: str) -> dict[str, str]:
    """Digests of weights, of what the protection keeps, and of the normalisation."""
    return {
        f"{prefix}{file.name} {key}": value
        for file in sorted(checkpoint.glob("*.safetensors"))
        for key, value in _file_tensors(file).items()
    }


def _file_tensors(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as tensors:
        return {
            key: hashlib.sha256(tensors.get_tensor(key).float().numpy().tobytes()).hexdigest()[:16]
            for key in tensors.keys()  # noqa: SIM118
        }


def _answers(vqa: Path) -> dict[str, str]:
    samples = [json.loads(line) for line in (vqa / "samples.jsonl").read_text().splitlines()]
    results = json.loads((vqa / "results.json").read_text())
    kept = {key: value for key, value in results.items() if key not in ("model", "provenance")}  # hold places
    return {"samples.jsonl": _digest(samples), "results.json": _digest(kept)}


def _episodes(eval_info: Path) -> Any:
    return [
        {key: task["metrics"][key] for key in ("sum_rewards", "max_rewards", "successes")}
        for task in json.loads(eval_info.read_text())["per_task"]
    ]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class _Shown(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.pieces.append(f"<{tag} {sorted((name, value or '') for name, value in attrs)}>")

    def handle_endtag(self, tag: str) -> None:
        self.pieces.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.pieces += _DIFFERS_BY_NATURE.sub("", data).split()


def _shown(page: str) -> list[str]:
    """Tags, attributes and words in their order: white space between tags may differ."""
    parser = _Shown()
    parser.feed(page)
    return parser.pieces


if __name__ == "__main__":
    main()
