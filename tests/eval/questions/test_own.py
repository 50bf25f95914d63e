"""One's own questions: what counts as a line, a text and an answer, and that every command reads the same folder."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from official_files import load_questions
from PIL import Image

from aegis_eval.commands.anchor import AnchorConfig
from aegis_eval.commands.vqa import QuestionSource, VqaConfig
from aegis_eval.commands.work.anchor import make_anchor
from aegis_eval.commands.work.vqa import evaluate
from aegis_policy.support.errors import AegisError
from aegis_policy.vqa.examples import VQAExample, load_vqa

ROW = {"image": "0.png", "question": "which color?", "answer": "red"}


def write_folder(folder: Path, *lines: Any) -> Path:
    """A folder of pictures, with these lines: bytes, text, or values that become JSON."""
    folder.mkdir(exist_ok=True)
    for number in range(2):
        Image.fromarray(np.full((30, 40, 3), 100 * number, np.uint8)).save(folder / f"{number}.png")
    as_bytes = (
        each
        if isinstance(each, bytes)
        else (each if isinstance(each, str) else json.dumps(each)).encode("utf-8", "surrogatepass")
        for each in lines
    )
    (folder / "questions.jsonl").write_bytes(b"\n".join(as_bytes))
    return folder


def _read(folder: Path, **options: Any) -> list[VQAExample]:
    return load_vqa(str(folder), "--vqa", count=100, **options)


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        (2, "2"),
        (0, "0"),
        (-3, "-3"),
        (2.0, "2"),
        (0.5, "0.5"),
        (True, "true"),
        (False, "false"),
        ("None", "None"),
        ("0", "0"),
        (" red ", " red "),
        (["red"], "red"),
        (["grey", "red", "red"], "red"),
        (["", "red", ""], "red"),
        ([1, 2, 2], "2"),
        ({"answer": "red"}, "red"),
        ([{"answer": "red", "answer_id": 1}], "red"),
        ({"answer": ["red", "red", "grey"]}, "red"),
    ],
)
def test_texts_numbers_and_lists_are_answers(answer: Any, read: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own", {**ROW, "answer": answer})
    (example,) = _read(folder, with_answers=True)
    assert example.answer == read and example.score(read) == 1.0
    (sample,), _ = load_questions("custom", str(folder), None, 10)
    assert sample.answer == read and sample.score(read) == 1.0 and sample.score("teapot") == 0.0


@pytest.mark.parametrize("answer", [None, "", " \t", [], ["", " "], {"answer": None}])
def test_null_and_blanks_are_no_answers(answer: Any, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own", ROW, {**ROW, "answer": answer})
    assert [each.answer for each in _read(folder)] == ["red", None]
    with pytest.raises(AegisError, match=r"questions\.jsonl line 2 has no answer, and answers are needed"):
        _read(folder, with_answers=True)
    with pytest.raises(AegisError, match=r"questions\.jsonl line 2 is not usable \(it has no answer\)"):
        load_questions("custom", str(folder), None, 10)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([None, "red"], "its answer holds null"),
        ([["red"]], "its answer holds a list"),
        ({"text": "red"}, "it has no answer"),
        ([{"said": "red"}], "it has no answer"),
        (float("nan"), "its answer is nan, no number"),
        (float("inf"), "its answer is inf, no number"),
        ("x" * 20_000, "its answer has 20000 characters"),
        ("\ud800", "its answer holds half a character"),
    ],
)
def test_what_nobody_can_say_is_refused_with_its_line(answer: Any, reason: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own", ROW, {**ROW, "answer": answer})
    for read in (_read, lambda place: load_questions("custom", str(place), None, 10)):
        with pytest.raises(AegisError, match=rf"questions\.jsonl line 2 is not usable \({reason}"):
            read(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": None}, "its question is null, no text"),
        ({"question": ["what?"]}, "its question is a list, no text"),
        ({"question": 3}, "its question is 3, no text"),
        ({"question": True}, "its question is true, no text"),
        ({"question": " "}, 'its question is " ", no text'),
        ({"question": "what? " * 5000}, "its question has 30000 characters"),
        ({"question": "half \udc00"}, "half a character"),
        ({"image": None}, "its image is null, no text"),
        ({"image": "2.png"}, 'there is no picture "2.png"'),
        ({"image": "."}, 'there is no picture "."'),
        ({"image": "a\0b"}, "there is no picture"),
        ({"image": "x" * 300}, "there is no picture"),
        ({"image": "x" * 600}, "there is no picture"),
        ({"image": "../0.png"}, "there is no picture"),
        ({"id": [1]}, "its id is a list, neither text nor number"),
        ({"type": {}}, "its type is a dict, neither text nor number"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(change: Any, reason: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own", ROW, {**ROW, **change})
    with pytest.raises(AegisError, match=rf"--vqa=.*questions\.jsonl line 2 is not usable \(.*{reason}"):
        _read(folder)


@pytest.mark.parametrize(
    "line", ["null", "[]", "3", '"text"', "{}", '{"image": "0.png"}', '{"image": "0.p', "é".encode("latin-1")]
)
def test_a_line_that_is_no_question_is_named(line: str | bytes, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own", ROW, line)
    with pytest.raises(AegisError, match=r"questions\.jsonl line 2 is not usable"):
        _read(folder)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1e", "\t"])
def test_a_question_may_hold_what_ends_lines_elsewhere(mark: str, tmp_path: Path) -> None:
    line = f'{{"image": "0.png", "question": "which{mark}color?", "answer": "light{mark}red"}}'
    (example,) = _read(write_folder(tmp_path / "own", line))
    assert (example.question, example.answer) == (f"which{mark}color?", f"light{mark}red")


def test_files_of_other_editors_are_read(tmp_path: Path) -> None:
    line = json.dumps(ROW).encode()
    for written in (b"\xef\xbb\xbf" + line, line + b"\r\n\r\n" + line + b"\r\n", b"\n\n" + line + b"\n \n"):
        folder = write_folder(tmp_path / "own", written)
        assert {each.answer for each in _read(folder)} == {"red"}
    with pytest.raises(AegisError, match=r"line 1 is not usable \(it is not text in UTF-8"):
        _read(write_folder(tmp_path / "own", json.dumps(ROW).encode("utf-16")))


def test_lines_may_say_an_id_a_type_and_their_image_s_name(tmp_path: Path) -> None:
    said = {"id": 7, "type": "colour", "image_id": "table"}
    folder = write_folder(tmp_path / "own", {**ROW, **said}, {**ROW, **said}, {**ROW, "id": "7-0"}, ROW)
    samples, _ = load_questions("custom", str(folder), None, 10)
    assert len({each.id for each in samples}) == 4, "the same one twice, and one called like its number"
    assert [each.type for each in samples] == ["colour", "colour", "question", "question"]
    assert [each.scene for each in samples] == ["table", "table", "0.png", "0.png"]


def test_a_blank_id_or_type_is_none(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path / "own", {**ROW, "id": "", "image_id": "", "category": " ", "type": "colour"}
    )
    ((sample,), _) = load_questions("custom", str(folder), None, 10)
    assert (sample.id, sample.scene, sample.type) == ("custom/all/0", "0.png", "colour")


def test_pictures_may_lie_elsewhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / ("deep " * 30) / ("down " * 30) / "0.png"
    elsewhere.parent.mkdir(parents=True)
    Image.new("RGB", (4, 3)).save(elsewhere)
    names = [str(elsewhere), f"../{elsewhere.relative_to(tmp_path)}"]
    folder = write_folder(tmp_path / "own", *({**ROW, "image": name} for name in names))
    assert [each.image.shape for each in _read(folder)] == [(3, 4, 3)] * 2


def test_a_part_is_drawn_the_same_for_every_command(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path / "own", *({**ROW, "question": f"question {number}"} for number in range(50))
    )
    asked = [each.question for each in load_vqa(str(folder), "--vqa", count=5, seed=1)]
    samples, total = load_questions("custom", str(folder), None, 5, seed=1)
    assert asked == [each.question for each in samples] and total == 50
    assert asked != [f"question {number}" for number in range(5)], "at random"


def test_a_long_file_takes_no_more_memory_than_its_part(tmp_path: Path) -> None:
    rows = ({**ROW, "question": f"{number} {'long ' * 1000}"} for number in range(1_000))
    folder = write_folder(tmp_path / "own", *rows)
    tracemalloc.start()
    examples = load_vqa(str(folder), "--vqa", count=5)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(examples) == 5 and most < 2**20, "of five million bytes"


@pytest.mark.parametrize("broken", ["cut", "text", "empty", "deep"])
def test_a_picture_that_cannot_be_decoded_is_found_before_the_first_is_asked_about(
    broken: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "own", ROW, {**ROW, "image": "1.png"})
    whole = (folder / "1.png").read_bytes()
    if broken == "deep":
        Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(folder / "1.png")
    else:
        (folder / "1.png").write_bytes({"cut": whole[:60], "text": b"version https", "empty": b""}[broken])
    with pytest.raises(AegisError, match=r"cannot be read .*questions\.jsonl line 2 asks about"):
        _read(folder)


def test_a_picture_is_upright_as_datasets_has_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own", {**ROW, "image": "side.jpg"})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(folder / "side.jpg", exif=exif)
    (example,) = _read(folder)
    assert example.image.shape == (40, 30, 3)


def _rows(**changes: Any) -> datasets.Dataset:
    pictures = [Image.fromarray(np.full((30, 40, 3), 100 * number, np.uint8)) for number in range(2)]
    return datasets.Dataset.from_dict(
        {"image": pictures, "question": ["one?", "two?"], "answer": ["red", "blue"], **changes}
    )


@pytest.mark.parametrize("form", ["parquet", "saved", "whole", "metadata", "jsonl"])
def test_whatever_datasets_reads_is_taken_without_a_name_too(form: str, tmp_path: Path) -> None:
    place = tmp_path / "own"
    if form == "parquet":
        _rows().to_parquet(place / "train-00000-of-00001.parquet")
    elif form == "saved":
        datasets.DatasetDict({"train": _rows()}).save_to_disk(place)
    elif form == "whole":
        _rows().save_to_disk(place)
    else:
        lines = [{**ROW, "answer": "red"}, {**ROW, "image": "1.png", "answer": "blue"}]
        if form == "metadata":
            lines = [{"file_name": each.pop("image"), **each} for each in lines]
        write_folder(place, *lines)
        name = "metadata.jsonl" if form == "metadata" else "train.jsonl"
        (place / "questions.jsonl").rename(place / name)
        if form == "jsonl":
            (place / "pictures").mkdir()
            for number in range(2):
                (place / f"{number}.png").rename(place / "pictures" / f"{number}.png")
            text = (place / name).read_text()
            (place / name).write_text(text.replace('"image": "', '"image": "pictures/'))
    for source in (str(place), f"custom:{place}"):
        for split in ("train", "val"):
            examples = load_vqa(source, "--policy.replay_data", split=split, count=9, with_answers=True)
            assert [(each.answer, each.image.mean()) for each in examples] == [("red", 0), ("blue", 100)]


@pytest.mark.parametrize(
    ("there", "read"),
    [
        (["train"], {"train": "train", "val": "train", "test": "train"}),
        (["mine"], {"train": "mine", "val": "mine", "test": "mine"}),
        (["train", "test"], {"train": "train", "val": "test", "test": "test"}),
        (["train", "validation"], {"train": "train", "val": "validation", "test": "validation"}),
        (["a", "b"], {"train": None, "val": None, "test": None}),
    ],
)
def test_the_nearest_split_is_read(there: list[str], read: dict[str, str | None], tmp_path: Path) -> None:
    splits = {split: _rows(question=[f"{split} one?", f"{split} two?"]) for split in there}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "own")
    for wanted, split in read.items():
        if split is None:
            with pytest.raises(AegisError, match=rf"has the splits a, b: call one of them {wanted}"):
                _read(tmp_path / "own", split=wanted)
        else:
            assert _read(tmp_path / "own", split=wanted)[0].question == f"{split} one?"
            samples, _ = load_questions("custom", str(tmp_path / "own"), wanted, 10)
            assert samples[0].id == f"custom/{split}/0"


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ({"answer": ["red", None]}, r"row 1 is not usable \(it has no answer\)"),
        ({"answer": [0, 1]}, None),
        ({"answer": [0.0, 1.0]}, None),
        ({"answer": [False, True]}, None),
        ({"answer": [b"red", b"blue"]}, r"row 0 is not usable \(its answer holds a bytes"),
        ({"answer": [float("nan"), 1.0]}, r"row 0 is not usable \(its answer is nan"),
        ({"question": ["one?", ""]}, r"row 1 is not usable \(its question is"),
        ({"question": [1, 2]}, r"row 0 is not usable \(its question is 1, no text"),
    ],
)
def test_rows_are_read_as_lines_are(column: dict[str, Any], reason: str | None, tmp_path: Path) -> None:
    datasets.DatasetDict({"test": _rows(**column)}).save_to_disk(tmp_path / "own")
    if reason is None:
        samples, _ = load_questions("custom", str(tmp_path / "own"), None, 10)
        assert [each.answer for each in samples] in (["0", "1"], ["false", "true"])
    else:
        with pytest.raises(AegisError, match=reason):
            load_questions("custom", str(tmp_path / "own"), None, 10)


def test_classes_are_read_by_their_names(tmp_path: Path) -> None:
    rows = _rows(answer=[1, 0], category=[0, -1])
    for column in ("answer", "category"):
        rows = rows.cast_column(column, datasets.ClassLabel(names=["no", "yes"]))
    rows.to_parquet(tmp_path / "own" / "train-00000-of-00001.parquet")
    samples, _ = load_questions("custom", str(tmp_path / "own"), None, 10)
    assert [(each.answer, each.type) for each in samples] == [("yes", "no"), ("no", "question")]


def test_what_is_nobody_s_name_and_no_questions_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("none")
    for source in (str(tmp_path), str(tmp_path / "absent"), "tabeltop"):
        with pytest.raises(
            AegisError,
            match=r"--vqa=.* is neither one of custom, .* nor a folder with a questions.jsonl .* nor a data set",
        ):
            load_vqa(source, "--vqa", count=1)


@pytest.mark.parametrize("form", ["questions.jsonl", "parquet"])
def test_the_same_folder_makes_an_anchor_and_is_asked_under_any_name(
    form: str, tiny_vlm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "my + own, questions=1"
    if form == "parquet":
        _rows().to_parquet(place / "train-00000-of-00001.parquet")
    else:
        write_folder(
            place, ROW, {**ROW, "question": "<image>\nwhat is <eos>?", "image": "1.png", "answer": 2}
        )
    monkeypatch.setenv("HOME", str(tmp_path))
    source = f"~/{place.name}/"
    anchor = make_anchor(
        AnchorConfig(vlm=str(tiny_vlm_dir), vqa=source, kinds=["gaussian"], out=tmp_path / "a.safetensors")
    )
    assert anchor.metadata["samples"] == "2"
    out = evaluate(
        VqaConfig(
            vlm=str(tiny_vlm_dir),
            pretrained=str(tiny_vlm_dir),
            benchmark="custom",
            vqa=QuestionSource(source),
            output_dir=tmp_path / "out",
        )
    )
    results = json.loads((out / "results.json").read_text())
    assert results["n"] == 2 and results["split"] == ("train" if form == "parquet" else "all")
