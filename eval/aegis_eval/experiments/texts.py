"""Files without pictures in an experiment: questions, and running text, for every trained backbone."""

from collections.abc import Sequence
from pathlib import Path

from aegis_eval.experiments import catalogue
from aegis_eval.experiments.plan import alone
from aegis_eval.experiments.stage import Job, Stage
from aegis_eval.questions.records import WHOLE
from aegis_eval.questions.texts import TextQuestions
from aegis_eval.results.text_files import TEXT
from aegis_policy.support.errors import AegisError
from aegis_policy.vqa.sources import expanded
from aegis_policy.vqa.texts import RUNNING, SOURCE, read_paragraphs, text_file


def check_texts(files: Sequence[str]) -> None:
    """Read all of `--texts`, as nobody wants to hear of a line after the trainings.

    Raises:
        AegisError: one cannot be read, or several have one name.
    """
    for file in files:
        path = text_file(f"{SOURCE}:{file}", "--texts: ")
        assert path is not None
        if path.suffix == RUNNING:
            read_paragraphs(path, 1)
        else:
            TextQuestions.of(path).drawn(None, WHOLE, 1, 0)
    names = [Path(file).stem for file in files]
    if twice := [name for name in names if names.count(name) > 1]:
        raise AegisError(f"--texts: several files are called {twice[0]}: give them different names.")


def pretrained_jobs(root: Path, files: Sequence[str], *, vlm: str, device: str | None) -> list[Job]:
    """Ask the pretrained model the questions; running text it reads beside each trained one."""
    stages = [
        catalogue.text(folder.name, folder, file=_file(each), vlm=vlm, device=device)
        for each in files
        if (folder := _answers_folder(root, each)) is not None
    ]
    return [alone(stage, root) for stage in stages]


def stages(
    root: Path, folder: Path, files: Sequence[str], *, checkpoint: Path, device: str | None, prefix: str = ""
) -> list[Stage]:
    """Ask the backbone of a run.

    Args:
        root: of the experiment.
        folder: of the run.
        files: as `--texts` names them.
        checkpoint: of the run.
        device: `cuda` or `cpu`.
        prefix: of the stages' names.
    """
    return [
        catalogue.text(
            f"{prefix}{name}",
            folder / name,
            file=_file(each),
            checkpoint=checkpoint,
            pretrained=_answers_folder(root, each),
            device=device,
        )
        for each in files
        for name in [f"{TEXT}{_file(each).stem}"]
    ]


def _answers_folder(root: Path, text: str) -> Path | None:
    """What the pretrained model answers to a file of questions; None of running text."""
    file = _file(text)
    return None if file.suffix == RUNNING else root / f"pretrained-{TEXT}{file.stem}"


def _file(text: str) -> Path:
    return Path(expanded(text))
