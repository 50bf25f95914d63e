"""Official files and data sets become samples with the official score; `aegis-vqa` goes on after an interruption."""

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from official_files import (
    COLOURS,
    load_questions,
    write_coco,
    write_gqa,
    write_okvqa,
    write_pope,
    write_textvqa,
)
from PIL import Image

from aegis_eval.commands.anchor import AnchorConfig
from aegis_eval.commands.vqa import QuestionSource, VqaConfig
from aegis_eval.commands.work.anchor import make_anchor
from aegis_eval.commands.work.vqa import evaluate
from aegis_eval.questions.public import yes_no_figures
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vqa.examples import load_vqa

WRITERS = {
    "vqav2": write_coco,
    "okvqa": write_okvqa,
    "textvqa": write_textvqa,
    "gqa": write_gqa,
    "pope": write_pope,
}
EXPECTED = {
    "vqav2": (6, ["other", "yes/no"], "red"),
    "okvqa": (6, ["other", "yes/no"], "red"),
    "textvqa": (3, ["question"], "red"),
    "gqa": (3, ["query"], "red"),
    "pope": (12, ["random", "popular", "adversarial"], "yes"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_official_files_are_read(name: str, tmp_path: Path):
    samples, total = load_questions(name, str(WRITERS[name](tmp_path)), None, count=100)
    count, types, answer = EXPECTED[name]
    assert len(samples) == total == count
    assert list(dict.fromkeys(sample.type for sample in samples)) == types
    assert samples[0].answer == answer and samples[0].score(answer) == pytest.approx(1.0)
    assert samples[0].score("a teapot") == 0.0
    assert len({sample.id for sample in samples}) == count
    assert len({sample.scene for sample in samples}) == len(COLOURS)
    assert samples[0].image.shape[1:] == (56, 3) and samples[0].image.dtype == np.uint8


def test_people_who_disagree_give_part_of_a_point(tmp_path: Path):
    samples, _ = load_questions("vqav2", str(write_coco(tmp_path)), None, count=100)
    assert samples[0].score("Grey!") == pytest.approx(0.3), (
        "one of ten said so: a third for nine of the ten left out"
    )


def test_a_part_is_drawn_at_random_and_again_the_same(tmp_path: Path):
    write_coco(tmp_path)
    drawn = [
        [each.id for each in load_questions("vqav2", str(tmp_path), None, 3, seed)[0]] for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 3
    samples, total = load_questions("vqav2", str(tmp_path), None, 3)
    whole, _ = load_questions("vqav2", str(tmp_path), None, 100)
    assert total == 6 and [whole[each.index].id for each in samples] == [each.id for each in samples]


def as_rows(answers: str = "answers") -> dict:
    pictures = [Image.fromarray(np.full((30, 40, 3), 80 * number, np.uint8)) for number in COLOURS]
    said = {
        "answers": [[colour, f"{colour}ish"] for colour in COLOURS.values()],
        "answer": list(COLOURS.values()),
        "people": [[{"answer": colour, "answer_id": 1}] * 10 for colour in COLOURS.values()],
    }[answers]
    name = "answers" if answers == "people" else answers
    return {"image": pictures, "question": ["which color?"] * 3, name: said, "question_id": [7, 8, 9]}


@pytest.mark.parametrize("answers", ["answers", "answer", "people"])
def test_any_data_set_with_the_columns_is_read(answers: str, tmp_path: Path):
    rows = datasets.Dataset.from_dict(as_rows(answers))
    rows.to_parquet(tmp_path / "parquet" / "test-00000-of-00001.parquet")
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "saved")
    for form in ("parquet", "saved"):
        samples, _ = load_questions("custom", str(tmp_path / form), None, 100)
        assert [each.answer for each in samples] == list(COLOURS.values())
        assert [each.id for each in samples] == ["custom/test/7", "custom/test/8", "custom/test/9"]
        assert samples[1].score("The green.") == 1.0 and samples[1].score("red") == 0.0
        assert samples[2].image.mean() == 240


@pytest.mark.parametrize("form", ["bytes", "names"])
def test_pictures_that_others_wrote_are_decoded(form: str, tmp_path: Path):
    rows = as_rows()
    for index, picture in enumerate(rows["image"]):
        picture.save(tmp_path / f"{index}.png")
    files = [tmp_path / f"{index}.png" for index in range(3)]
    written = {
        "bytes": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "names": [str(file) for file in files],
    }[form]
    written[2] = None
    (tmp_path / "data").mkdir()
    table = pyarrow.table(rows | {"image": written})
    pyarrow.parquet.write_table(table, tmp_path / "data" / "test-00000-of-00001.parquet")
    samples, _ = load_questions("custom", str(tmp_path / "data"), None, 100)
    assert [samples[index].image.mean() for index in (0, 1)] == [80, 160]
    with pytest.raises(
        AegisError, match=r"The image of custom/test/9 cannot be read \(its row has no image\), .* row 2"
    ):
        _ = samples[2].image


def test_a_picture_column_without_pictures_is_named(tmp_path: Path):
    rows = datasets.Dataset.from_dict(as_rows() | {"image": [1, 2, 3]})
    rows.to_parquet(tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(AegisError, match=r"its column image .* holds no pictures"):
        load_questions("custom", str(tmp_path), None, 100)


def test_a_question_without_an_id_of_its_own_is_numbered_and_one_without_an_answer_refused(tmp_path: Path):
    rows = as_rows() | {"question_id": [7, 7, 8]}
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows)}).save_to_disk(tmp_path / "twice")
    samples, _ = load_questions("custom", str(tmp_path / "twice"), None, 100)
    assert [each.id for each in samples] == ["custom/test/7-0", "custom/test/7-1", "custom/test/8"]
    rows = as_rows() | {"answers": [["red"], [], ["blue"]]}
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows)}).save_to_disk(tmp_path / "none")
    with pytest.raises(AegisError, match="question 8 has no answer"):
        load_questions("custom", str(tmp_path / "none"), None, 100)


