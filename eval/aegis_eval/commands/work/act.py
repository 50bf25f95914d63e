"""The work of `aegis-act`: every question acted on and answered, beside arms that ignore their instruction."""

import time
from collections.abc import Sequence
from itertools import batched
from pathlib import Path

from aegis_envs.tabletop.baselines import ARMS
from aegis_eval.commands.act import ActConfig
from aegis_eval.controllers import Controller, PolicyController, Rollout, roll_out
from aegis_eval.questions.acted import KINDS, ActedQuestion, pairs
from aegis_eval.results.acted import ABOUT, ActedKind
from aegis_eval.results.baselines import EXPERT
from aegis_eval.results.provenance import provenance
from aegis_eval.statistics.tables import Table
from aegis_eval.statistics.text import rate
from aegis_policy.support import cli
from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import write_json
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vqa.examples import exact_match

_IGNORING = [name for name in ARMS if name != EXPERT]


def act(config: ActConfig) -> Path:
    """Print a row a kind, and write what was done in every scene.

    Raises:
        AegisError: flags that name no checkpoint or kind, or ask for nothing.
    """
    started = time.monotonic()
    cli.require_at_least(config, scenes=1, batch_size=1, seed=0)
    if not config.kinds or not set(config.kinds) <= KINDS.keys():
        raise AegisError(f"--kinds=[{','.join(config.kinds)}]: choose some of {', '.join(KINDS)}.")
    controller = PolicyController(config.policy, config.device)
    found = []
    for kind in config.kinds:
        questions = [each for pair in pairs(kind, config.scenes, config.seed) for each in pair]
        rollouts = act_on(controller, questions, seed=config.seed, batch_size=config.batch_size)
        answers = _answers(controller.policy.vlm, questions, rollouts, config.batch_size)
        found.append(judged(kind, questions, rollouts, answers))
    print(f"{ABOUT}\n\n{_table(found).text()}\n")
    kinds = {each.kind: each.to_dict() for each in found}
    write_json(
        config.output,
        {"kinds": kinds, "provenance": provenance(config.seed, time.monotonic() - started)},
    )
    print(f"wrote {config.output}")
    return config.output


def act_on(
    controller: Controller, questions: Sequence[ActedQuestion], *, seed: int, batch_size: int
) -> list[Rollout]:
    """Every question's episode, in order; see `roll_out`."""
    episodes = [each.episode for each in questions]
    return list(roll_out(controller, episodes, seed=seed, batch_size=batch_size, title="acting"))


def judged(
    kind: str, questions: Sequence[ActedQuestion], rollouts: Sequence[Rollout], answers: Sequence[str]
) -> ActedKind:
    """Who went to an object that was meant, and said the answer."""
    ended = [rollout.ended["nearest_object"] for rollout in rollouts]
    return ActedKind(
        kind,
        ended,
        [there in each.wanted for there, each in zip(ended, questions, strict=True)],
        [exact_match(said, each.answer) for said, each in zip(answers, questions, strict=True)],
        {
            name: [
                sum(chance for at, chance in ARMS[name](each.episode).items() if at in each.wanted)
                for each in questions
            ]
            for name in _IGNORING
        },
    )


def _answers(
    vlm: VLMBackbone, questions: Sequence[ActedQuestion], rollouts: Sequence[Rollout], batch_size: int
) -> list[str]:
    """What the VLM says to each question, about the front image that its episode began with."""
    answers: list[str] = []
    for batch in batched(zip(questions, rollouts, strict=True), batch_size):
        pictures = [rollout.begun["pixels"]["front"] for _, rollout in batch]
        answers += vlm.answer(pictures, [each.question for each, _ in batch])
    return answers


def _table(found: Sequence[ActedKind]) -> Table:
    rows = [
        [each.kind, *(rate(each.estimate(values)) for values in (each.acted, each.answered))]
        + [rate(each.estimate(each.ignoring[name])) for name in _IGNORING]
        for each in found
    ]
    return Table(["%", "acted", "answered", *_IGNORING], rows)
