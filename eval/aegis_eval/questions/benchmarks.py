"""All benchmarks by the name that `--benchmark` gives them.

A new one is a line of `TABLETOP`, where images are rendered, of `PUBLIC`, where questions are read, or of `CHOICES`,
where they have options. A new type of question about rendered images is a line of
`aegis_eval.questions.templated.MAKERS`.
"""

from aegis_eval.questions.annotated import ANNOTATED
from aegis_eval.questions.choices import CHOICES
from aegis_eval.questions.public import PUBLIC
from aegis_eval.questions.sample import Benchmark
from aegis_eval.questions.tabletop import TABLETOP
from aegis_eval.questions.texts import TextQuestions
from aegis_policy.support.errors import AegisError
from aegis_policy.vqa.texts import SOURCE, text_file

BENCHMARKS: dict[str, Benchmark] = {**TABLETOP, **PUBLIC, **CHOICES, ANNOTATED.name: ANNOTATED}


def find_benchmark(name: str, place: str | None = None) -> Benchmark:
    """The benchmark of this name.

    Args:
        name: of `--benchmark`; `text:FILE` are the questions of that file.
        place: of `--vqa.path`.

    Raises:
        AegisError: there is none, or it takes no place.
    """
    file = text_file(name, "--benchmark=")
    benchmark = BENCHMARKS.get(name) if file is None else TextQuestions.of(file)
    if benchmark is None:
        known = ", ".join(BENCHMARKS)
        raise AegisError(f"--benchmark={name} is not known: choose from {known}, or give {SOURCE}:FILE.")
    if place is not None and not benchmark.takes_place:
        raise AegisError(
            f"--vqa.path goes with public benchmarks, lerobot and custom, not with --benchmark={name}."
        )
    return benchmark
