"""Small files in the formats in which public VQA benchmarks are handed out, as far as this package reads them."""

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from aegis_eval.questions.benchmarks import BENCHMARKS
from aegis_eval.questions.sample import Drawn

COLOURS = {1: "red", 2: "green", 3: "blue"}
"""Number of an image -> what it shows."""


def _picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (40, 60, 200)}[COLOURS[number]]
    Image.fromarray(np.full((40 + number, 56, 3), rgb, np.uint8)).save(path)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _people(answer: str) -> list[str]:
    """Ten people's answers: eight agree, two say something else."""
    return [answer] * 8 + ["grey", "I don't know"]


def write_coco(root: Path, split: str = "val2014", version: str = "v2_") -> Path:
    """VQAv2, or OK-VQA without a version: two questions about each image."""
    questions, annotations = [], []
    for image, colour in COLOURS.items():
        _picture(root / split / f"COCO_{split}_{image:012d}.jpg", image)
        for kind, question, answer in (
            (0, "What color is it?", colour),
            (1, "Is it red?", "yes" if colour == "red" else "no"),
        ):
            identity = {"question_id": 10 * image + kind, "image_id": image}
            questions.append({**identity, "question": question})
            people = [
                {"answer": said, "answer_confidence": "yes", "answer_id": index + 1}
                for index, said in enumerate(_people(answer))
            ]
            annotations.append(
                {
                    **identity,
                    "question_type": "what color" if kind == 0 else "is it",
                    "answer_type": "other" if kind == 0 else "yes/no",
                    "multiple_choice_answer": answer,
                    "answers": people,
                }
            )
    about = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": split}
    _write(root / f"{version}OpenEnded_mscoco_{split}_questions.json", {**about, "questions": questions})
    _write(root / f"{version}mscoco_{split}_annotations.json", {**about, "annotations": annotations})
    return root


def write_okvqa(root: Path) -> Path:
    return write_coco(root, version="")


