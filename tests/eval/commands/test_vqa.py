import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import aegis_eval.commands.work.vqa as vqa
from aegis_envs.errors import SimulatorError
from aegis_eval.answers.asking import answer_samples
from aegis_eval.checkpoints import PolicySource
from aegis_eval.commands.anchor import AnchorConfig
from aegis_eval.commands.vqa import QuestionSource, VqaConfig, main
from aegis_eval.commands.work.anchor import make_anchor
from aegis_eval.commands.work.vqa import evaluate
from aegis_eval.questions import tabletop as benchmarks
from aegis_eval.questions.tabletop import TabletopSample, load_samples
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import alone
from aegis_policy.support.json_files import read_json, read_jsonl
from aegis_policy.vlm.backbone import VLMBackbone

SAMPLES = 18


def test_the_command_scores_a_vlm_and_names_the_files_it_wrote(tiny_vlm_dir: Path, tmp_path: Path):
    out = tmp_path / "vqa"
    flags = [f"--vlm={tiny_vlm_dir}", f"--pretrained={tiny_vlm_dir}", f"--samples={SAMPLES}"]
    command = [sys.executable, "-m", "aegis_eval.commands.vqa", *flags, f"--output_dir={out}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(out / "results.json") in done.stdout and str(out / "samples.jsonl") in done.stdout
    assert "blind %" in done.stdout and "p of change" in done.stdout

    results = json.loads((out / "results.json").read_text())
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == results["n"] == SAMPLES
    assert results["accuracy"] == pytest.approx(sum(line["correct"] for line in lines) / SAMPLES)
    assert sum(score["n"] for score in results["per_type"].values()) == SAMPLES
    assert results["pretrained"]["paired"]["difference"] == 0.0, "a model does not differ from itself"
    assert {"command", "date", "git_commit", "versions", "hardware", "seed", "seconds"} <= set(
        results["provenance"]
    )
    assert results["provenance"]["benchmark_fingerprint"]
    assert [path.name for path in tmp_path.iterdir()] == ["vqa"], "nothing half-written is left behind"


def test_an_error_is_one_sentence_on_stderr_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["aegis-vqa", "--samples=4", f"--output_dir={tmp_path / 'new'}"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert "exactly one of --policy.path" in printed
    assert len(printed.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_an_existing_output_directory_is_not_touched(tiny_vlm_dir: Path, tmp_path: Path):
    (tmp_path / "results.json").write_text("mine")
    config = VqaConfig(vlm=str(tiny_vlm_dir), output_dir=tmp_path, samples=4)
    with pytest.raises(AegisError, match="already holds files"):
        evaluate(config)
    assert (tmp_path / "results.json").read_text() == "mine"


def test_a_command_killed_when_all_was_done_leaves_nothing_for_the_next(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "out"
    shutil.copytree(tiny_checkpoint, checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr(vqa, "write_answers", lambda *_, **__: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            evaluate(_asking(checkpoint, out))
    assert "tabletop, test" in (checkpoint / "README.md").read_text(), "the score is on the card by then"
    evaluate(_asking(checkpoint, out))
    (tmp_path / ".out.answers").mkdir()
    with pytest.raises(AegisError, match="already holds files"):
        evaluate(_asking(checkpoint, out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "out"]


def test_two_commands_do_not_ask_for_the_same_folder(tiny_checkpoint: Path, tmp_path: Path):
    with alone(tmp_path / "out", "--output_dir"):
        with pytest.raises(AegisError, match="Another command is at work in --output_dir="):
            evaluate(_asking(tiny_checkpoint, tmp_path / "out"))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"device": "tpu9"}, "--device=tpu9 is not a torch device"),
        ({"pretrained": "/nowhere"}, "--pretrained=/nowhere is not a transformers model"),
        ({"benchmark": "trivia"}, "--benchmark=trivia is not known"),
        ({"batch_size": 0}, "--batch_size=0 must be at least 1"),
        ({"seed": -1}, "--seed=-1 must be at least 0"),
        ({"policy": PolicySource("/x")}, "exactly one of --policy.path"),
    ],
)
def test_flags_that_cannot_work_are_named(flags, sentence, tiny_vlm_dir: Path, tmp_path: Path):
    config = VqaConfig(vlm=str(tiny_vlm_dir), output_dir=tmp_path / "out", samples=4, **flags)
    with pytest.raises(AegisError, match=sentence):
        evaluate(config)
    assert not (tmp_path / "out").exists()


def test_a_machine_that_cannot_render_gets_one_sentence(
    tiny_vlm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def blind() -> None:
        raise SimulatorError("off-screen rendering is not available")

    monkeypatch.setattr(benchmarks, "TabletopSim", blind)
    config = VqaConfig(vlm=str(tiny_vlm_dir), output_dir=tmp_path / "out", samples=4)
    with pytest.raises(AegisError, match="off-screen rendering is not available"):
        evaluate(config)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path):
    config = VqaConfig(policy=PolicySource(str(tmp_path)), output_dir=tmp_path / "out")
    with pytest.raises(AegisError, match="holds no config"):
        evaluate(config)
    config = VqaConfig(policy=PolicySource("outputs/trian"), output_dir=tmp_path / "out")
    with pytest.raises(AegisError, match=r"--policy\.path=outputs/trian is neither a folder nor a model"):
        evaluate(config)


def test_the_flag_that_named_the_model_is_the_one_in_the_error(tmp_path: Path):
    with pytest.raises(AegisError, match=r"^--vlm=/nowhere is not a transformers model"):
        evaluate(VqaConfig(vlm="/nowhere", output_dir=tmp_path / "out"))
    with pytest.raises(AegisError, match=r"^--vlm=/nowhere is not a transformers model"):
        make_anchor(AnchorConfig(vlm="/nowhere", vqa="tabletop", out=tmp_path / "anchor.safetensors"))


def test_answers_do_not_depend_on_the_batches(tiny_vlm_dir: Path):
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    samples = load_samples("tabletop", "test", 9)
    assert answer_samples(vlm, samples, batch_size=4) == answer_samples(vlm, samples, batch_size=1)


def test_a_policy_is_compared_with_the_vlm_it_was_made_from(
    tiny_vlm_dir: Path, tiny_checkpoint: Path, tmp_path: Path
):
    policy = AegisPolicy.from_pretrained(str(tiny_checkpoint))
    with torch.no_grad():
        policy.vlm.decoder_layers[1].mlp.down_proj.weight.mul_(-3)
    policy.save_pretrained(tmp_path / "changed")
    out = evaluate(_asking(tmp_path / "changed", tmp_path / "out"))
    alone = evaluate(VqaConfig(vlm=str(tiny_vlm_dir), output_dir=tmp_path / "alone", samples=6))
    lines = read_jsonl(out / "samples.jsonl")
    assert [line["pretrained"] for line in lines] == [
        line["given"] for line in read_jsonl(alone / "samples.jsonl")
    ]
    assert all(line["pretrained"] != line["given"] for line in lines), "another model answers"
    results = read_json(out / "results.json")
    assert results["model"] == str(tmp_path / "changed") and results["pretrained_model"] == str(tiny_vlm_dir)
    assert results["vlm_fingerprint"] != read_json(alone / "results.json")["vlm_fingerprint"]


def test_every_answer_is_scored_once(tiny_vlm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scored: list[str] = []
    monkeypatch.setattr(TabletopSample, "score", lambda self, given: scored.append(given) or 0.0)
    vlm = str(tiny_vlm_dir)
    evaluate(VqaConfig(vlm=vlm, pretrained=vlm, output_dir=tmp_path / "out", samples=4))
    assert len(scored) == 3 * 4, "the model's, the pretrained model's and the guesser's"


def test_a_policy_is_compared_with_answers_that_its_vlm_gave_before(
    tiny_vlm_dir: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = evaluate(VqaConfig(vlm=str(tiny_vlm_dir), output_dir=tmp_path / "before", samples=6))
    usual = evaluate(_asking(tiny_checkpoint, tmp_path / "usual"))
    monkeypatch.setattr(vqa, "load_original_vlm", lambda *_: pytest.fail("the VLM is not needed again"))
    out = evaluate(_asking(tiny_checkpoint, tmp_path / "out", pretrained_answers=asked))
    assert (out / "samples.jsonl").read_text() == (usual / "samples.jsonl").read_text()
    scores = [json.loads((folder / "results.json").read_text())["pretrained"] for folder in (usual, out)]
    assert scores[0] == scores[1] and scores[0] is not None


def test_answers_to_other_questions_or_of_another_model_are_refused(
    tiny_vlm_dir: Path, tiny_checkpoint: Path, tmp_path: Path
):
    asked = evaluate(VqaConfig(vlm=str(tiny_vlm_dir), output_dir=tmp_path / "before", samples=5))
    config = _asking(tiny_checkpoint, tmp_path / "out", pretrained_answers=asked)
    with pytest.raises(AegisError, match="answers other questions"):
        evaluate(config)
    results = json.loads((asked / "results.json").read_text())
    (asked / "results.json").write_text(json.dumps({**results, "vlm_fingerprint": "of another"}))
    with pytest.raises(AegisError, match="is not the VLM that this policy was made from"):
        evaluate(replace(config, samples=5))
    with pytest.raises(AegisError, match="was asked with --max_new_tokens=8, not 4"):
        evaluate(replace(config, samples=5, max_new_tokens=4))
    of_policy = evaluate(_asking(tiny_checkpoint, tmp_path / "of policy"))
    with pytest.raises(AegisError, match="holds the answers of a policy"):
        evaluate(replace(config, pretrained_answers=of_policy))
    with pytest.raises(AegisError, match=r"holds no results\.json"):
        evaluate(replace(config, pretrained_answers=tmp_path))
    with pytest.raises(AegisError, match="at most one of --pretrained and --pretrained_answers"):
        evaluate(replace(config, pretrained=str(tiny_vlm_dir)))
    assert not (tmp_path / "out").exists()


def test_answers_about_other_pictures_are_refused_wherever_they_lie(
    tiny_vlm_dir: Path, tmp_path: Path
) -> None:
    def own(name: str, *greys: int) -> str:
        (tmp_path / name).mkdir()
        lines = []
        for number, grey in enumerate(greys):
            Image.new("RGB", (16, 16), (grey,) * 3).save(tmp_path / name / f"{number}.png")
            lines.append({"image": f"{number}.png", "question": "what color is it?", "answer": "grey"})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "questions.jsonl").write_text(text)
        return str(tmp_path / name)

    def asked(place: str, name: str, before: Path | None = None) -> Path:
        flags = VqaConfig(vlm=str(tiny_vlm_dir), benchmark="custom", output_dir=tmp_path / name)
        return evaluate(replace(flags, vqa=QuestionSource(place), pretrained_answers=before))

    here, changed = own("here", 250, 3), own("changed", 250, 4)
    before = asked(here, "before")
    for place in (changed, own("swapped", 3, 250)):
        with pytest.raises(AegisError, match="answers the same questions about other pictures: name answers"):
            asked(place, "refused", before)
    assert not (tmp_path / "refused").exists()
    moved = shutil.copytree(here, tmp_path / "moved", copy_function=shutil.copyfile)
    asked(str(moved), "accepted", before)
    results = read_json(before / "results.json")
    assert results["provenance"].pop("pictures_fingerprint")
    (before / "results.json").write_text(json.dumps(results))
    asked(changed, "by an older version", before)


def test_a_policy_whose_vlm_is_gone_is_asked_without_comparison(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "vlm": str(tmp_path / "gone")}))
    results = json.loads((evaluate(_asking(copy, tmp_path / "out")) / "results.json").read_text())
    assert results["pretrained"] is None and results["n"] == 6
    assert "cannot be read, so nothing is compared with it" in capsys.readouterr().out


def test_another_vlm_in_the_old_ones_place_is_not_compared_with(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "vlm_fingerprint": "of another"}))
    results = json.loads((evaluate(_asking(copy, tmp_path / "out")) / "results.json").read_text())
    assert results["pretrained"] is None
    assert "its fingerprint differs" in capsys.readouterr().out


def _asking(checkpoint: Path, output_dir: Path, **flags) -> VqaConfig:
    return VqaConfig(policy=PolicySource(str(checkpoint)), output_dir=output_dir, samples=6, **flags)
