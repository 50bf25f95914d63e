"""Everything that was measured in a comparison of protections: the content of `comparison.json`, raw.

What follows from it, with intervals, is `aegis_eval.results.comparison`'s business.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from aegis_eval.results.baselines import Baseline
from aegis_policy.support.errors import AegisError, one_line
from aegis_policy.support.json_files import read_json

ALL = "all"
"""Stands for all tasks, or all types of question, together."""


@dataclass(frozen=True)
class Questions:
    """What every run is asked in one benchmark.

    Attributes:
        types: type of each question.
        scenes: number of the scene that each is about.
        pretrained: a `1` for each that the pretrained model answers correctly.
    """

    types: list[str]
    scenes: list[int]
    pretrained: str


@dataclass(frozen=True)
class ComparedRun:
    """One training and everything that was measured of it.

    Attributes:
        protection: name of the variant.
        lr: learning rate of the backbone.
        seed: of the training.
        rollouts: split -> task -> a `1` for every episode that succeeded, in the order of the initial states.
        answers: benchmark -> a `1` for every question answered correctly.
        swaps: task -> `pairs`, `followed`, `changed` of `aegis-swap`.
        acted: kind -> what `measured.acted` found; empty where the arm was not asked.
        texts: file without pictures -> what was found of it, see `text_files`.
        curve: `step` and `alpha` -> places on the way to the last checkpoint, and back from it by `aegis-merge`: `at`,
            and `outcomes` on test scenes and `answers` about scenes there.
        drift: mean relative drift of the activations.
        drift_per_layer: the same of every decoder layer.
        folder: name of the run's folder; protections that are the same training share one.
        curves: of the training log: name -> {"steps", "values"}.
        seconds: stage -> how long it took.
    """

    protection: str
    lr: float
    seed: int
    rollouts: dict[str, dict[str, str]]
    answers: dict[str, str]
    swaps: dict[str, dict[str, int]]
    drift: float
    drift_per_layer: list[float]
    folder: str
    acted: dict[str, dict[str, Any]] = field(default_factory=dict)
    texts: dict[str, dict[str, Any]] = field(default_factory=dict)
    curve: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def outcomes(self, split: str, task: str) -> str:
        """A `1` for every episode of a task that succeeded; of `ALL` tasks one after the other."""
        by_task = self.rollouts[split]
        return "".join(by_task.values()) if task == ALL else by_task[task]


@dataclass(frozen=True)
class Compared:
    """A comparison as `aegis-compare` wrote it.

    Attributes:
        config: its flags.
        protections: name -> flags of the training; the order is that of every table.
        expert: split -> task -> a `1` for every episode in which the scripted expert succeeded.
        questions: benchmark -> what was asked.
        runs: every training, in the order of `protections`.
        tuned: protection -> the learning rate that was chosen for it; empty where none was.
        tuning: what was measured for that choice: `protection`, `lr`, `success`, `retained`.
        provenance: where all this comes from.
        baselines: arms that ignore their instruction, in the same scenes; none in a file of an older version.
    """

    config: Mapping[str, Any]
    protections: Mapping[str, list[str]]
    expert: Mapping[str, Mapping[str, str]]
    questions: Mapping[str, Questions]
    runs: list[ComparedRun]
    tuned: Mapping[str, float]
    tuning: list[Mapping[str, Any]]
    provenance: Mapping[str, Any]
    baselines: list[Baseline] = field(default_factory=list)

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> Self:
        """Build one from the JSON that `aegis-compare` writes.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        order = list(written["protections"])
        runs = [ComparedRun(**run) for run in written["runs"]]
        return cls(
            config=written["config"],
            protections=written["protections"],
            expert=written["expert"],
            questions={name: Questions(**asked) for name, asked in written["questions"].items()},
            runs=sorted(runs, key=lambda run: order.index(run.protection)),
            tuned=written["tuned"],
            tuning=written["tuning"],
            provenance=written["provenance"],
            baselines=[Baseline(**each) for each in written.get("baselines", [])],
        )

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a `comparison.json`.

        Raises:
            AegisError: it is not one.
        """
        try:
            return cls.of(read_json(file))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AegisError(
                f"{file} is not what aegis-compare writes ({type(error).__name__}: {one_line(error)}): name "
                "its --output_dir."
            ) from error

    def at_common_rate(self) -> list[ComparedRun]:
        """The runs at the one learning rate of the backbone that all protections were trained with; none where trials
        were listed."""
        if self.config.get("trials"):
            return []
        return [run for run in self.runs if run.lr == self.config["lr_backbone"]]

    def at_own_rates(self) -> list[ComparedRun]:
        """The runs of each protection at the learning rate that was chosen for it; none where none was chosen."""
        return [run for run in self.runs if run.lr == self.tuned.get(run.protection)]
