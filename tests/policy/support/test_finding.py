"""What a training does with what its checks find."""

import logging

import pytest

from aegis_policy.support.errors import AegisError
from aegis_policy.support.finding import Finding, enforce

OK = Finding("ok", "all is well")
WARNING = Finding("warning", "the gripper never moves", "record it")


def test_warnings_are_logged_and_let_a_training_go_on(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        enforce([OK, WARNING])
    assert caplog.record_tuples == [
        ("root", logging.INFO, "all is well"),
        ("root", logging.WARNING, "the gripper never moves: record it"),
    ]


def test_all_errors_stand_in_one_refusal_after_the_warnings(caplog: pytest.LogCaptureFixture):
    errors = [Finding("error", f"{what} is missing", "give it") for what in ("state", "action")]
    with pytest.raises(AegisError) as refused:
        enforce(iter([errors[0], WARNING, errors[1]]))
    assert str(refused.value) == "state is missing: give it\naction is missing: give it"
    assert caplog.messages == ["the gripper never moves: record it"]


def test_a_single_error_is_its_sentence_alone():
    with pytest.raises(AegisError, match=r"^it is broken$"):
        enforce([Finding("error", "it is broken")])
