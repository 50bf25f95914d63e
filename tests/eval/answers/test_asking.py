"""Answers that were kept are those to these questions, about these pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aegis_eval.answers.asking import Asking
from aegis_eval.questions.public import PUBLIC
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.backbone import VLMBackbone


def _folder(place: Path, grey: int) -> Path:
    place.mkdir()
    Image.fromarray(np.full((16, 16, 3), grey, dtype=np.uint8)).save(place / "0.png")
    (place / "questions.jsonl").write_text(
        '{"image": "0.png", "question": "what color is it?", "answer": "red"}\n'
    )
    return place


def test_the_same_questions_about_other_pictures_are_other_questions(
    tiny_vlm_dir: Path, tmp_path: Path
) -> None:
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    first, second = (
        Asking(
            PUBLIC["custom"].draw(str(_folder(tmp_path / name, grey)), "test", 9, 0).samples,
            2,
            2,
            tmp_path / "kept",
        )
        for name, grey in (("light", 250), ("dark", 3))
    )
    said = first.ask(vlm, str(tiny_vlm_dir), "answering")
    assert first.ask(vlm, str(tiny_vlm_dir), "answering") == said
    with pytest.raises(AegisError, match="another pictures"):
        second.ask(vlm, str(tiny_vlm_dir), "answering")
