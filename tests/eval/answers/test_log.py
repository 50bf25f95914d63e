"""Kept answers: whole ones stay, half ones are asked again."""

from pathlib import Path

import pytest
from full_disk import largest_file

from aegis_eval.answers.log import AnswerLog
from aegis_policy.support.errors import AegisError

ABOUT = {"model": "x"}


def test_of_answers_that_did_not_fit_on_the_disk_the_whole_ones_are_kept(tmp_path: Path) -> None:
    AnswerLog(tmp_path, ABOUT).add([("1", "red"), ("2", "blue")])
    log = AnswerLog(tmp_path, ABOUT)
    with (
        largest_file(90),
        pytest.raises(AegisError, match=r"rank0\.jsonl cannot be written \(File too large\): "),
    ):
        log.add([("3", "green"), ("4", "yellow " * 10)])
    again = AnswerLog(tmp_path, ABOUT)
    assert again.answers == {"1": "red", "2": "blue", "3": "green"}
    again.add([("4", "yellow")])
    assert AnswerLog(tmp_path, ABOUT).answers == {**again.answers, "4": "yellow"}


@pytest.mark.parametrize("cut", range(1, 14))
def test_an_answer_of_which_half_was_written_is_none(cut: int, tmp_path: Path) -> None:
    AnswerLog(tmp_path, ABOUT).add([("1", "red"), ("2", "blue")])
    whole = (tmp_path / "rank0.jsonl").read_text()
    (tmp_path / "rank0.jsonl").write_text(whole[:-cut])
    kept = {"1": "red", "2": "blue"} if cut == 1 else {"1": "red"}
    assert AnswerLog(tmp_path, ABOUT).answers == kept
