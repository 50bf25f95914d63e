"""`aegis-ablate` and `aegis-action-error` through the real commands, on a few episodes and steps."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from aegis_eval.checkpoints import PolicySource
from aegis_eval.commands.ablate import AblateConfig
from aegis_eval.commands.action_error import ActionErrorConfig, DatasetSource
from aegis_eval.commands.work import ablate as command
from aegis_eval.commands.work.ablate import ablate, ablation_plan
from aegis_eval.commands.work.action_error import action_error, frames_spread_over
from aegis_eval.experiments.anchors import anchor_jobs
from aegis_eval.experiments.configurations import check_configurations
from aegis_eval.experiments.variants import ANCHORS, SHARES, VARIANTS
from aegis_eval.results import measured
from aegis_eval.results.run_file import RunFile
from aegis_policy.isolation import DEFAULT_SHARE, Anchor, direction_count
from aegis_policy.pretrained import embedded_anchor
from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import read_json, write_json

QUICK = [
    "--variants=[none]",
    "--seeds=1",
    "--episodes=2",
    "--held_out=2",
    "--steps=4",
    "--batch_size=2",
    "--samples=12",
    "--frames=6",
    "--probe_freq=2",
    "--split=val",
]


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ablation of the two trainings that are in every one."""
    folder = tmp_path_factory.mktemp("ablation") / "run"
    done = _ablate(folder, *QUICK)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"wrote {folder / 'ablation.md'}" in done.stdout
    return folder


