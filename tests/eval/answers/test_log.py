"""Answers of an interrupted command are read back as far as they are whole."""

from pathlib import Path

import pytest

from aegis_eval.answers.log import AnswerLog
from aegis_policy.support.errors import AegisError

_ABOUT = {"batch_size": 2}


@pytest.mark.parametrize(
    "answer", ["red", "", "two\nlines", "one\u2028line", "next\u0085line", "\x0b\x1c", "[]"]
)
def test_an_answer_comes_back_as_it_was_given(answer: str, tmp_path: Path) -> None:
    AnswerLog(tmp_path, _ABOUT).add([("a", answer), ("b\u2028", "blue")])
    assert AnswerLog(tmp_path, _ABOUT).answers == {"a": answer, "b\u2028": "blue"}


@pytest.mark.parametrize(
    "torn", ['["b", "bl', "\x00\x00", '["b"]', "null", "3", '["b", null]', '["b", 3]', '[["b"], "c"]']
)
def test_what_is_no_answer_is_asked_again(torn: str, tmp_path: Path) -> None:
    AnswerLog(tmp_path, _ABOUT).add([("a", "red")])
    with (tmp_path / "rank0.jsonl").open("a") as file:
        file.write(torn)
    assert AnswerLog(tmp_path, _ABOUT).answers == {"a": "red"}


@pytest.mark.parametrize("first", ["", "[]", "null", '{"batch_size": 3}', "torn {"])
def test_answers_of_another_command_are_refused(first: str, tmp_path: Path) -> None:
    (tmp_path / "rank0.jsonl").write_text(f'{first}\n["a", "red"]\n')
    with pytest.raises(AegisError, match="answers of an interrupted command with another batch_size"):
        AnswerLog(tmp_path, _ABOUT)
