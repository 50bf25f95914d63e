"""Tables as a terminal and as Markdown show them."""

from aegis_eval.statistics.tables import Table

SCORES = Table(["type", "n", "accuracy %"], [["count", "8", "50.0"], ["all", "16", "75.0"]], total=True)


def test_a_total_is_ruled_off_and_numbers_stand_to_the_right() -> None:
    assert SCORES.text().splitlines() == [
        "type    n  accuracy %",
        "---------------------",
        "count   8        50.0",
        "---------------------",
        "all    16        75.0",
    ]


def test_words_stand_to_the_left_without_spaces_at_the_end() -> None:
    runs = Table(["", "success", "answers"], [["Pretrained", "-", "96%"], ["AEGIS", "3/4 = 75%", "95%"]])
    assert runs.text(right=False).splitlines() == [
        "            success    answers",
        "Pretrained  -          96%",
        "AEGIS       3/4 = 75%  95%",
    ]


def test_markdown_fills_up_what_a_row_lacks() -> None:
    table = Table(["variant", "accuracy", "gain"], [["(pretrained)", "96.3"], ["none", "80.1", ""]])
    assert table.markdown().splitlines() == [
        "| variant | accuracy | gain |",
        "|---|---|---|",
        "| (pretrained) | 96.3 | |",
        "| none | 80.1 |  |",
    ]
    assert len(table.text().splitlines()) == 3
