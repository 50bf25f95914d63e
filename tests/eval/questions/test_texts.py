"""Questions without a picture: what a line may be, what counts as right, and that every command reads the same file."""

import json
from pathlib import Path
from typing import Any

import pytest
from random_data import write_random_questions

from aegis_eval.commands.anchor import AnchorConfig
from aegis_eval.commands.work.anchor import make_anchor
from aegis_eval.questions.benchmarks import find_benchmark
from aegis_eval.questions.texts import says_one_of
from aegis_policy.support.errors import AegisError
from aegis_policy.vqa.examples import load_vqa
from aegis_policy.vqa.texts import read_paragraphs

SHIPPED = Path(__file__).parents[3] / "benchmarks" / "real_vlm"


def write_lines(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines))
    return path


@pytest.mark.parametrize(
    ("given", "answers", "right"),
    [
        ("The capital of France is Paris.", ["Paris"], True),
        ("paris", ["PARIS!"], True),
        ("A spider has eight legs.", ["8", "eight"], True),
        ("A spider has 80 legs.", ["8", "eight"], False),
        ("Parisians live there.", ["Paris"], False),
        ("It is ice cream, of course", ["ice cream"], True),
        ("Cream with ice", ["ice cream"], False),
        ("", ["nothing"], False),
    ],
)
def test_an_answer_counts_if_it_stands_in_what_was_said_in_whole_words(
    given: str, answers: list[str], right: bool
) -> None:
    assert says_one_of(given, answers) == right


def test_a_file_is_a_benchmark_and_a_source_of_the_same_questions(tmp_path: Path) -> None:
    lines = [{"question": f"which number is {n}?", "answers": [str(n), f"number {n}"]} for n in range(9)]
    file = write_lines(tmp_path / "general.jsonl", *lines[:-1], {"question": "and 8?", "answer": 8})
    benchmark = find_benchmark(f"text:{file}")
    drawn = benchmark.draw(None, benchmark.find_split(None, "val"), 4, 0, None)
    assert (benchmark.name, drawn.total, len(drawn.samples)) == ("text:general.jsonl", 9, 4)
    assert all(sample.image is None for sample in drawn.samples)
    assert benchmark.training(10, None) == ()
    examples = load_vqa(f"text:{file}", "--policy.vqa_probe_data", split="val", count=4, with_answers=True)
    assert [each.question for each in examples] == [each.question for each in drawn.samples]
    assert all(each.image is None and each.score(f"it is {each.answer}.") == 1 for each in examples)
    everything = benchmark.draw(None, "all", 100, 0, None).samples
    assert len({each.scene for each in everything}) == 9, "intervals are over questions"
    assert everything[-1].score("I say 8") == 1


@pytest.mark.parametrize(
    ("name", "lines", "sentence"),
    [
        ("q.jsonl", [], r"q\.jsonl is empty: it needs a line for every question\."),
        ("q.jsonl", ["{"], r"q\.jsonl line 1 is not usable \(.*\): it must be \{\"question\""),
        ("q.jsonl", [{"question": "why?"}], r"q\.jsonl line 1 is not usable \(it has no answer\)"),
        ("q.jsonl", [{"question": "why?", "answers": []}], r"line 1 is not usable \(it has no answer\)"),
        ("q.jsonl", [{"question": "why?", "answers": ["b", "?!"]}], r'its answer "\?!" has no word'),
        ("q.jsonl", [{"answer": "so"}], r"line 1 is not usable \(it has no question\)"),
        ("q.csv", ["a"], r"q\.csv must end with \.jsonl \(questions\) or \.txt \(running text\)\."),
        ("q.txt", ["some words"], r"questions come from a file, as text:FILE\.jsonl: name one\."),
    ],
)
def test_what_is_no_file_of_questions_is_one_sentence(
    name: str, lines: list[Any], sentence: str, tmp_path: Path
) -> None:
    file = write_lines(tmp_path / name, *lines)
    with pytest.raises(AegisError, match=sentence):
        load_vqa(f"text:{file}", "--policy.replay_data", count=5)


def test_a_file_that_is_not_there_and_a_benchmark_that_is_none_are_named() -> None:
    with pytest.raises(AegisError, match=r"^--benchmark=text:no\.jsonl names no file"):
        find_benchmark("text:no.jsonl")
    with pytest.raises(AegisError, match=r"--benchmark=text is not known: .* or give text:FILE"):
        find_benchmark("text")


def test_paragraphs_stand_between_empty_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\none line\nand another\n \n\n\ntwo\n")
    assert read_paragraphs(tmp_path / "a.txt", 5) == ["one line\nand another", "two"]
    assert read_paragraphs(tmp_path / "a.txt", 1) in (["one line\nand another"], ["two"])
    (tmp_path / "b.txt").write_text(" \n\n \n")
    with pytest.raises(AegisError, match=r"b\.txt holds no paragraph"):
        read_paragraphs(tmp_path / "b.txt", 5)
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    with pytest.raises(AegisError, match=r"c\.txt cannot be read as text .*: save it as UTF-8"):
        read_paragraphs(tmp_path / "c.txt", 5)


def test_the_questions_and_the_prose_that_are_shipped_are_usable() -> None:
    questions: set[str] = set()
    paragraphs: set[str] = set()
    for name, question_count, paragraph_count in (("", 342, 40), ("_test", 313, 24)):
        source = f"text:{SHIPPED / f'general_questions{name}.jsonl'}"
        examples = load_vqa(source, "--vqa", count=1000, with_answers=True)
        asked = {_letters(each.question) for each in examples}
        assert len(asked) == len(examples) == question_count
        assert not any(each.score(each.question) for each in examples), "no question gives its answer away"
        assert not any(each.score("No, it is a thing, and this is what it was.") for each in examples)
        assert not asked & questions, "what was looked at while choosing is no test"
        questions |= asked
        prose = read_paragraphs(SHIPPED / f"prose{name}.txt", 100)
        assert len(prose) == paragraph_count and all(60 <= len(each.split()) <= 110 for each in prose)
        assert not paragraphs & set(prose)
        paragraphs |= set(prose)


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def test_an_anchor_is_made_of_questions_with_and_without_pictures(tiny_vlm_dir: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "q.jsonl", *({"question": f"what is {n}?", "answer": n} for n in range(3)))
    write_random_questions(tmp_path / "vqa", answer="a cube")
    source = f"{tmp_path / 'vqa'}+text:{file}"

    def anchor(**options: Any) -> Any:
        return make_anchor(
            AnchorConfig(vlm=str(tiny_vlm_dir), batch_size=2, out=tmp_path / "anchor.safetensors", **options)
        )

    both = anchor(vqa=source, kinds=["subspace"], samples=3)
    assert both.metadata["samples"] == "6"
    file.write_text(file.read_text() + "\n")
    again = anchor(vqa=source, kinds=["subspace"], samples=3)
    assert both.metadata["source"] != again.metadata["source"], "another file"
