"""Makes `lmms_eval_letters.json`: what models say to questions with options, with the scores that lmms-eval gives it.

    uv venv lmms && uv pip install --python lmms lmms-eval==0.7.3
    lmms/bin/python tests/eval/questions/letters_with_lmms_eval.py tests/eval/questions/lmms_eval_letters.json

It runs in lmms-eval's own environment and knows nothing of this package.
"""

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from lmms_eval.api.metrics import exact_match_hf_evaluate
from lmms_eval.tasks._task_utils import mmmu_mcq_utils
from lmms_eval.tasks.ai2d.utils import MultiChoiceRegexFilter
from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator
from lmms_eval.tasks.mmmu.utils import evaluate_mmmu, mmmu_process_results
from lmms_eval.tasks.mmstar.utils import mmstar_process_results
from lmms_eval.tasks.realworldqa.utils import realworldqa_process_results

OPTIONS = {"A": "a cat", "B": "a dog", "C": "two dogs", "D": "an apple"}
RIGHT = "B"
SAID = [
    "B",
    "b",
    "(B)",
    "B.",
    "B)",
    "B:",
    " B\n",
    "**B**",
    "(B",
    '"B"',
    "'B'.",
    "B. a dog",
    "B: a dog",
    "B a dog",
    "A",
    "C.",
    "(D)",
    "E",
    "",
    "?",
    "a dog",
    "A dog",
    "A dog. The answer is B",
    "Two dogs, so C",
    "Bus",
    "BD",
    "The answer is B",
    "the answer is (B).",
    "The answer is A, not B.",
    "Answer: B",
    "My choice is B because of A",
    "I pick B over C",
    "It is B or C",
    "Options A, B and C are wrong: D",
    "A) no\nB) yes",
    "The dog, (B), barks",
    "B is wrong, C is right",
    "C is right, not B",
    "Best option is (B)",
    "the best choice is: B",
    "答案是B",
    "정답은 B",
    "A cat and a dog",
    "an apple",
    "neither",
    "None of the above",
    "I would say a dog it is",
    "AB",
    "A B",
]
WORDS = ["yes", "Yes.", " YES ", "yes it is", "no", "", "Yes!", "yes..", "'yes'"]
OPEN = {
    "3.5": [
        "3.5",
        "3.50",
        "It is 3.5 m",
        "x = 3.5",
        "3.504",
        "3.51",
        "35",
        "about 3,5",
        "3.5e0",
        "-3.5",
        "",
        "three",
    ],
    "1200": ["1,200", "1200.", "The answer is 1,200 dollars", "so 1.2e3", "12 00", "between 1100 and 1200"],
    "0.5": [".5", "1/2", "0.5%", "0.501 or so", "thus 0.5\nfinal answer 0.7", "0.7\nthe result is 0.5"],
    "B": ["B", "b", "the bus", "It is B", "B is right", "a b"],
    "Baroque": [
        "baroque",
        "It is the Baroque.",
        "Baroque style",
        "Rococo",
        "is",
        "so:",
        "It could be Rococo. So Baroque",
    ],
    "nitric acid": ["Nitric Acid", "It is nitric\nacid", "acid", "HNO3, which is nitric acid"],
}
"""Right answer of a question without options -> what models say."""

ROTATED = [
    {"index": 7, "A": "a cat", "B": "a dog", "answer": "A", "prediction": "A"},
    {"index": 1_000_007, "A": "a dog", "B": "a cat", "answer": "B", "prediction": "(B)"},
    {"index": 8, "A": "red", "B": "blue", "answer": "B", "prediction": "B."},
    {"index": 1_000_008, "A": "blue", "B": "red", "answer": "A", "prediction": "B"},
    {"index": 9, "A": "left", "B": "right", "answer": "A", "prediction": "It is right, I think"},
    {"index": 1_000_009, "A": "right", "B": "left", "answer": "B", "prediction": "left"},
]
"""Questions of MMBench in each order of their options, with what a model said."""


def starred(said: str) -> float:
    row = {"answer": RIGHT, "category": "math", "l2_category": "geometry", "index": 0}
    return mmstar_process_results(row, [said])["average"]["score"]


def diagram(said: str) -> float:
    (letter,) = MultiChoiceRegexFilter("([A-Z])\\.").apply([[said]], [{}])
    return float(
        exact_match_hf_evaluate([letter], [RIGHT], ignore_case=True, ignore_punctuation=True)["exact_match"]
    )


def benched(said: str) -> float:
    row = {
        "index": 1,
        "question": "What is it?",
        "answer": RIGHT,
        "prediction": said.strip(),
        "category": "x",
    }
    accuracy, *_ = mmbench_evaluator.eval_result([{**row, **OPTIONS}], eval_method="static")
    return float(accuracy)


def college(said: str, right: str, options: Sequence[str] = ()) -> float:
    row = {"id": "validation_Art_1", "answer": right, "options": repr(list(options))}
    row["question_type"] = "multiple-choice" if options else "open"
    _, figures = evaluate_mmmu([mmmu_process_results(row, [said])["mmmu_acc"]])
    return float(figures["acc"])


def main() -> None:
    mmmu_mcq_utils.random.choice = lambda options: ""  # where it finds no letter; without this, any of them
    cases = [
        {
            "given": said,
            "scores": {
                "mmstar": starred(said),
                "realworldqa": realworldqa_process_results({"answer": RIGHT}, [said])["exact_match"],
                "ai2d": diagram(said),
                "mmbench": benched(said),
                "mmmu": college(said, RIGHT, [*OPTIONS.values()]),
            },
        }
        for said in SAID
    ]
    words = [
        {"given": said, "score": realworldqa_process_results({"answer": "Yes"}, [said])["exact_match"]}
        for said in WORDS
    ]
    blank = {"C": float("nan"), "D": float("nan"), "question": "What is it?", "category": "x"}
    accuracy, *_ = mmbench_evaluator.eval_result([{**blank, **row} for row in ROTATED], eval_method="static")
    circular = {"rows": ROTATED, "accuracy": float(accuracy)}
    about = {"lmms_eval": version("lmms-eval"), "options": OPTIONS, "right": RIGHT, "words": words}
    about["circular"] = circular
    about["open"] = [
        {"right": right, "given": said, "score": college(said, right)}
        for right, several in OPEN.items()
        for said in several
    ]
    lines = ",\n".join(json.dumps(case) for case in cases)
    Path(sys.argv[1]).write_text(f'{json.dumps(about)[:-1]}, "answers": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
