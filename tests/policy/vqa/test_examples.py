"""Answers are compared but for case, punctuation and blanks; a source has a name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_policy.support.errors import AegisError
from aegis_policy.vqa.examples import exact_match, load_vqa, normalise_answer


@pytest.mark.parametrize(
    ("given_answer", "answer", "same"),
    [
        ("Green Cylinder.", "green cylinder", True),
        ("  yes\n", "yes", True),
        ("no!", "yes", False),
        ("", "yes", False),
        ("green", "green cylinder", False),
    ],
)
def test_exact_match_ignores_case_punctuation_and_spaces_only(given_answer, answer, same):
    assert exact_match(given_answer, answer) is same


@given(st.text(alphabet="aBé7 .,!?'\n\t-"))
def test_normalising_twice_changes_nothing(text):
    assert normalise_answer(normalise_answer(text)) == normalise_answer(text)


@pytest.mark.parametrize("nothing", ["", " "])
def test_a_source_of_no_name_is_refused(nothing: str):
    with pytest.raises(AegisError, match=r"--policy\.replay_data is empty: name where"):
        load_vqa(nothing, "--policy.replay_data", count=1)
