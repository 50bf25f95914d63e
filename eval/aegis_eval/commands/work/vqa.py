"""The work of `aegis-vqa`: choose questions, ask them, score the answers, write them down."""

import hashlib
import os
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

from accelerate import PartialState

from aegis_eval.answers.asking import Asking
from aegis_eval.answers.blind import BlindBaseline, blind_baseline
from aegis_eval.answers.pretrained import PretrainedAnswers
from aegis_eval.answers.running_text import PARAGRAPHS, TextFigures, read_texts, write_texts
from aegis_eval.answers.scoring import format_table, score_answers
from aegis_eval.answers.writing import Outcome, write_answers
from aegis_eval.checkpoints import Origin, is_vla, load_original_vlm, load_policy_vlm
from aegis_eval.commands.vqa import VqaConfig
from aegis_eval.devices import torch_device
from aegis_eval.questions.benchmarks import find_benchmark
from aegis_eval.questions.from_records import require_decoded
from aegis_eval.questions.records import WHOLE
from aegis_eval.questions.sample import Benchmark, Drawn, fingerprint
from aegis_eval.results.provenance import provenance
from aegis_policy.checkpoint.card import VQAScore, add_score
from aegis_policy.support import cli, ranks
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import alone, require_new_directory
from aegis_policy.support.finding import enforce
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.checks import check_vlm
from aegis_policy.vqa.examples import ANSWER_TOKENS, SENTENCE_TOKENS
from aegis_policy.vqa.texts import RUNNING, SOURCE, read_paragraphs, text_file

_FEWEST_SCENES = 40
"""Training scenes that a blind guesser knows at least."""
_LONGEST_WAIT = timedelta(hours=12)


def evaluate(config: VqaConfig) -> Path:
    """Choose questions, ask them, score the answers, write and print; return the folder with `results.json`.

    Raises:
        AegisError: flags that do not name one usable model, benchmark and free output folder.
    """
    started, date = time.monotonic(), datetime.now().astimezone()
    output_dir = _prepare(config, date)
    with alone(output_dir, "--output_dir") if ranks.index() == 0 else nullcontext():
        _require_new(output_dir)
        _evaluate(config, output_dir, date, started)
    return output_dir


def _evaluate(config: VqaConfig, output_dir: Path, date: datetime, started: float) -> None:
    text = text_file(config.benchmark, "--benchmark=")
    if text is not None and text.suffix == RUNNING:
        _read_text(config, text, output_dir, started)
    else:
        _ask_questions(config, output_dir, date, started)


def _read_text(config: VqaConfig, file: Path, output_dir: Path, started: float) -> None:
    """Have the model and the VLM it was made from read running text; both are in memory."""
    if config.pretrained_answers is not None:
        raise AegisError(
            f"--pretrained_answers says nothing about running text ({config.benchmark}): leave it out."
        )
    paragraphs = read_paragraphs(file, config.samples, config.seed)
    vlm, made_from, _ = _load_model(config)
    pretrained, note = load_original_vlm(made_from, config.pretrained)
    readings = read_texts(vlm, pretrained and pretrained.to(vlm.device), paragraphs)
    if ranks.index() > 0:
        return
    figures = TextFigures.of(readings, compared=pretrained is not None)
    about = {
        "model": str(config.policy.path or config.vlm),
        "vlm_fingerprint": vlm.fingerprint(),
        "benchmark": f"{SOURCE}:{file.name}",
        "split": WHOLE,
        "pretrained_model": pretrained.name if pretrained is not None else None,
    }
    origin = provenance(
        config.seed,
        time.monotonic() - started,
        benchmark_fingerprint=hashlib.sha256("\n\n".join(paragraphs).encode()).hexdigest()[:16],
        config=asdict(config),
    )
    write_texts(output_dir, about, figures, paragraphs, readings, origin)
    print(figures)
    if note:
        print(note)
    print(f"wrote {output_dir / 'results.json'} and {output_dir / PARAGRAPHS}")


