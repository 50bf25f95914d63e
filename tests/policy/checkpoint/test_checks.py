"""What is broken about a checkpoint is said in a sentence, the same one by `aegis-doctor` as before it is loaded."""

import base64
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from findings import told
from safetensors.torch import load_file, save_file
from tiny_vlms import save_tiny_vlm

from aegis_eval.doctor.files import check_policy
from aegis_policy.checkpoint import checks
from aegis_policy.checkpoint.listing import LIST_FILE, write_list
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.support.errors import AegisError


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to break, as a training leaves it."""
    folder = tmp_path / "000002" / "pretrained_model"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "train_config.json").write_text("{}")
    return folder


def _edit(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(change(value) or value))

    return edit


def _cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-7]) and None


def _write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _unstep(name: str) -> Callable[[Any], Any]:
    return lambda value: {**value, "steps": [x for x in value["steps"] if x["registry_name"] != name]}


def _with_class(value: Any) -> Any:
    value["steps"].append({"class": "subprocess.Popen", "config": {"args": ["touch", "/tmp/x"]}})


def _statistics(folder: Path) -> Path:
    (path,) = folder.glob("policy_preprocessor_step_*_normalizer_processor.safetensors")
    return path


def _without_statistics(folder: Path) -> None:
    kept = {name: x for name, x in load_file(_statistics(folder)).items() if not name.startswith("action")}
    save_file(kept, _statistics(folder))


BROKEN: list[tuple[str, Callable[[Path], None], str]] = [
    ("no config", _remove("config.json"), "holds no config.json"),
    ("config cut off", _cut("config.json"), "config.json is not readable"),
    (
        "config not UTF-8",
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe{") and None,
        "config.json is not readable",
    ),
    ("config a list", _write("config.json", "[]"), "config.json holds no names and values"),
    (
        "other policy",
        _edit("config.json", lambda c: {**c, "type": "act"}),
        "is a policy of type act, not aegis",
    ),
    (
        "no type",
        _edit("config.json", lambda c: c.pop("type") and None),
        "is a policy of type None, not aegis",
    ),
    (
        "options of an earlier version",
        _edit("config.json", lambda c: {**c, "anchor_energy": None, "granularity": "tensor"}),
        "earlier version, whose options anchor_energy, granularity are gone: remove them there",
    ),
    (
        "an anchor of an earlier version",
        _edit("config.json", lambda c: {**c, "anchor": "subspace+kronecker", "anchor_energy": 0.95}),
        "earlier version, whose options anchor_energy, anchor=kronecker are gone: remove them there",
    ),
    ("no weights", _remove("model.safetensors"), "lacks model.safetensors"),
    ("weights cut off", _cut("model.safetensors"), "model.safetensors is truncated: 7 bytes are missing"),
    (
        "foreign weights",
        _write("model.safetensors", "version https://git-lfs"),
        "model.safetensors is no safetensors file",
    ),
    ("no VLM", lambda f: shutil.rmtree(f / "vlm"), "holds no vlm/ folder"),
    ("no tokenizer", _remove("vlm/tokenizer.json"), "lacks vlm/tokenizer.json"),
    ("no processor of the VLM", _remove("vlm/processor_config.json"), "lacks vlm/processor_config.json"),
    ("no generation config", _remove("vlm/generation_config.json"), "lacks vlm/generation_config.json"),
    ("config of the VLM cut off", _cut("vlm/config.json"), "vlm/config.json is not readable"),
    ("no state", _remove("protection_state.safetensors"), "lacks protection_state.safetensors"),
    ("state cut off", _cut("protection_state.safetensors"), "protection_state.safetensors is truncated"),
    ("list cut off", _cut(LIST_FILE), "saved_files.json is no list of a checkpoint's files"),
    ("no preprocessor", _remove("policy_preprocessor.json"), "lacks policy_preprocessor.json"),
    ("no postprocessor", _remove("policy_postprocessor.json"), "lacks policy_postprocessor.json"),
    ("preprocessor cut off", _cut("policy_preprocessor.json"), "policy_preprocessor.json is not readable"),
    ("no steps", _edit("policy_preprocessor.json", lambda c: c.pop("steps") and None), "lists no steps"),
    ("steps no mappings", _edit("policy_preprocessor.json", lambda c: {"steps": [3]}), "lists no steps"),
    (
        "not normalised",
        _edit("policy_preprocessor.json", _unstep("normalizer_processor")),
        "policy_preprocessor.json has no step normalizer_processor",
    ),
    (
        "not unnormalised",
        _edit("policy_postprocessor.json", _unstep("unnormalizer_processor")),
        "policy_postprocessor.json has no step unnormalizer_processor",
    ),
    ("foreign step", _edit("policy_preprocessor.json", _with_class), "names the class subprocess.Popen"),
    (
        "no statistics file",
        lambda f: _statistics(f).unlink(),
        "normalizer_processor.safetensors, which is not there",
    ),
    (
        "statistics cut off",
        lambda f: _cut(_statistics(f).name)(f),
        "normalizer_processor.safetensors is truncated",
    ),
    ("no statistics", _without_statistics, "holds no statistics of 'action'"),
]


@pytest.mark.parametrize(
    ("damage", "sentence"), [each[1:] for each in BROKEN], ids=[each[0] for each in BROKEN]
)
def test_broken_checkpoints_are_refused_with_the_sentence_of_the_doctor(
    checkpoint: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    damage(checkpoint)
    (finding,) = check_policy(checkpoint, None)
    assert finding.status == "error" and sentence in str(finding)
    with pytest.raises(AegisError) as raised:
        AegisPolicy.from_pretrained(checkpoint)
    assert str(raised.value) == str(finding) and len(str(finding)) < 1000


def test_a_whole_checkpoint_is_said_to_be_one_with_or_without_its_card(checkpoint: Path) -> None:
    (checkpoint / "README.md").unlink()
    assert told(check_policy(checkpoint, None)).startswith(f"ok: {checkpoint}: none on ")
    assert AegisPolicy.from_pretrained(checkpoint).config.protection == "none"


@pytest.mark.parametrize(
    ("protection", "name"), [("aegis", "anchor.safetensors"), ("l2_sp", "pretrained_weights.safetensors")]
)
def test_what_a_protection_has_lost_is_named_alike(
    make_policy: Any, protection: str, name: str, tmp_path: Path
) -> None:
    make_policy(protection).save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    *_, finding = check_policy(tmp_path, None)
    assert finding.status == "error" and f"holds no {name}" in finding.what
    with pytest.raises(AegisError) as raised:
        AegisPolicy.from_pretrained(tmp_path)
    assert str(raised.value) == str(finding)


def test_an_upload_of_a_former_version_says_that_its_chat_template_stayed_behind(
    make_config: Any, tmp_path: Path
) -> None:
    vlm = save_tiny_vlm("smolvlm", tmp_path / "smolvlm")
    folder = tmp_path / "saved"
    AegisPolicy(make_config("none", vlm=str(vlm))).save_pretrained(folder)
    (folder / LIST_FILE).unlink()
    AegisPolicy.from_pretrained(folder)
    (folder / "vlm" / "chat_template.jinja").unlink()
    (finding,) = check_policy(folder, None)
    assert (
        "holds no chat template" in finding.what
        and f"copy chat_template.jinja of {vlm} there" in finding.mend
    )
    with pytest.raises(AegisError) as raised:
        AegisPolicy.from_pretrained(folder)
    assert str(raised.value) == str(finding)
    shutil.copy(vlm / "chat_template.jinja", folder / "vlm")
    AegisPolicy.from_pretrained(folder)


STATE = {
    "training_step.json": '{"step": 2}',
    "scheduler_state.json": "{}",
    "optimizer_param_groups.json": "[]",
}


@pytest.fixture
def training_state(checkpoint: Path) -> Path:
    """The state beside a checkpoint, as far as it is looked at."""
    folder = checkpoint.parent / "training_state"
    folder.mkdir()
    for name, content in STATE.items():
        (folder / name).write_text(content)
    for name in ("rng_state.safetensors", "optimizer_state.safetensors"):
        save_file({}, folder / name)
    return folder


@pytest.mark.parametrize("name", [*STATE, "rng_state.safetensors", "optimizer_state.safetensors"])
def test_a_training_state_that_is_not_whole_is_named_with_what_can_be_done(
    checkpoint: Path, training_state: Path, name: str
) -> None:
    assert [each.status for each in check_policy(checkpoint, None)] == ["ok"]
    (training_state / name).write_bytes((training_state / name).read_bytes()[:-1])
    found = told(checks.check_resumable(checkpoint))
    assert name in found and f"begin a new training from the weights with --policy.path={checkpoint}" in found
    assert found in told(check_policy(checkpoint, None))
    (training_state / name).unlink()
    assert f"lacks {name}, so training cannot be resumed" in told(checks.check_resumable(checkpoint))


def test_code_inside_a_checkpoint_does_not_run(checkpoint: Path, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Own: ...\n"
    maps = {
        "vlm/config.json": {"AutoConfig": "own.Own", "AutoModelForImageTextToText": "own.Own"},
        "vlm/processor_config.json": {"AutoProcessor": "own.Own", "AutoImageProcessor": "own.Own"},
        "vlm/tokenizer_config.json": {"AutoTokenizer": ["own.Own", "own.Own"]},
    }
    (checkpoint / "vlm" / "own.py").write_text(code)
    write_list(checkpoint)
    for name, mapped in maps.items():
        _edit(name, lambda value, mapped=mapped: {**value, "auto_map": mapped})(checkpoint)
    AegisPolicy.from_pretrained(checkpoint)
    _edit("vlm/config.json", lambda value: {**value, "model_type": "own"})(checkpoint)
    with pytest.raises(AegisError, match=r"code of a model.s own is never run"):
        AegisPolicy.from_pretrained(checkpoint)
    assert not marker.exists()


def test_contents_in_the_list_do_not_replace_files(checkpoint: Path) -> None:
    listed = json.loads((checkpoint / LIST_FILE).read_text())
    listed["contents"]["vlm/config.json"] = base64.b64encode(b"{}").decode()
    (checkpoint / LIST_FILE).write_text(json.dumps(listed))
    AegisPolicy.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("offline", "token", "sentence"),
    [
        (True, "hf_x", "error: --policy.push_to_hub=true, to me/it, would fail .* HF_HUB_OFFLINE"),
        (False, None, "warning: .* will fail unless the hub knows you"),
        (False, "hf_x", ""),
    ],
)
def test_an_upload_that_would_fail_in_the_end_is_told_before_the_training(
    offline: bool, token: str | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    found = told(checks.check_upload("me/it"))
    assert re.match(sentence, found) and bool(found) == bool(sentence)
