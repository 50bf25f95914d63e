"""`aegis-act`: who knows what is meant is told from who does not."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aegis_envs.tabletop.expert import expert_action
from aegis_envs.tabletop.scene import depth, lateral
from aegis_eval.checkpoints import PolicySource
from aegis_eval.commands.act import ActConfig
from aegis_eval.commands.work.act import act, act_on, judged
from aegis_eval.questions.acted import KINDS, ActedQuestion, pairs
from aegis_eval.results.acted import ActedKind, read_acted
from aegis_policy.support.errors import AegisError


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[ActedQuestion]]:
    """Six scenes of each kind, two questions each."""
    return {kind: [each for pair in pairs(kind, 6, seed=3) for each in pair] for kind in KINDS}


def obedient(envs, observations, first):
    return np.stack([expert_action(env.sim, env.episode) for env in envs])


def deaf(envs, observations, first):
    """Goes to the first object of the scene, whatever is said."""
    return np.stack(
        [
            expert_action(env.sim, replace(env.episode, target=env.episode.scene.objects[0].name))
            for env in envs
        ]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_who_goes_to_what_is_meant_is_right_and_who_is_deaf_at_most_half_the_time(kind: str, drawn):
    questions = drawn[kind]
    answers = [each.answer for each in questions]
    heard = judged(kind, questions, act_on(obedient, questions, seed=0, batch_size=4), answers)
    assert all(heard.acted) and all(heard.answered)
    ignored = judged(kind, questions, act_on(deaf, questions, seed=0, batch_size=4), ["no"] * len(answers))
    pairs_acted = list(zip(ignored.acted[::2], ignored.acted[1::2], strict=True))
    assert (True, True) not in pairs_acted and not any(ignored.answered)
    for arm, shares in heard.ignoring.items():
        assert all(sum(pair) <= 1 for pair in zip(shares[::2], shares[1::2], strict=True)), arm
    if kind == "count":
        assert all(sum(pair) == 1 for pair in pairs_acted)


def test_the_two_of_a_scene_differ_in_what_is_meant_alone(drawn):
    for questions in drawn.values():
        for first, second in zip(questions[::2], questions[1::2], strict=True):
            assert first.episode.scene == second.episode.scene
            assert first.episode.start == second.episode.start
            assert not first.wanted & second.wanted
            assert first.episode.instruction != second.episode.instruction
            assert first.episode.target in first.wanted


def test_what_is_meant_is_where_the_words_say(drawn):
    beyond = {"left of": -1, "right of": 1, "behind": -1, "in front of": 1}
    for kind in ("relation", "composed"):
        for each in drawn[kind]:
            (relation,) = [words for words in beyond if f" {words} the " in each.episode.instruction]
            scene, (name,) = each.episode.scene, each.wanted
            other = scene.objects[scene.index(each.episode.instruction.split(f" {relation} the ")[1])]
            axis = lateral if relation in ("left of", "right of") else depth
            assert np.sign(axis(scene.objects[scene.index(name)]) - axis(other)) == beyond[relation]
    for each in drawn["size"]:
        sizes = {thing.name: thing.scale for thing in each.episode.scene.objects}
        extreme = max if "largest" in each.episode.instruction else min
        assert each.wanted == {extreme(sizes, key=sizes.__getitem__)}
    for each in drawn["count"]:
        shapes = [thing.shape for thing in each.episode.scene.objects if thing.name in each.wanted]
        assert len(shapes) == (2 if "two of" in each.episode.instruction else 1) == int(each.answer)
        assert len(set(shapes)) == 1


def test_more_scenes_begin_with_the_fewer(drawn):
    assert [each for pair in pairs("relation", 2, seed=3) for each in pair] == drawn["relation"][:4]


def test_a_checkpoint_is_asked_by_the_command_and_its_file_read_again(
    tiny_checkpoint: Path, tmp_path: Path, capsys
):
    config = ActConfig(
        PolicySource(str(tiny_checkpoint)), kinds=["extreme", "count"], scenes=2, output=tmp_path / "act.json"
    )
    file = act(config)
    assert "nearest object" in capsys.readouterr().out
    found = read_acted(file)
    assert [each.kind for each in found] == ["extreme", "count"]
    assert all(len(each.acted) == 4 for each in found)
    written = json.loads(file.read_text())["kinds"]["count"]
    assert written["estimates"]["acted"]["value"] == np.mean(found[1].acted)
    assert found[1] == ActedKind(**{key: value for key, value in written.items() if key != "estimates"})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "--policy.path is missing"),
        ({"scenes": 0}, "--scenes=0 must be at least 1"),
        ({"kinds": ["taste"]}, r"--kinds=\[taste\]: choose some of relation"),
        ({"kinds": []}, "choose some of"),
    ],
)
def test_what_cannot_be_asked_is_named(options, sentence):
    with pytest.raises(AegisError, match=sentence):
        act(ActConfig(**options))


def test_a_file_of_something_else_is_named(tmp_path: Path):
    (tmp_path / "act.json").write_text('{"kinds": {"size": {"kind": "size", "acted": [true]}}}')
    with pytest.raises(AegisError, match="is not what aegis-act writes"):
        read_acted(tmp_path / "act.json")
