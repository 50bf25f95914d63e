"""Multiple choice: read from the hub's files, asked as lmms-eval asks it, scored as it scores it."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from official_files import (
    load_questions,
    write_ai2d,
    write_mmbench,
    write_mmmu,
    write_mmstar,
    write_realworldqa,
)

from aegis_eval.commands.vqa import QuestionSource, VqaConfig
from aegis_eval.commands.work.vqa import evaluate
from aegis_eval.questions.choices import CHOICES, circular_figures
from aegis_eval.questions.mmmu import named_option, says_openly
from aegis_eval.questions.official_letters import single_option
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.families import WholePrompt

SCORED = json.loads(Path(__file__).with_name("lmms_eval_letters.json").read_text())
WRITERS = {
    "mmstar": write_mmstar,
    "realworldqa": write_realworldqa,
    "ai2d": write_ai2d,
    "mmbench": write_mmbench,
    "mmmu": write_mmmu,
}
DIRECTLY = "Answer with the option's letter from the given choices directly"
EXPECTED = {
    "mmstar": (
        ["coarse perception", "coarse perception", "math"],
        ["B", "A", "D"],
        [0.25, 0.25, 0.25],
        f"What colour is it?\nOptions: A: red, B: green, C: blue, D: grey\n{DIRECTLY}",
    ),
    "realworldqa": (
        ["letter", "letter", "word"],
        ["B", "A", "No"],
        [pytest.approx(1 / 3), 0.5, None],
        "Where does the car go?\n\nA. Left\nB. Straight\nC. Right\nPlease answer directly with only the letter of the "
        "correct option and nothing else.",
    ),
    "ai2d": (
        ["question"] * 3,
        ["A", "D", "B"],
        [0.25, 0.25, pytest.approx(1 / 3)],
        f"What eats the frog?\nA. the snake\nB. the fly\nC. grass\nD. none\n{DIRECTLY}.",
    ),
    "mmbench": (
        ["attribute_recognition"] * 3 + ["image_quality"] * 2,
        ["B", "A", "C", "B", "A"],
        [pytest.approx(1 / 3)] * 3 + [0.5, 0.5],
        "Look well. Which colour is it? There are several options:\nA. red\nB. green\nC. blue\n\n"
        f"{DIRECTLY}.",
    ),
    "mmmu": (
        ["business", "art and design", "science"],
        ["C", "B", "12"],
        [pytest.approx(1 / 3), 0.5, None],
        f"What does <image 1> show?\nA. a balance\nB. a cheque\nC. a receipt\n\n{DIRECTLY}.",
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_official_files_are_read(name: str, tmp_path: Path) -> None:
    samples, total = load_questions(name, str(WRITERS[name](tmp_path)), None, 100)
    types, letters, chances, prompt = EXPECTED[name]
    assert total == len(types) and [each.type for each in samples] == types
    assert [each.answer for each in samples] == letters and [each.chance for each in samples] == chances
    assert samples[0].question == prompt and all(isinstance(each.question, WholePrompt) for each in samples)
    assert [each.score(each.answer) for each in samples] == [1.0] * total
    seen = {"mmbench": [80, 80, 80, 160, 160], "mmmu": [80, 200, 240]}.get(name, [80, 160, 240])
    assert [np.mean(each.image) for each in samples] == seen


def test_a_question_of_mmmu_is_about_every_picture_that_it_names(tmp_path: Path) -> None:
    samples, _ = load_questions("mmmu", str(write_mmmu(tmp_path)), None, 100)
    assert [len(each.image) if isinstance(each.image, list) else 1 for each in samples] == [1, 2, 1]
    assert [image.mean() for image in samples[1].image] == [160, 240], "both options, in their order"
    assert samples[2].question.endswith("<image 1>\n\nAnswer the question using a single word or phrase.")
    assert [samples[2].score(said) for said in ("It is twelve.", "12 V", "11")] == [1, 1, 0]


@pytest.mark.parametrize("name", CHOICES)
def test_every_answer_scores_as_in_lmms_eval(name: str) -> None:
    for case in SCORED["answers"]:
        if name == "mmmu":
            score = named_option(case["given"], SCORED["options"]) == SCORED["right"]
        elif name == "mmbench":
            score = single_option(case["given"].strip(), SCORED["options"]) == SCORED["right"]
        else:
            score = CHOICES[name].metric(case["given"], [SCORED["right"]])
        assert score == case["scores"][name], case
    assert {case["scores"][name] for case in SCORED["answers"]} == {0.0, 1.0} and len(SCORED["answers"]) > 40


def test_what_is_said_to_an_open_question_of_mmmu_scores_as_in_lmms_eval() -> None:
    for case in SCORED["open"]:
        assert says_openly(case["given"], [case["right"]]) == case["score"], case
    assert {case["score"] for case in SCORED["open"]} == {0.0, 1.0} and len(SCORED["open"]) > 40


def test_a_question_of_mmbench_is_right_if_it_is_in_every_order_of_its_options(tmp_path: Path) -> None:
    rows = [
        {**row, "question": "What is it?", "category": "x", "image": ""} for row in SCORED["circular"]["rows"]
    ]
    with (tmp_path / "MMBench_DEV_EN_V11.tsv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        table.writeheader()
        table.writerows(rows)
    samples, _ = load_questions("mmbench", str(tmp_path), None, 100)
    given = [row["prediction"] for row in rows]
    accuracy = pytest.approx(SCORED["circular"]["accuracy"])
    assert circular_figures(samples, given) == {"circular": {"all": accuracy, "x": accuracy}}
    right = [sample.score(said) for sample, said in zip(samples, given, strict=True)]
    assert 0 < SCORED["circular"]["accuracy"] < np.mean(right)
    assert circular_figures(samples[:1], given[:1]) == {}, "its other order was not asked"


def test_realworldqa_s_words_score_as_in_lmms_eval(tmp_path: Path) -> None:
    place = write_realworldqa(tmp_path)
    rows = datasets.load_dataset(str(place), split="test").to_list()
    rows[2]["answer"] = "Yes"
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "yes" / "test-00000-of-00001.parquet")
    wants_word = load_questions("realworldqa", str(tmp_path / "yes"), None, 100).samples[2]
    for case in SCORED["words"]:
        assert wants_word.score(case["given"]) == case["score"], case


def test_a_lone_table_is_read_without_the_card_that_names_its_split(tmp_path: Path) -> None:
    (write_mmstar(tmp_path) / "README.md").unlink()
    assert load_questions("mmstar", str(tmp_path), None, 100).total == 3


@pytest.mark.parametrize(
    ("name", "spoil", "sentence"),
    [
        ("mmstar", {"answer": "E"}, r'row 1 is not usable \(its answer is "E", none of A, B, C, D\)'),
        ("ai2d", {"answer": "4"}, r'row 1 .*its answer is "4", and its options are numbered 0 to 3'),
        ("ai2d", {"options": ["A"]}, r"row 1 .*its options are a list, not two texts or more"),
        ("mmmu", {"answer": "C"}, r'row 1 .*its answer is "C", and its options are A, B\)'),
        ("mmmu", {"options": "none"}, r'row 1 .*its answer is "B", and its options are none\)'),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(name: str, spoil: dict, sentence: str, tmp_path: Path) -> None:
    (file,) = WRITERS[name](tmp_path).rglob("*.parquet")
    rows = datasets.Dataset.from_parquet(str(file)).to_list()
    rows[1] |= spoil
    datasets.Dataset.from_list(rows).to_parquet(file)
    with pytest.raises(AegisError, match=sentence):
        load_questions(name, str(tmp_path), None, 100)


def test_a_split_without_answers_and_a_place_without_questions_are_named(tmp_path: Path) -> None:
    with pytest.raises(AegisError, match="ai2d has answers for its split test alone, none for train"):
        load_questions("ai2d", str(write_ai2d(tmp_path)), "train", 100)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AegisError, match="split val of it cannot be read as a data set"):
        load_questions("mmstar", str(tmp_path / "empty"), None, 100)


def test_the_command_prints_accuracy_by_category_beside_chance(
    tiny_vlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = evaluate(
        VqaConfig(
            vlm=str(tiny_vlm_dir),
            benchmark="mmstar",
            vqa=QuestionSource(str(write_mmstar(tmp_path / "data"))),
            output_dir=tmp_path / "out",
        )
    )
    header, *rows = capsys.readouterr().out.splitlines()
    assert "chance %" in header
    for kind in ("coarse perception", "math", "all"):
        (row,) = (row for row in rows if row.startswith(f"{kind} "))
        assert "25.0" in row
    results = json.loads((out / "results.json").read_text())
    assert results["chance"] == 0.25 and results["per_type"]["math"]["n"] == 1
    assert not list((out / "lmms_eval").rglob("*.jsonl")), "lmms-eval reports another measure of MMStar"


def test_the_command_asks_about_several_pictures_and_names_one_that_is_missing(
    tiny_vlm_dir: Path, tmp_path: Path
) -> None:
    place = write_mmmu(tmp_path / "data")
    asked = VqaConfig(
        vlm=str(tiny_vlm_dir),
        benchmark="mmmu",
        vqa=QuestionSource(str(place)),
        output_dir=tmp_path / "out",
    )
    results = json.loads((evaluate(asked) / "results.json").read_text())
    assert results["n"] == 3 and set(results["per_type"]) == {"art and design", "business", "science"}
    (file,) = place.rglob("*.parquet")
    rows = datasets.Dataset.from_parquet(str(file))
    rows.map(lambda row: {**row, "image_2": None}, features=rows.features).to_parquet(file)
    with pytest.raises(
        AegisError, match=r"The image of mmmu/val/.*12 cannot be read \(its row has no image_2\)"
    ):
        evaluate(replace(asked, output_dir=tmp_path / "missing"))


def test_the_command_reports_mmbench_s_own_measure(
    tiny_vlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = evaluate(
        VqaConfig(
            vlm=str(tiny_vlm_dir),
            benchmark="mmbench",
            vqa=QuestionSource(str(write_mmbench(tmp_path / "data"))),
            output_dir=tmp_path / "out",
        )
    )
    circular = json.loads((out / "results.json").read_text())["circular"]
    assert circular == {"all": 0.0, "attribute_recognition": 0.0, "image_quality": 0.0}, (
        "a model of random words"
    )
    assert "circular: all 0.0 %" in capsys.readouterr().out