def _ablate(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("aegis-ablate"), f"--output_dir={folder}", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_an_ablation_ends_with_numbers_of_every_run(ablation: Path) -> None:
    results = json.loads((ablation / "ablation.json").read_text())
    assert [run["variant"] for run in results["runs"]] == ["none", "stop_gradient"]
    for run in results["runs"]:
        assert len(run["correct"]) == len(run["pretrained"]) == 12 and len(run["episode_errors"]) == 2
        assert run["action_error"] > 0
        assert len(run["curves"]["vqa_accuracy"]["values"]) == 4
    stopped = results["runs"][1]
    assert stopped["correct"] == stopped["pretrained"]
    assert results["variants"]["none"] == ["--policy.protection=none"]
    config = json.loads(
        (ablation / "runs/none-0/training/checkpoints/000004/pretrained_model/config.json").read_text()
    )
    assert set(config["input_features"]) == {"observation.images.wrist", "observation.state"}


@pytest.mark.slow
def test_what_is_finished_is_not_run_again(ablation: Path) -> None:
    weights = ablation / "runs/none-0/training/checkpoints/000004/pretrained_model/model.safetensors"
    before = weights.stat().st_mtime_ns
    done = _ablate(ablation, *QUICK)
    assert done.returncode == 0 and weights.stat().st_mtime_ns == before


@pytest.mark.slow
def test_trainings_of_other_flags_need_another_folder(ablation: Path) -> None:
    done = _ablate(ablation, *QUICK, "--lr=1.0")
    assert done.returncode == 2 and "results of other flags (--lr=0.0015, not 1.0)" in done.stderr


@pytest.mark.slow
def test_table_and_figures_come_from_the_json_alone(ablation: Path, tmp_path: Path) -> None:
    ablate(AblateConfig(redraw=ablation / "ablation.json", output_dir=tmp_path))
    assert (tmp_path / "ablation.md").read_text() == (ablation / "ablation.md").read_text()
    assert (tmp_path / "frontier.png").exists() and (tmp_path / "retention.png").exists()


@pytest.mark.slow
def test_the_action_error_of_a_checkpoint_repeats(ablation: Path, tmp_path: Path) -> None:
    checkpoint = ablation / "runs/none-0/training/checkpoints/000004/pretrained_model"
    source = DatasetSource(root=ablation / "data" / "val")
    first, again, other = (
        json.loads(
            action_error(
                ActionErrorConfig(
                    PolicySource(str(checkpoint)), source, frames=6, seed=seed, output=tmp_path / "error.json"
                )
            ).read_text()
        )
        for seed in (0, 0, 1)
    )
    kept = json.loads((ablation / "runs/none-0/action-error-val.json").read_text())
    assert first["errors"] == again["errors"] != other["errors"]
    # The ablation's command had another number of threads, on which the last digit depends.
    assert kept["errors"] == pytest.approx(first["errors"], abs=5e-6)
    assert first["frames"] == 6 and first["draws"] == 2 and len(first["errors"]) == 12
    assert first["action_error"] == pytest.approx(sum(first["errors"]) / 12, abs=1e-5)
    assert first["ci"][0] <= first["action_error"] <= first["ci"][1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "--dataset.root is missing"),
        ({"dataset": DatasetSource("some/data")}, "--policy.path is missing"),
        (
            {"dataset": DatasetSource("some/data"), "policy": PolicySource("nowhere/at/all")},
            "--policy.path=nowhere/at/all does not exist",
        ),
        ({"frames": 0}, "--frames=0 must be at least 1"),
    ],
)
def test_an_action_error_of_nothing_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(AegisError, match=sentence):
        action_error(ActionErrorConfig(**options))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"variants": ["subspace 0.123"]}, "--variants: subspace 0.123 is unknown; there are: none,"),
        ({"split": "train"}, "--split=train is unknown: choose val or test"),
        ({"seeds": 0}, "--seeds=0 must be at least 1"),
        ({"data_seed": -1}, "--data_seed=-1 must be at least 0"),
        ({"data_seed": 1_000_003}, "--data_seed=1000003 is that of held-out demonstrations: choose another"),
        ({"data_seed": 2_000_003}, "--data_seed=2000003 is that of held-out demonstrations: choose another"),
        ({"cameras": "wrist,top"}, "--cameras: 'top' is unknown; the tabletop has front and wrist"),
        ({"tasks": "juggle"}, "--tasks=juggle is not a tabletop task"),
        ({"variants": []}, r"--variants=\[\] names none; there are: none,"),
        ({"device": "tpu"}, r"^--device=tpu cannot be \(Unknown device tpu\..*\): correct it"),
        ({"flow_samples": 0}, "^--flow_samples=0 must be between"),
        ({"lr": -1.0}, "^--lr=-1.0 "),
        ({"lr_backbone": -1.0}, "^--lr_backbone=-1.0 "),
        ({"policy": ["nope=3"]}, r"^--policy\.nope=3 gives no field of AegisConfig a value"),
        ({"policy": ["gradient_checkpointing"]}, r"^--policy\.gradient_checkpointing gives no field"),
        ({"policy": ["chunk_size=many"]}, r"^--policy\.chunk_size=many cannot be \(invalid literal"),
        ({"policy": ["normalization_mapping={"]}, r"^--policy\.normalization_mapping=\{ cannot be \("),
        (
            {"benchmarks": ["okvqa"]},
            "^--benchmarks: okvqa is none that can be added: choose of tabletop_composed",
        ),
        ({"benchmarks": ["tabletop"]}, "^--benchmarks: tabletop is none that can be added"),
        ({"texts": ["no.jsonl"]}, r"^--texts: text:no\.jsonl names no file"),
        ({"texts": ["no.md"]}, r"^--texts: text:no\.md must end with \.jsonl"),
        ({"policy": ["dtype=float8"]}, r"^--policy\.dtype=float8 is unknown"),
        ({"start": Path("no/where")}, r"^no/where"),
    ],
)
def test_flags_that_cannot_be_are_named(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(AegisError, match=sentence):
        ablate(AblateConfig(output_dir=tmp_path / "ablation", **options))
    assert not (tmp_path / "ablation").exists()


def test_a_result_file_names_the_split_that_it_is_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ablation"

    def measure(jobs: object, **_: object) -> dict[str, AegisError]:
        found = {"action_error": 0.5, "episode_of_error": [0], "errors": [0.5]}
        write_json(folder / "runs" / "none-0" / "action-error-val.json", found)
        return {"none-0": AegisError("No memory is left.")}

    monkeypatch.setattr(command, "run_jobs", measure)
    with pytest.raises(AegisError, match="No memory is left"):
        ablate(AblateConfig(output_dir=folder, split="val"))
    assert RunFile.read(folder / "results" / "none-0.json").setting["split"] == "val"


def test_every_variant_is_a_configuration_and_has_its_anchor() -> None:
    import draccus

    from aegis_policy.configuration_aegis import AegisConfig

    for name, variant in VARIANTS.items():
        flags = [flag.replace("--policy.", "--") for flag in variant.flags]
        draccus.parse(config_class=AegisConfig, args=flags)
        assert variant.anchor is None or variant.anchor in ANCHORS, name


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variants_anchor_is_made_with_what_it_needs_where_the_vlm_brings_none(
    name: str, tmp_path: Path
) -> None:
    (*_, job) = anchor_jobs(tmp_path, [name], data=tmp_path, cameras=None, device=None, vlm="other") or [None]
    needs = {"w2_penalty": {"gaussian"}, "ewc": {"fisher"}, "aegis": {"subspace"}}
    options = dict(flag.removeprefix("--policy.").split("=") for flag in VARIANTS[name].flags)
    wanted = (
        set(options["anchor"].split("+")) if "anchor" in options else needs.get(options["protection"], set())
    )
    if options.get("lora_null_space"):
        wanted = {"subspace"}
    assert (job is not None) == bool(wanted)
    if job is not None:
        made = dict(flag.split("=", 1) for flag in job.stages[0].command if flag.startswith("--"))
        kinds = made["--kinds"].strip("[]").split(",")
        assert wanted <= set(kinds)
        kept = float(made.get("--share", DEFAULT_SHARE))
        assert float(options.get("anchor_share", DEFAULT_SHARE)) <= kept


def test_the_embedded_vlms_anchor_serves_the_variants_that_bring_none() -> None:
    anchor = Anchor.load(embedded_anchor())
    assert anchor.gaussians and anchor.metadata["kinds"] == "gaussian,subspace"
    for name, layer in anchor.factors.items():
        assert len(layer.inputs.values_K) >= direction_count(len(layer.inputs.vectors_DK), max(SHARES)), name


def test_the_trainings_of_every_variant_can_be(tmp_path: Path) -> None:
    plan = ablation_plan(AblateConfig(output_dir=tmp_path, seeds=1, probe_freq=5), list(VARIANTS), {})
    jobs = [job for found in plan.jobs().values() for job in found]
    assert sum("--policy.type=aegis" in stage.command for job in jobs for stage in job.stages) == len(
        VARIANTS
    )
    check_configurations(jobs)


def test_what_a_training_depends_on_is_noted_in_its_folder() -> None:
    free = {"output_dir", "variants", "seeds", "split", "benchmarks", "texts", "jobs", "device", "redraw"}
    assert {each.name for each in fields(AblateConfig)} - set(command._TRAINING) == free


def test_the_demonstrations_to_train_on_may_be_of_another_seed(tmp_path: Path) -> None:
    seeds = {}
    for data_seed in (0, 7):
        config = AblateConfig(output_dir=tmp_path / str(data_seed), seeds=1, split="val", data_seed=data_seed)
        for job in ablation_plan(config, ["none"], {}).jobs()["recordings"]:
            for flag in job.stages[0].command:
                if flag.startswith("--seed="):
                    seeds[data_seed, job.name] = int(flag.removeprefix("--seed="))
    assert seeds[0, "record-train"] == 0 and seeds[7, "record-train"] == 7
    assert seeds[0, "record-val"] == seeds[7, "record-val"] > 1_000_000


def test_trainings_may_begin_from_a_policy_of_the_same_vlm(tmp_path: Path, tiny_checkpoint: Path) -> None:
    config = AblateConfig(output_dir=tmp_path, seeds=1, start=tiny_checkpoint)
    with pytest.raises(AegisError, match=r"is a policy of --vlm=.*, not of embedded: name the same"):
        ablate(config)
    vlm = read_json(tiny_checkpoint / "config.json")["vlm"]
    with pytest.raises(AegisError, match=r"was trained with none, so its VLM may be another already"):
        ablate(replace(config, vlm=vlm))
    jobs = [job for found in ablation_plan(config, ["none", "lora"], {}).jobs().values() for job in found]
    begun = [stage.command for job in jobs for stage in job.stages if stage.command[0] == "lerobot-train"]
    assert len(begun) == 2 and all(f"--policy.path={tiny_checkpoint}" in command for command in begun)
    assert not any("--policy.type=aegis" in command for command in begun)
    check_configurations(jobs)


@pytest.mark.slow
def test_an_ablation_begins_from_a_trained_policy(ablation: Path, tmp_path: Path) -> None:
    start = ablation / "runs/stop_gradient-0/training/checkpoints/000004/pretrained_model"
    refused = _ablate(tmp_path / "refused", *QUICK, f"--start={start}", "--variants=[l2_sp]")
    assert (
        "l2_sp compares with the pretrained weights" in refused.stderr and not (tmp_path / "refused").exists()
    )
    done = _ablate(tmp_path / "run", *QUICK, f"--start={start}", "--variants=[lora,subspace]")
    assert done.returncode == 0, done.stdout + done.stderr
    first = {
        folder.name: json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["flow_loss"]
        for folder in (tmp_path / "run" / "runs").iterdir()
    }
    fresh = json.loads((ablation / "runs/none-0/metrics.jsonl").read_text().splitlines()[0])["flow_loss"]
    assert set(first) == {"none-0", "stop_gradient-0", "lora-0", "subspace-0"}
    assert first["none-0"] == first["stop_gradient-0"] == first["subspace-0"] != fresh, "of the same seed"


def test_frames_are_spread_evenly() -> None:
    assert frames_spread_over(101, 3) == [0, 50, 100]
    assert frames_spread_over(4, 10) == [0, 1, 2, 3]


@pytest.mark.parametrize("held", [None, "", "[]", "{}", '{"runs": [{"a": 1}]}'])
def test_what_cannot_be_drawn_again_is_named(held: str | None, tmp_path: Path) -> None:
    if held is not None:
        (tmp_path / "ablation.json").write_text(held)
    with pytest.raises(AegisError, match=r"--redraw=.* cannot be read .*: name an ablation\.json"):
        ablate(AblateConfig(output_dir=tmp_path / "out", redraw=tmp_path / "ablation.json"))


def test_every_trained_backbone_is_asked_the_texts(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "what is 1 and 1?", "answer": "two"}')
    (tmp_path / "p.txt").write_text("some words")
    texts = [str(tmp_path / name) for name in ("q.jsonl", "p.txt")]
    config = AblateConfig(output_dir=tmp_path / "ablation", seeds=1, texts=texts)
    plan = ablation_plan(config, ["none", "stop_gradient"], {})
    jobs = [job for found in plan.jobs().values() for job in found]
    asked = {stage.name: stage.command for job in jobs for stage in job.stages if "text-" in stage.name}
    assert list(asked) == [
        "pretrained-text-q",
        *(f"{run}-text-{name}" for run in ("none-0", "stop_gradient-0") for name in ("q", "p")),
    ]
    assert asked["pretrained-text-q"][1:3] == ["--vlm=embedded", f"--benchmark=text:{texts[0]}"]
    assert f"--pretrained_answers={tmp_path / 'ablation' / 'pretrained-text-q'}" in asked["none-0-text-q"]
    assert not any("answers" in flag for flag in asked["none-0-text-p"])
    with pytest.raises(AegisError, match="several files are called q: give them different names"):
        ablate(AblateConfig(output_dir=tmp_path / "ablation", texts=[texts[0], texts[0]]))


def test_every_trained_backbone_is_asked_further_benchmarks(tmp_path: Path) -> None:
    config = AblateConfig(output_dir=tmp_path, seeds=1, split="val", benchmarks=["tabletop_composed"])
    plan = ablation_plan(config, ["none", "stop_gradient"], {})
    jobs = [job for found in plan.jobs().values() for job in found]
    asked = {stage.name: stage for job in jobs for stage in job.stages if stage.command[0] == "aegis-vqa"}
    assert list(asked) == [
        "pretrained-val",
        "pretrained-tabletop_composed-val",
        *(
            f"{run}-vqa{which}"
            for run in ("none-0", "stop_gradient-0")
            for which in ("", "-tabletop_composed")
        ),
    ]
    assert "--benchmark=tabletop_composed" in asked["none-0-vqa-tabletop_composed"].command
    for which in ("", "-tabletop_composed"):
        before = asked[f"pretrained{which}-val"].result.parent
        assert f"--pretrained_answers={before}" in asked[f"none-0-vqa{which}"].command


def test_what_was_found_of_texts_is_read_from_what_aegis_vqa_writes(tmp_path: Path) -> None:
    lines = [
        {"text": "a b", "tokens": 2, "kl": 0.5, "agreement": 1.0, "nll": 1.0},
        {"text": "c", "tokens": 0},
    ]
    (tmp_path / "paragraphs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = measured.running_text(tmp_path / "results.json")
    assert found == {"kl": [0.5], "agreement": [1.0], "tokens": [2]}
