"""Makes `lmms_eval_scores.json`: answers of every kind to public benchmarks, with the scores that lmms-eval gives them.

    uv venv lmms && uv pip install --python lmms lmms-eval==0.7.3
    lmms/bin/python tests/eval/score_with_lmms_eval.py tests/eval/lmms_eval_scores.json

It runs in lmms-eval's own environment and knows nothing of this package.
"""

import json
import random
import sys
from importlib.metadata import version
from pathlib import Path

from lmms_eval.api.metrics import exact_match_hf_evaluate
from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor
from lmms_eval.tasks.ok_vqa.utils import ok_vqa_process_results
from lmms_eval.tasks.pope import utils as pope
from lmms_eval.tasks.textvqa.utils import textvqa_process_results
from lmms_eval.tasks.vqav2.utils import vqav2_process_results

RULES = EvalAIAnswerProcessor
PLAIN = [
    "red",
    "two dogs",
    "on the table",
    "Yes",
    "NO",
    "a cat",
    "an apple",
    "The Beatles",
    "none",
    "stop sign",
    "7",
    "",
]
ODD = [
    "3.5",
    "1,000",
    "1,000 - 2,000",
    "12:30",
    "u.s.a.",
    "7.",
    ".5",
    "mr. smith",
    "it's",
    "the man's hat",
    "what?",
    "yes, it is",
]
ODD += [
    "new\nyork",
    "tab\there",
    "  spaced  ",
    "." * 40,
    "a.b. " * 20,
    "x-ray",
    "black/white",
    "(left)",
    "5 + 5",
    "e=mc2",
    "é.",
    "１,２",
]


def variants(answer: str, rng: random.Random) -> list[str]:
    """The same answer as other people, or models, would write it."""
    mark = rng.choice(RULES.PUNCTUATIONS)
    words = answer.split()
    place = rng.randrange(len(words) + 1)
    return [
        answer,
        answer.upper(),
        f"the {answer}",
        f"{answer}.",
        f"{answer}{mark}",
        f"{answer} {mark}",
        f"{mark}{answer}",
        " ".join([*words[:place], mark, *words[place:]]),
        answer.replace(" ", mark),
        f" {answer}\n",
    ]


def main() -> None:
    rng = random.Random(0)
    base = (
        PLAIN
        + ODD
        + list(RULES.NUMBER_MAP)
        + sorted(set(RULES.CONTRACTIONS) | set(RULES.CONTRACTIONS.values()))
    )
    base += [f"a{mark}b" for mark in RULES.PUNCTUATIONS] + [f"a {mark} b" for mark in RULES.PUNCTUATIONS]
    cases = []
    for number, answer in enumerate(base):
        given = rng.choice(variants(answer, rng))
        people = [
            rng.choice(variants(answer, rng)) if rng.random() < 0.5 else rng.choice(base) for _ in range(10)
        ]
        scores = {
            "vqav2": vqav2_process_results(
                {
                    "question_id": number,
                    "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(people)],
                },
                [given],
            )["exact_match"],
            "okvqa": ok_vqa_process_results({"question_id": number, "answers": list(people)}, [given])[
                "exact_match"
            ],
            "textvqa": textvqa_process_results({"question_id": number, "answers": list(people)}, [given])[
                "exact_match"
            ],
            "gqa": float(
                exact_match_hf_evaluate([given], [people[0]], ignore_case=True, ignore_punctuation=True)[
                    "exact_match"
                ]
            ),
        }
        cases.append({"given": given, "people": people, "scores": scores})
    answers = [rng.choice(["yes", "no", "Yes", " no", "No.", "yes, it is", "maybe", ""]) for _ in range(200)]
    truth = [rng.choice(["yes", "no", "Yes "]) for _ in answers]
    judged = [
        pope.pope_process_results({"question_id": i, "answer": t}, [a])["pope_accuracy"]
        for i, (a, t) in enumerate(zip(answers, truth, strict=True))
    ]
    figures = {
        name: getattr(pope, f"pope_aggregate_{function}")(judged)
        for name, function in (
            ("accuracy", "accuracy"),
            ("precision", "precision"),
            ("recall", "recall"),
            ("f1", "f1_score"),
            ("yes_ratio", "yes_ratio"),
        )
    }
    result = {
        "lmms_eval": version("lmms-eval"),
        "answers": cases,
        "pope": {"given": answers, "truth": truth, "scores": figures},
    }
    lines = ",\n".join(json.dumps(case) for case in cases)
    rest = json.dumps({key: value for key, value in result.items() if key != "answers"})
    Path(sys.argv[1]).write_text(f'{rest[:-1]}, "answers": [\n{lines}\n]}}\n')
    print(f"{len(cases)} answers, {len(answers)} of POPE")


if __name__ == "__main__":
    main()
