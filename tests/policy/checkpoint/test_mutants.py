"""A checkpoint whose small files somebody or something has changed is read or refused with a sentence, never otherwise.

The weights are those of a tiny policy. What is read whole here, is read by the checks that `aegis-doctor` runs too.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from mutants import mutate_bytes, mutate_json, mutate_text
from training_steps import MakePolicy

from aegis_eval.checkpoints import load_processors
from aegis_eval.doctor.files import check_policy
from aegis_policy.checkpoint.card import CARD_FILE, VQAScore, add_score
from aegis_policy.checkpoint.changes import check_use, optimizer_begun
from aegis_policy.checkpoint.files import read_config
from aegis_policy.checkpoint.listing import LIST_FILE
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.processor_aegis import make_aegis_pre_post_processors
from aegis_policy.support.errors import AegisError
from aegis_policy.support.finding import enforce

FEW, MANY = 10, 2_000
_LONGEST = 4_000
"""Characters of a refusal: a sentence, and somebody else's in it."""


@pytest.fixture(scope="module")
def checkpoint(make_policy: MakePolicy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as a training leaves it, with an anchor and a state."""
    folder = tmp_path_factory.mktemp("checkpoint") / "pretrained_model"
    policy = make_policy("aegis")
    policy.get_optim_params()
    policy.save_pretrained(folder)
    statistics = {
        key: {"mean": [0.0] * n, "std": [1.0] * n} for key, n in (("observation.state", 5), ("action", 3))
    }
    for processor in make_aegis_pre_post_processors(policy.config, statistics):
        processor.save_pretrained(folder)
    (folder / "train_config.json").write_text(
        json.dumps({"dataset": {"repo_id": "me/data"}, "optimizer": {"lr": 0.1}})
    )
    return folder


@contextmanager
def _changed(folder: Path, name: str, rng: random.Random) -> Iterator[bytes]:
    """The folder with a mutant of one of its files, for as long as the block runs."""
    path = folder / name
    whole = path.read_bytes()
    try:
        path.write_bytes(_mutant(whole, name, rng))
        yield path.read_bytes()
    finally:
        path.write_bytes(whole)


def _mutant(whole: bytes, name: str, rng: random.Random) -> bytes:
    if name.endswith(".safetensors") and rng.random() < 0.5:
        size = int.from_bytes(whole[:8], "little")
        header = json.dumps(mutate_json(json.loads(whole[8 : 8 + size]), rng)).encode(errors="surrogatepass")
        return len(header).to_bytes(8, "little") + header + whole[8 + size :]
    if name.endswith(".json") and rng.random() < 0.8:
        return json.dumps(mutate_json(json.loads(whole), rng, rng.randint(1, 2))).encode(
            errors="surrogatepass"
        )
    if not name.endswith(".safetensors") and rng.random() < 0.5:
        return mutate_text(whole.decode(), rng).encode(errors="surrogatepass")
    return mutate_bytes(whole, rng)


def _read_configuration(folder: Path) -> None:
    check_use(folder, read_config(folder), None)


def _read_policy(folder: Path) -> None:
    AegisPolicy.from_pretrained(folder)


def _read_processors(folder: Path) -> None:
    load_processors(SimpleNamespace(config=read_config(folder)), str(folder), "cpu")


def _read_state(folder: Path) -> None:
    AegisPolicy.from_pretrained(folder).get_optim_params()


def _read_training_config(folder: Path) -> None:
    optimizer_begun(folder)


def _add_to_card(folder: Path) -> None:
    add_score(folder, VQAScore("okvqa, val", 5, 0.5))


KINDS: dict[str, tuple[list[str], Callable[[Path], None]]] = {
    "configuration": (["config.json"], _read_configuration),
    "training configuration": (["train_config.json"], _read_training_config),
    "list": ([LIST_FILE], _read_policy),
    "processors": (["policy_preprocessor.json", "policy_postprocessor.json"], _read_processors),
    "state": (["protection_state.safetensors"], _read_state),
    "anchor": (["anchor.safetensors"], _read_policy),
    "VLM": (
        [
            "vlm/config.json",
            "vlm/generation_config.json",
            "vlm/processor_config.json",
            "vlm/tokenizer_config.json",
        ],
        _read_policy,
    ),
    "card": ([CARD_FILE], _add_to_card),
}


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_mutants_of_a_checkpoint_s_files_are_read_or_refused(
    checkpoint: Path, kind: str, count: int, tmp_path: Path
) -> None:
    names, read = KINDS[kind]
    folder = tmp_path / "pretrained_model"
    shutil.copytree(checkpoint, folder)
    refused = 0
    for seed in range(count):
        rng = random.Random(f"{kind} {seed}")
        name = rng.choice(names)
        with _changed(folder, name, rng) as mutant:
            try:
                enforce(check_policy(folder, None))
                read(folder)
            except AegisError as error:
                refused += 1
                assert len(str(error)) < _LONGEST, (seed, name)
            except Exception as error:
                raise AssertionError(f"{kind} {seed}: {name}: {mutant[:2000]!r}") from error
    assert kind in ("card", "training configuration") or refused > count // 10