def test_the_hub_s_form_of_a_benchmark_is_read(tmp_path: Path):
    rows = datasets.Dataset.from_dict({**as_rows("people"), "answer_type": ["other"] * 3})
    rows.to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    samples, _ = load_questions("vqav2", str(tmp_path), None, 100)
    assert [each.score("red") for each in samples] == pytest.approx([1.0, 0.0, 0.0])


def test_gqa_finds_its_pictures_in_a_configuration_of_their_own(tmp_path: Path):
    rows = as_rows("answer")
    asked = {"id": ["a", "b", "c"], "imageId": ["n2", "n2", "n1"]}
    folders = {
        "testdev_balanced_instructions": asked | {key: rows[key] for key in ("question", "answer")},
        "testdev_balanced_images": {"id": ["n1", "n2"], "image": rows["image"][:2]},
    }
    for folder, columns in folders.items():
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / folder / "testdev-00000-of-00001.parquet")
    configs = "".join(
        f"- config_name: {folder}\n  data_files:\n  - split: testdev\n    path: {folder}/*\n"
        for folder in folders
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    samples, _ = load_questions("gqa", str(tmp_path), None, 100)
    assert [each.scene for each in samples] == ["n2", "n2", "n1"]
    assert [each.image.mean() for each in samples] == [160, 160, 80]


@pytest.mark.parametrize(
    ("name", "split", "sentence"),
    [
        ("vqav2", "test", "vqav2 has no answers for a split test: choose from val, train"),
        ("vqav2", "train", r"cannot be read as a data set .* v2_OpenEnded_mscoco_train2014_questions.json"),
        ("custom", "nowhere", "split nowhere of it cannot be read as a data set"),
    ],
)
def test_what_is_not_there_is_named(name: str, split: str, sentence: str, tmp_path: Path):
    write_coco(tmp_path)
    with pytest.raises(AegisError, match=sentence):
        load_questions(name, str(tmp_path), split, 10)


def test_a_missing_file_a_missing_image_and_a_missing_column_are_named(tmp_path: Path):
    write_coco(tmp_path)
    (tmp_path / "v2_mscoco_val2014_annotations.json").rename(tmp_path / "annotations.json")
    with pytest.raises(AegisError, match=r"v2_mscoco_val2014_annotations\.json is missing"):
        load_questions("vqav2", str(tmp_path), None, 10)
    (tmp_path / "annotations.json").rename(tmp_path / "v2_mscoco_val2014_annotations.json")
    picture = tmp_path / "val2014" / "COCO_val2014_000000000001.jpg"
    picture.rename(tmp_path / "elsewhere")
    with pytest.raises(AegisError, match=r"1 of 3 images are missing, .*000000000001\.jpg first"):
        load_questions("vqav2", str(tmp_path), None, 10)
    picture.write_bytes(b"cut off")
    samples, _ = load_questions("vqav2", str(tmp_path), None, 10)
    with pytest.raises(AegisError, match=r"The image of vqav2/val/10 cannot be read .*000000000001.jpg"):
        _ = samples[0].image
    rows = datasets.Dataset.from_dict({"image": as_rows()["image"], "text": ["?"] * 3})
    rows.save_to_disk(tmp_path / "one")
    with pytest.raises(AegisError, match="saved without splits"):
        load_questions("custom", str(tmp_path / "one"), None, 10)
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "rows")
    with pytest.raises(
        AegisError, match=r"no column question, .* but image, text: .* put a questions.jsonl into"
    ):
        load_questions("custom", str(tmp_path / "rows"), None, 10)


