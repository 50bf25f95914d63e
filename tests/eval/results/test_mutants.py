"""Results that somebody or something has changed get a page, or a sentence that says which file to mend."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from mutants import mutate_bytes, mutate_json

from aegis_eval.results.baselines import read_baselines
from aegis_eval.results.compared import Compared, ComparedRun
from aegis_eval.results.rollouts import read_rollouts
from aegis_eval.results.rows import with_added_rows
from aegis_eval.results.run import read_answers, read_vqa
from aegis_eval.results.run_file import RunFile
from aegis_eval.results.swap import read_swaps
from aegis_eval.results.training_log import read_curves
from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import write_json, write_jsonl

FEW, MANY = 25, 2_000
_LONGEST = 4_000


@pytest.fixture(scope="module")
def results(
    finished_runs: SimpleNamespace, comparison_results: dict, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with one file of every kind that `aegis-report` reads."""
    folder, run = tmp_path_factory.mktemp("results"), finished_runs.aegis
    for file in (run / "eval" / "eval_info.json", run / "vqa" / "results.json", run / "swap.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    lines = (run / "vqa" / "samples.jsonl").read_bytes().splitlines(keepends=True)[:5]
    (folder / "samples.jsonl").write_bytes(b"".join(lines))
    (folder / "train.log").write_bytes((run / "train.log").read_bytes())
    write_jsonl(folder / "metrics.jsonl", [{"step": 10 * i, "loss": 1.0 / i} for i in (1, 2, 3)])
    write_json(folder / "baseline.json", {"arms": {"any object": {"reach": [0.5, 1.0], "push": [0.0, 0.25]}}})
    write_json(folder / "comparison.json", comparison_results)
    mine = ComparedRun(**comparison_results["runs"][0])
    answers = {"accuracy": 0.5, "correct": "10", "scenes": [0, 1], "pretrained": {"accuracy": 0.8}}
    measured = {
        "training": mine.curves,
        "swap": mine.swaps,
        "drift": {"drift": 0.1, "per_layer": [0.1]},
        "rollouts-val": {"reach": "10"},
        **{f"rollouts-{split}": outcomes for split, outcomes in mine.rollouts.items()},
        **dict.fromkeys(("vqa-tabletop-val", *(f"vqa-{name}" for name in mine.answers)), answers),
    }
    RunFile(
        "mine", mine.lr, 0, "mine-0", ["--x=1"], {"steps": 20}, measured, {"training": {"seconds": 1}}
    ).write(folder / "mine-seed0.json")
    return folder


def _join(file: Path) -> None:
    with_added_rows(Compared.read(file.parent / "comparison.json"), file.parent)


KINDS: dict[str, Callable[[Path], object]] = {
    "eval_info.json": lambda file: read_rollouts(file.parent).overall.ci,
    "results.json": lambda file: read_vqa(file.parent),
    "samples.jsonl": lambda file: read_answers(file.parent),
    "swap.json": lambda file: [(each.followed_ci, each.changed_ci) for each in read_swaps(file)],
    "train.log": read_curves,
    "metrics.jsonl": read_curves,
    "baseline.json": read_baselines,
    "comparison.json": Compared.read,
    "mine-seed0.json": _join,
}
"""File -> how it is read, and what of it is computed before a page is drawn."""


def _mutant(whole: bytes, name: str, rng: random.Random) -> bytes:
    if name.endswith(".log") or rng.random() < 0.2:
        return mutate_bytes(whole, rng)
    if name.endswith(".jsonl"):
        lines = whole.splitlines()
        changed = rng.randrange(len(lines))
        lines[changed] = json.dumps(mutate_json(json.loads(lines[changed]), rng)).encode()
        return b"\n".join(lines)
    return json.dumps(mutate_json(json.loads(whole), rng, rng.randint(1, 2))).encode()


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KINDS)
def test_mutants_of_results_are_read_or_refused(results: Path, name: str, count: int) -> None:
    file, refused = results / name, 0
    whole = file.read_bytes()
    for seed in range(count):
        rng = random.Random(f"{name} {seed}")
        file.write_bytes(_mutant(whole, name, rng))
        try:
            KINDS[name](file)
        except AegisError as error:
            refused += 1
            assert str(results) in str(error) and len(str(error)) < _LONGEST, (seed, str(error))
        except Exception as error:
            raise AssertionError(f"{name} {seed}: {file.read_bytes()[:2000]!r}") from error
        finally:
            file.write_bytes(whole)
    assert refused > count // 20
