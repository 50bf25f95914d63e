"""Questions that were damaged on their way are read as what they say, or refused with one sentence."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mutants import mutate_bytes, mutate_json, mutate_text
from official_files import load_questions, write_coco, write_gqa, write_okvqa, write_pope, write_textvqa
from random_data import write_random_questions

from aegis_eval.questions.from_records import require_decoded
from aegis_policy.support.errors import AegisError
from aegis_policy.vqa.examples import load_vqa

_WRITERS: dict[str, Callable[[Path], Path]] = {
    "custom": lambda folder: write_random_questions(folder, answer="a cube"),
    "vqav2": write_coco,
    "okvqa": write_okvqa,
    "textvqa": write_textvqa,
    "gqa": write_gqa,
    "pope": write_pope,
}
_FEW, _MANY = 30, 2_000


def _of_values(written: bytes, rng: random.Random) -> bytes:
    """Other values in JSON, or in one of the lines."""
    try:
        mutants = [mutate_json(json.loads(written), rng, rng.randint(1, 2))]
    except ValueError:
        mutants = [json.loads(line) for line in written.splitlines()]
        place = rng.randrange(len(mutants))
        mutants[place] = mutate_json(mutants[place], rng, rng.randint(1, 2))
    return b"\n".join(
        json.dumps(each, ensure_ascii=rng.random() < 0.5).encode("utf-8", "replace") for each in mutants
    )


def _of_text(written: bytes, rng: random.Random) -> bytes:
    return mutate_text(written.decode(), rng).encode("utf-8", "surrogatepass")


def _require_sane(samples: Any) -> None:
    for each in samples:
        assert each.question.strip() and each.answer.strip() and each.answers and each.type and each.origin
        assert not {each.question, each.answer} & {"None", "nan", "[]", "{}"}
        assert 0 <= each.score(each.answer) <= 1 and each.score(each.answer) > 0
        f"{each.id} {each.scene} {each.question} {each.answers}".encode()
    assert len({each.id for each in samples}) == len(samples)


@pytest.mark.parametrize("count", [_FEW, pytest.param(_MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mutate", [_of_values, _of_text, mutate_bytes])
@pytest.mark.parametrize("name", _WRITERS)
def test_a_mutant_is_read_or_refused(
    name: str, mutate: Callable[[bytes, random.Random], bytes], count: int, tmp_path: Path
) -> None:
    place = _WRITERS[name](tmp_path / "questions")
    whole = {path: path.read_bytes() for path in sorted(place.glob("*.json*"))}
    refused = 0
    for seed in range(count):
        rng = random.Random(f"{name} {mutate.__name__} {seed}")
        path = rng.choice(list(whole))
        path.write_bytes(mutate(whole[path], rng))
        try:
            samples, _ = load_questions(name, str(place), None, 100, seed)
            require_decoded(samples)
            _require_sane(samples)
            if name == "custom":
                read = load_vqa(str(place), "--vqa", count=100)
                assert [each.answer for each in read] == [each.answer for each in samples]
        except AegisError as error:
            refused += 1
            assert str(place) in str(error) and str(error).endswith(".") and "\n" not in str(error)
            assert len(str(error)) < 1_500, "one sentence"
        finally:
            path.write_bytes(whole[path])
    assert 0 < refused < count, "some of both"