def test_an_official_file_that_is_not_what_it_should_be_is_named(tmp_path: Path):
    write_gqa(tmp_path)
    (tmp_path / "testdev_balanced_questions.json").write_text('{"1": {"imageId": "n1"}}')
    with pytest.raises(AegisError, match=r"questions\.json question 1 is not usable \(it has no types\)"):
        load_questions("gqa", str(tmp_path), None, 10)


@pytest.mark.parametrize("name", WRITERS)
def test_the_command_scores_a_public_benchmark_and_writes_lmms_eval_s_files(
    name: str, tiny_vlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    place = WRITERS[name](tmp_path / "data")
    config = VqaConfig(
        vlm=str(tiny_vlm_dir),
        pretrained=str(tiny_vlm_dir),
        benchmark=name,
        vqa=QuestionSource(str(place)),
        output_dir=tmp_path / "out",
    )
    out = evaluate(config)
    results = json.loads((out / "results.json").read_text())
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert results["n"] == len(lines) == EXPECTED[name][0]
    assert results["accuracy"] == pytest.approx(np.mean([line["score"] for line in lines]))
    assert results["blind"] is None and results["pretrained"]["paired"]["difference"] == 0.0
    assert "blind" not in capsys.readouterr().out
    (theirs,) = (out / "lmms_eval").rglob("*_results.json")
    (samples,) = (out / "lmms_eval").rglob("*_samples_*.jsonl")
    ((task, figures),) = json.loads(theirs.read_text())["results"].items()
    metric = "pope_accuracy" if name == "pope" else "exact_match"
    assert samples.name.endswith(f"_samples_{task}.jsonl")
    assert figures[f"{metric},none"] == pytest.approx(results["accuracy"])
    scores = [json.loads(line)[metric] for line in samples.read_text().splitlines()]
    if name == "pope":
        assert {score["ground_truth"] for score in scores} == {"yes", "no"}
        scores = [score["score"] for score in scores]
    assert sum(scores) == pytest.approx(results["accuracy"] * results["n"])
    assert ("yes_no" in results) == (name == "pope")


def test_pope_s_figures_are_given_over_all_and_by_category(tmp_path: Path):
    samples, _ = load_questions("pope", str(write_pope(tmp_path)), None, 100)
    given = ["Yes" if sample.type == "random" else "no" for sample in samples]
    figures = yes_no_figures(samples, given)
    assert list(figures) == ["all", "random", "popular", "adversarial"]
    assert (figures["random"]["recall"], figures["popular"]["recall"]) == (1.0, 0.0)
    assert figures["all"]["accuracy"] == 0.5


def test_an_interrupted_command_goes_on(tiny_vlm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = write_coco(tmp_path / "data")

    def command(batch_size: int = 2) -> Path:
        return evaluate(
            VqaConfig(
                vlm=str(tiny_vlm_dir),
                benchmark="vqav2",
                vqa=QuestionSource(str(place)),
                batch_size=batch_size,
                output_dir=tmp_path / "out",
            )
        )

    asked: list[str] = []
    answer = VLMBackbone.answer

    def counted(self, images, questions, max_new_tokens):
        if len(asked) == 4:
            asked.append("interrupted")
            raise KeyboardInterrupt
        asked.extend(questions)
        return answer(self, images, questions, max_new_tokens)

    monkeypatch.setattr(VLMBackbone, "answer", counted)
    with pytest.raises(KeyboardInterrupt):
        command()
    assert not (tmp_path / "out").exists()
    with pytest.raises(AegisError, match=r"another batch_size: give that command again, delete the folder"):
        command(batch_size=3)
    (log,) = tmp_path.glob(".out.answers/*/*.jsonl")
    with log.open("a") as file:
        file.write('["vqav2/val/31", "cut off by the ki')
    out = command()
    assert len(asked) == 4 + 1 + 2, "four before the interruption, the last two after it"
    monkeypatch.setattr(VLMBackbone, "answer", answer)
    resumed = (out / "samples.jsonl").read_text()
    out.rename(tmp_path / "first")
    assert (command() / "samples.jsonl").read_text() == resumed
    assert sorted(each.name for each in tmp_path.iterdir()) == ["data", "first", "out"]


def test_the_same_questions_feed_replay_the_probe_and_the_anchor(tiny_vlm_dir: Path, tmp_path: Path):
    place = write_coco(tmp_path / "coco", split="train2014")
    examples = list(load_vqa(f"vqav2:{place}", "--policy.replay_data", count=4, with_answers=True))
    assert len(examples) == 4 and {each.answer for each in examples} <= {"red", "green", "blue", "yes", "no"}
    anchor = make_anchor(
        AnchorConfig(
            vlm=str(tiny_vlm_dir),
            vqa=f"vqav2:{place}",
            kinds=["gaussian"],
            out=tmp_path / "anchor.safetensors",
            batch_size=2,
        )
    )
    assert anchor.metadata["samples"] == "6"