def write_textvqa(root: Path) -> Path:
    data = []
    for image, colour in COLOURS.items():
        _picture(root / "train_images" / f"a{image}.jpg", image)
        about = {"image_id": f"a{image}", "image_classes": ["Sign"], "image_width": 56, "image_height": 41}
        data.append(
            {**about, "question": "what does it say?", "question_id": 34600 + image, "set_name": "val"}
            | {"answers": _people(colour)}
        )
    _write(root / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_version": "0.5.1", "data": data})
    return root


def write_gqa(root: Path) -> Path:
    questions = {}
    for image, colour in COLOURS.items():
        _picture(root / "images" / f"n{image}.jpg", image)
        questions[f"2{image}"] = {
            "imageId": f"n{image}",
            "question": "What color is the wall?",
            "answer": colour,
            "fullAnswer": f"The wall is {colour}.",
            "isBalanced": True,
            "types": {"detailed": "colorQuery", "semantic": "attr", "structural": "query"},
        }
    _write(root / "testdev_balanced_questions.json", questions)
    return root


def write_pope(root: Path) -> Path:
    for image in COLOURS:
        _picture(root / "val2014" / f"COCO_val2014_{image:012d}.jpg", image)
    for kind in ("random", "popular", "adversarial"):
        lines = [
            {
                "question_id": number,
                "image": f"COCO_val2014_{1 + number % len(COLOURS):012d}.jpg",
                "text": "Is there a wall in the image?",
                "label": "yes" if number % 2 else "no",
            }
            for number in range(1, 5)
        ]
        path = root / f"coco_pope_{kind}.json"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def _coloured() -> list[Image.Image]:
    return [Image.fromarray(np.full((40, 56, 3), 80 * number, np.uint8)) for number in COLOURS]


def write_mmstar(root: Path) -> Path:
    """MMStar: one table beside the card that names its split."""
    rows = {
        "index": [0, 1, 2],
        "question": [
            "What colour is it?\nOptions: A: red, B: green, C: blue, D: grey",
            "Is it bright?\nOptions: A: yes, B: no, C: at noon, D: at night",
            "What is x?\nChoices:\n(A) 1\n(B) 2\n(C) 3\n(D) 4",
        ],
        "image": _coloured(),
        "answer": ["B", "A", "D"],
        "category": ["coarse perception", "coarse perception", "math"],
        "l2_category": ["recognition", "image emotion", "geometry"],
        "meta_info": [
            {"source": "MMBench", "split": "val", "image_path": f"images/{n}.jpg"} for n in range(3)
        ],
    }
    _as_image(rows).to_parquet(root / "mmstar.parquet")
    card = "---\nconfigs:\n- config_name: val\n  data_files:\n  - split: val\n    path: mmstar.parquet\n---\n"
    (root / "README.md").write_text(card)
    return root


def write_realworldqa(root: Path) -> Path:
    """RealWorldQA: a question with three options, one with two, and one that wants a word."""
    letter = "Please answer directly with only the letter of the correct option and nothing else."
    rows = {
        "image": _coloured(),
        "question": [
            f"Where does the car go?\n\nA. Left\nB. Straight\nC. Right\n{letter}",
            f"Which is nearer?\n\nA. The tree\nB. The house\n{letter}",
            "Is there a stop sign? Please answer directly with a single word or number.",
        ],
        "answer": ["B", "A", "No"],
    }
    _as_image(rows).to_parquet(root / "data" / "test-00000-of-00002.parquet")
    return root


def write_ai2d(root: Path) -> Path:
    """AI2D: the number of the right option, from 0."""
    rows = {
        "question": ["What eats the frog?", "Which is the sun?", "Which part is labelled A?"],
        "options": [
            ["the snake", "the fly", "grass", "none"],
            ["A", "B", "C", "D"],
            ["root", "leaf", "stem"],
        ],
        "answer": ["0", "3", "1"],
        "image": _coloured(),
    }
    _as_image(rows).to_parquet(root / "data" / "test-00000-of-00001.parquet")
    return root


def write_mmbench(root: Path) -> Path:
    """MMBench's own table: two questions, one with a hint and one with two options, in each order of these."""
    options = {5: ["red", "green", "blue"], 6: ["yes", "no"]}
    about = {
        5: {"question": "Which colour is it?", "hint": "Look well.", "category": "attribute_recognition"},
        6: {"question": "Is it bright?", "hint": "nan", "category": "image_quality"},
    }
    rows = []
    for number, picture in zip(options, _coloured(), strict=False):
        png = io.BytesIO()
        picture.save(png, "PNG")
        for turn in range(len(options[number])):
            order = options[number][turn:] + options[number][:turn]
            letters = dict(zip("ABCD", [*order, "", ""], strict=False))
            answer = "ABC"[order.index(options[number][1])]
            image = base64.b64encode(png.getvalue()).decode() if turn == 0 else str(number)
            rows.append(
                {
                    "index": number + 1_000_000 * turn,
                    **about[number],
                    **letters,
                    "answer": answer,
                    "image": image,
                }
            )
    root.mkdir(parents=True, exist_ok=True)
    with (root / "MMBench_DEV_EN.tsv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        table.writeheader()
        table.writerows(rows)
    return root


def write_mmmu(root: Path) -> Path:
    """MMMU: a question about one picture, one whose options are pictures, one without options."""
    first, second, third = _coloured()
    shown = [[first], [second, third], [third]]
    rows = {
        "id": ["validation_Accounting_1", "validation_Art_Theory_12", "validation_Physics_3"],
        "question": [
            "What does <image 1> show?",
            "Which of these is brighter?",
            "How many volts? <image 1>",
        ],
        "options": ["['a balance', 'a cheque', 'a receipt']", "['<image 1>', '<image 2>']", "[]"],
        "answer": ["C", "B", "['12', 'twelve']"],
        "question_type": ["multiple-choice", "multiple-choice", "open"],
        **{
            f"image_{number}": [images[number - 1] if number <= len(images) else None for images in shown]
            for number in range(1, 8)
        },
    }
    pictures = [column for column in rows if column.startswith("image_")]
    _as_image(rows, *pictures).to_parquet(root / "data" / "validation-00000-of-00001.parquet")
    return root


def _as_image(rows: dict[str, Any], *columns: str) -> datasets.Dataset:
    table = datasets.Dataset.from_dict(rows)
    for column in columns or ("image",):
        table = table.cast_column(column, datasets.Image())
    return table


def load_questions(name: str, place: str | None, split: str | None, count: int, seed: int = 0) -> Drawn:
    """Questions of a benchmark as `aegis-vqa` draws them: of the reported split unless another is named."""
    benchmark = BENCHMARKS[name]
    return benchmark.draw(place, split or benchmark.reported, count, seed, None)
