"""What could be answered without looking."""

from aegis_eval.answers.blind import BlindBaseline


def test_blind_baseline_answers_by_text_then_by_type_and_never_without_training():
    training = [("is it red?", "yes", "existence")] * 6 + [("is it blue?", "no", "existence")] * 20
    baseline = BlindBaseline(min_count=5).fit(training)
    assert baseline.predict("Is it red", "existence") == "yes"
    assert baseline.predict("is it cyan?", "existence") == "no"
    assert baseline.predict("how many?", "count") == ""