def _ask_questions(config: VqaConfig, output_dir: Path, date: datetime, started: float) -> None:
    questions = ranks.first_alone(lambda: _choose(config))
    asked = _ask(config, questions, output_dir)
    if ranks.index() > 0:
        return
    outcome = _score(questions, asked)
    seconds = time.monotonic() - started
    origin = provenance(
        config.seed,
        seconds,
        benchmark_fingerprint=fingerprint(questions.drawn.samples),
        pictures_fingerprint=questions.pictures,
        config={**asdict(config), "max_new_tokens": _longest_answer(config)},
    )
    # Before there are results, for a command that has them is not given again.
    if asked.checkpoint is not None:
        _note_on_card(asked.checkpoint, outcome, config)
    write_answers(output_dir, outcome, origin, date=date, seconds=seconds)
    shutil.rmtree(_logs(output_dir), ignore_errors=True)
    _print(outcome, asked.note)
    print(f"wrote {output_dir / 'results.json'} and {output_dir / 'samples.jsonl'}")


@dataclass(frozen=True)
class _Questions:
    """The questions that were chosen, and a guesser of them if the benchmark has training questions.

    Attributes:
        pictures: on the first rank, a hash of those that are read from files.
    """

    benchmark: Benchmark
    split: str
    drawn: Drawn
    blind: BlindBaseline | None
    pictures: str | None


@dataclass(frozen=True)
class _Asked:
    """What the model said, with its name and the fingerprint of its weights.

    Attributes:
        checkpoint: folder or hub id, if the model is in a policy.
        pretrained: what the VLM it was made from said.
        note: why there are no such answers.
    """

    model: str
    fingerprint: str
    answers: list[str]
    checkpoint: str | None
    pretrained: PretrainedAnswers | None
    note: str


def _prepare(config: VqaConfig, date: datetime) -> Path:
    """Find out before the work what cannot work, and join the other ranks; returns the folder of the results."""
    cli.require_at_least(config, samples=1, batch_size=1, seed=0)
    if config.max_new_tokens is not None:
        cli.require_at_least(config, max_new_tokens=1)
    if "WORLD_SIZE" in os.environ:
        # Joins the other ranks, on this one's device; they wait while the first fetches the questions.
        PartialState(cpu=config.device == "cpu", timeout=_LONGEST_WAIT)
    torch_device(config.device)
    _check_pretrained(config)
    return _output_directory(config, date)


def _longest_answer(config: VqaConfig) -> int:
    of_text = config.benchmark.startswith(f"{SOURCE}:")
    return config.max_new_tokens or (SENTENCE_TOKENS if of_text else ANSWER_TOKENS)


def _choose(config: VqaConfig) -> _Questions:
    benchmark = find_benchmark(config.benchmark, config.vqa.path)
    split = benchmark.find_split(config.vqa.path, config.split or benchmark.reported)
    drawn = benchmark.draw(config.vqa.path, split, config.samples, config.seed, config.cache_dir)
    blind = blind_baseline(benchmark, max(_FEWEST_SCENES, config.samples), cache_dir=config.cache_dir)
    seen = require_decoded(drawn.samples) if ranks.index() == 0 else []
    pictures = hashlib.sha256("".join(seen).encode()).hexdigest()[:16] if seen else None
    return _Questions(benchmark, split, drawn, blind, pictures)


def _ask(config: VqaConfig, questions: _Questions, output_dir: Path) -> _Asked:
    """Ask the model, then the VLM it was made from, unless that is known from before."""
    vlm, origin, checkpoint = _load_model(config)
    model = str(config.policy.path or config.vlm)
    asking = Asking(
        questions.drawn.samples,
        config.batch_size,
        _longest_answer(config),
        # An interrupted command can only find again a folder that it was given.
        logs=_logs(output_dir) if config.output_dir is not None else None,
    )
    before, note = None, ""
    if config.pretrained_answers is not None:
        before = PretrainedAnswers.read(config.pretrained_answers, asking, origin, questions.pictures)
    answers = asking.ask(vlm, model, "answering")
    of_weights = vlm.fingerprint()
    del vlm  # there may be no room for two
    if before is None:
        before, note = _ask_pretrained(config, origin, asking)
    return _Asked(model, of_weights, answers, checkpoint, before, note)


