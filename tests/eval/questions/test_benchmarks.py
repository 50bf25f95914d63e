"""One table finds every benchmark, wherever its questions come from."""

import inspect
from importlib.metadata import entry_points

import pytest

from aegis_eval.questions.benchmarks import BENCHMARKS, find_benchmark
from aegis_eval.questions.choices import CHOICES
from aegis_eval.questions.sample import Benchmark
from aegis_policy.support.errors import AegisError
from aegis_policy.vqa.texts import SOURCE


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_what_a_command_needs_of_it(name: str) -> None:
    benchmark = find_benchmark(name)
    assert benchmark.name == name and isinstance(benchmark.reported, str)
    own_measure = name in ("mmstar", "mmbench", "mmmu")  # lmms-eval reports another one
    assert (benchmark.lmms_eval_task is not None) == (benchmark.takes_place and not own_measure)
    for method in ("draw", "training", "figures"):
        wanted = inspect.signature(getattr(Benchmark, method)).parameters
        assert list(inspect.signature(getattr(type(benchmark), method)).parameters) == list(wanted)


def test_what_training_can_ask_is_asked_under_the_same_name() -> None:
    offered = {point.name for point in entry_points(group="aegis_policy.vqa")}
    tests_alone = {"pope", *CHOICES}
    assert offered - {SOURCE} == set(BENCHMARKS) - tests_alone, "these have no training questions"
    assert SOURCE in offered, "a file that each of them names"


@pytest.mark.parametrize(
    ("name", "place", "sentence"),
    [
        ("trivia", None, "--benchmark=trivia is not known: choose from tabletop, .*, vqav2, .*, custom"),
        (
            "tabletop",
            "x",
            "--vqa.path goes with public benchmarks, lerobot and custom, not with --benchmark=tabletop",
        ),
    ],
)
def test_what_cannot_be_asked_is_named(name: str, place: str | None, sentence: str) -> None:
    with pytest.raises(AegisError, match=sentence):
        find_benchmark(name, place)