def _score(questions: _Questions, asked: _Asked) -> Outcome:
    samples, before = questions.drawn.samples, asked.pretrained
    return Outcome(
        model=asked.model,
        fingerprint=asked.fingerprint,
        benchmark=questions.benchmark,
        split=questions.split,
        drawn=questions.drawn,
        answers=asked.answers,
        pretrained=before,
        scores=score_answers(
            samples, asked.answers, questions.blind, before.answers if before is not None else None
        ),
        figures=questions.benchmark.figures(samples, asked.answers),
    )


def _print(outcome: Outcome, note: str) -> None:
    print(format_table(outcome.scores))
    for kind, figures in outcome.figures.items():
        print(f"{kind}: " + ", ".join(f"{name} {100 * value:.1f} %" for name, value in figures.items()))
    if note:
        print(note)


def _logs(output_dir: Path) -> Path:
    """The folder of kept answers, beside the results, which only exist once they are whole."""
    return output_dir.with_name(f".{output_dir.name}.answers")


def _output_directory(config: VqaConfig, date: datetime) -> Path:
    if config.output_dir is not None:
        return config.output_dir
    folder = Path(config.policy.path or config.vlm or "vlm").resolve()
    name = folder.parent.name if folder.name == "pretrained_model" else folder.name
    return Path("outputs") / "vqa" / f"{date:%Y-%m-%d_%H-%M-%S}_{name}"


def _require_new(output_dir: Path) -> None:
    if (output_dir / "results.json").is_file():
        shutil.rmtree(_logs(output_dir), ignore_errors=True)  # they are in the results
    require_new_directory(output_dir, "--output_dir")


def _load_model(config: VqaConfig) -> tuple[VLMBackbone, Origin | None, str | None]:
    """The model to ask and, if it is in a policy, what it was made from and the policy's folder or hub id."""
    if (config.policy.path is None) == (config.vlm is None):
        raise AegisError(
            "give exactly one of --policy.path (a checkpoint) and --vlm (a model to ask as it is)."
        )
    if config.vlm is not None:
        vlm = VLMBackbone.from_pretrained(config.vlm, flag="--vlm")
        return vlm.to(torch_device(config.device)), None, None
    vlm, origin, checkpoint = load_policy_vlm(config.policy, to_answer=True)
    return vlm.to(torch_device(config.device)), origin, checkpoint


def _ask_pretrained(
    config: VqaConfig, origin: Origin | None, asking: Asking
) -> tuple[PretrainedAnswers | None, str]:
    """Its answers, or None and a sentence why it cannot be asked."""
    vlm, note = load_original_vlm(origin, config.pretrained)
    if vlm is None:
        return None, note
    vlm.to(torch_device(config.device))
    return PretrainedAnswers(vlm.name, asking.ask(vlm, vlm.name, "pretrained")), note


def _check_pretrained(config: VqaConfig) -> None:
    """Find out before the work that there is nothing to compare with; weights are loaded only when needed."""
    answers = config.pretrained_answers
    if answers is not None and not (answers / "results.json").is_file():
        raise AegisError(
            f"--pretrained_answers={answers} holds no results.json: name the output of an aegis-vqa."
        )
    if config.pretrained is not None:
        if answers is not None:
            raise AegisError("give at most one of --pretrained and --pretrained_answers.")
        if not is_vla(config.pretrained):
            enforce(check_vlm(config.pretrained, "--pretrained"))


def _note_on_card(checkpoint: str, outcome: Outcome, config: VqaConfig) -> None:
    """Leave the score in the checkpoint's model card, if it can be written; `before` is the VLM it was made from."""
    place = f" in {Path(config.vqa.path).name}" if config.vqa.path else ""
    score = outcome.scores.overall
    before, change = None, None
    if score.pretrained is not None and config.pretrained is None:
        before, paired = score.pretrained.accuracy, score.pretrained.paired
        change = (paired.difference, *paired.ci)
    noted = VQAScore(
        f"{outcome.benchmark.name}{place}, {outcome.split}", score.n, score.accuracy, before, change
    )
    try:
        add_score(Path(checkpoint), noted)
    except (AegisError, OSError) as error:
        print(f"The score was not added to the card of {checkpoint}: {error}")
