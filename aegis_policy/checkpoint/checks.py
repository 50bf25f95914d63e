"""Whether a folder is a whole checkpoint, can be resumed, and fits a dataset: asked before it is loaded, and by
`aegis-doctor`.

JSON and the headers of tensors are read. Nothing heavy is imported, so that a broken installation can ask too.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aegis_policy.checkpoint.listing import listed_contents, missing_files
from aegis_policy.support.errors import AegisError, shortened
from aegis_policy.support.finding import Finding
from aegis_policy.support.json_files import read_json
from aegis_policy.support.tensor_files import read_header
from aegis_policy.vlm.families import family_of

Json = dict[str, Any]

CONFIG_FILE = "config.json"
TRAINING_CONFIG_FILE = "train_config.json"
WEIGHTS_FILE = "model.safetensors"
VLM_FOLDER = "vlm"
"""What `VLMBackbone.save_architecture` wrote."""
ANCHOR_FILE = "anchor.safetensors"
REFERENCE_FILE = "pretrained_weights.safetensors"
PREPROCESSOR_FILE, POSTPROCESSOR_FILE = "policy_preprocessor.json", "policy_postprocessor.json"
STATE_FOLDER = "training_state"

_FORMER = (
    *("anchor_energy", "anchor_soft", "granularity", "project"),
    *("anchor_tokens", "anchor_whiten", "anchor_momentum", "anchor_refresh", "anchor_restoring"),
)
"""Options that earlier versions wrote into a checkpoint's configuration (docs/ablation.md)."""
_RESTORE = "restore it from where the checkpoint was saved"
_SHOWN = 100
"""Characters of what a file says in place of a name."""
_STEPS = {
    PREPROCESSOR_FILE: ("rename_observations_processor", "device_processor", "normalizer_processor"),
    POSTPROCESSOR_FILE: ("unnormalizer_processor", "device_processor"),
}
"""Steps that LeRobot overrides or that change numbers: without them it fails, or acts on other ones."""
_WHOLE = ("I64", "I32", "I16", "I8", "U8", "BOOL")
"""Dtypes in which a deviation is no longer one."""
_STATE_FILES = ("training_step.json", "rng_state.safetensors", "scheduler_state.json")
_OPTIMIZER_FILES = ("optimizer_state.safetensors", "optimizer_param_groups.json")
_SHARDED_OPTIMIZER = "optimizer_0"
_DECIDED_LATER = {ANCHOR_FILE, REFERENCE_FILE, "README.md"}
"""Whether they are needed depends on the protection; a card on nothing."""


def check_checkpoint(folder: Path) -> Iterator[Finding]:
    """Whether a `pretrained_model` folder is whole; what its protection needs beside is asked by `check_kept`."""
    sound = True
    for check in (_check_config, _check_files, _check_tensors, _check_vlm, _check_processors):
        for finding in _told(check, folder):
            sound = False
            yield finding
        if check is _check_config and not sound:
            return
    if sound:
        config = read_json(folder / CONFIG_FILE)
        yield Finding("ok", f"{folder}: {config.get('protection')} on {config.get('vlm')}")


def check_processors(folder: Path) -> Iterator[Finding]:
    """Whether the processors of any of LeRobot's policies are whole, where a `pretrained_model` folder has some."""
    yield from _told(_check_processors, folder)


def check_kept(folder: Path) -> Iterator[Finding]:
    """Whether a checkpoint has what its own protection needs of the anchor and of the pretrained weights."""
    config = read_json(folder / CONFIG_FILE)
    lost = set(missing_files(folder)) & {ANCHOR_FILE, REFERENCE_FILE}
    if config.get("anchor_info") and not (folder / ANCHOR_FILE).is_file():
        lost.add(ANCHOR_FILE)
    for name in sorted(lost):
        yield lost_file(folder, name, str(config.get("protection")))


def lost_file(folder: Path, name: str, protection: str) -> Finding:
    """A checkpoint lacks a file that a protection needs."""
    return Finding(
        "error",
        f"The checkpoint {folder} holds no {name}, and protection={protection} must not run without",
        _RESTORE,
    )


def check_resumable(folder: Path) -> Iterator[Finding]:
    """Whether the training state beside a `pretrained_model` folder is whole, as `--resume=true` needs it."""
    yield from _told(_check_state, folder.parent / STATE_FOLDER)


def check_upload(repo_id: str) -> Iterator[Finding]:
    """Whether a policy can be uploaded when its training ends, as far as this is known before."""
    from huggingface_hub import constants, get_token

    flag = f"--policy.push_to_hub=true, to {repo_id},"
    mend = "leave it out and upload the last checkpoint with hf upload"
    if constants.HF_HUB_OFFLINE:
        yield Finding(
            "error",
            f"{flag} would fail when the training ends: HF_HUB_OFFLINE is set",
            f"unset it, or {mend}",
        )
    elif get_token() is None:
        yield Finding(
            "warning",
            f"{flag} will fail unless the hub knows you when the training ends",
            f"hf auth login, or {mend}",
        )


def check_features(config: Mapping[str, Any], features: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether a dataset has what a checkpoint looks at.

    Args:
        config: the checkpoint's `config.json`.
        features: the dataset's, by key, with their shapes.
    """
    wanted = {**(config.get("input_features") or {}), **(config.get("output_features") or {})}
    absent = [name for name in wanted if name not in features]
    if absent:
        cameras = [name for name in features if name.startswith("observation.image")]
        unused = [name for name in cameras if name not in wanted]
        mend = "take another dataset, or name its keys so"
        if unused and all(name.startswith("observation.image") for name in absent):
            renamed = json.dumps(dict(zip(unused, absent, strict=False)))
            mend = f"--rename_map='{renamed}', if these are the same views"
        yield Finding(
            "error",
            f"the dataset has no {', '.join(absent)}, which the checkpoint needs; cameras it does not look at: "
            f"{', '.join(unused) or 'none'}",
            mend,
        )
    yield from check_sizes(config, features)


def check_sizes(
    config: Mapping[str, Any], features: Mapping[str, Any], of: str = "dataset"
) -> Iterator[Finding]:
    """Whether state and action of a dataset, or of an environment, are as long as a checkpoint's.

    `--rename_map` changes cameras alone.
    """
    wanted = {**(config.get("input_features") or {}), **(config.get("output_features") or {})}
    for name in ("observation.state", "action"):
        if name in wanted and name in features:
            own, theirs = list(wanted[name]["shape"]), list(features[name]["shape"])
            if own != theirs:
                yield Finding(
                    "error",
                    f"{name} has the shape {theirs} in the {of} and {own} in the checkpoint",
                    f"take the {of} that the checkpoint was trained for, or train a new policy on this",
                )


def _told(check: Callable[[Path], Iterator[Finding]], folder: Path) -> Iterator[Finding]:
    """The findings of a check; that something cannot be read is one of them."""
    try:
        yield from check(folder)
    except AegisError as error:
        yield Finding("error", str(error))


def _check_config(folder: Path) -> Iterator[Finding]:
    if not (folder / CONFIG_FILE).is_file():
        yield Finding(
            "error", f"{folder} holds no {CONFIG_FILE}", "name the `pretrained_model` folder of a checkpoint"
        )
        return
    config = _read_object(folder / CONFIG_FILE)
    if config.get("type") != "aegis":
        kind = str(config.get("type"))[:_SHOWN]
        yield Finding("error", f"{folder} is a policy of type {kind}, not aegis", "name an aegis policy")
    former = [name for name in _FORMER if name in config]
    if "kronecker" in str(config.get("anchor")):
        former.append("anchor=kronecker")
    if former:
        yield Finding(
            "error",
            f"{folder / CONFIG_FILE} is of an earlier version, whose options {', '.join(former)} are gone",
            f"remove them there and from {TRAINING_CONFIG_FILE}, and the weights are used as they are (a training that "
            "goes on from them protects as this version does), or take the version that saved it",
        )


def _check_files(folder: Path) -> Iterator[Finding]:
    if not (folder / VLM_FOLDER).is_dir():
        yield Finding(
            "error",
            f"{folder} holds no {VLM_FOLDER}/ folder, so it is not a whole checkpoint of this policy",
            "name the `pretrained_model` folder that training saved",
        )
        return
    trained = (folder / TRAINING_CONFIG_FILE).is_file()
    wanted = [WEIGHTS_FILE, *((PREPROCESSOR_FILE, POSTPROCESSOR_FILE) if trained else ())]
    absent = {name for name in wanted if not (folder / name).is_file()}
    absent |= set(missing_files(folder)) - _DECIDED_LATER
    if absent:
        some = sorted(absent)[:5]
        more = f" and {len(absent) - len(some)} more files" if len(absent) > len(some) else ""
        yield Finding(
            "error",
            f"{folder} lacks {', '.join(some)}{more}",
            "copy the whole folder from where it was saved",
        )


def _check_tensors(folder: Path) -> Iterator[Finding]:
    for path in sorted(folder.glob("*.safetensors")):
        if fault := _tensor_fault(path):
            yield Finding("error", fault, _RESTORE)


def _tensor_fault(path: Path) -> str | None:
    try:
        read_header(path)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _check_vlm(folder: Path) -> Iterator[Finding]:
    path = folder / VLM_FOLDER / CONFIG_FILE
    if not path.is_file():
        return
    model_type = _read_object(path).get("model_type")
    family = family_of(model_type) if isinstance(model_type, str) else None
    if family is not None and family.chat and not _has_chat_template(folder):
        yield Finding(
            "error",
            f"{folder / VLM_FOLDER} holds no chat template, without which no {model_type} is spoken to; uploads of "
            "former versions left it behind",
            f"copy chat_template.jinja of {read_json(folder / CONFIG_FILE).get('vlm')} there",
        )


def _has_chat_template(folder: Path) -> bool:
    vlm = folder / VLM_FOLDER
    inside = (
        "chat_template" in _read_object(vlm / name)
        for name in ("processor_config.json", "tokenizer_config.json")
        if (vlm / name).is_file()
    )
    names = [path.name for path in vlm.iterdir()]
    names += [Path(name).name for name in listed_contents(folder)]
    return any(name.startswith("chat_template.") for name in names) or any(inside)


def _check_processors(folder: Path) -> Iterator[Finding]:
    for name, needed in _STEPS.items():
        path = folder / name
        if not path.is_file():
            continue
        steps = _read_object(path).get("steps")
        if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
            yield Finding("error", f"{path} lists no steps", _RESTORE)
            continue
        for step in steps:
            if not isinstance(step.get("registry_name"), str):
                named = str(step.get("class"))[:_SHOWN]
                yield Finding(
                    "error",
                    f"{path} names the class {named} for one of its steps, and only steps that are registered with "
                    "LeRobot's ProcessorStepRegistry are run",
                    "register it by a name, or take the file that training saved",
                )
        absent = set(needed) - {str(step.get("registry_name")) for step in steps}
        if absent:
            yield Finding("error", f"{path} has no step {', '.join(sorted(absent))}", _RESTORE)
        for step in steps:
            if "state_file" in step:
                yield from _check_statistics(folder, path, step)


def _check_statistics(folder: Path, path: Path, step: Json) -> Iterator[Finding]:
    """A step's file of statistics; that of a normaliser has some of all that it normalises, which it else leaves."""
    file = folder / str(step["state_file"])[:_SHOWN]
    if file.parent != folder or not file.is_file():
        yield Finding("error", f"{path} names {file.name}, which is not there", _RESTORE)
        return
    if _tensor_fault(file):  # said by `_check_tensors`
        return
    config = step.get("config")
    features = config.get("features") if isinstance(config, dict) else None
    modes = config.get("norm_map") if isinstance(config, dict) else None
    if not isinstance(features, dict) or not isinstance(modes, dict):
        return
    header = read_header(file)
    if rounded := [name for name in header if name.endswith(".std") and header[name]["dtype"] in _WHOLE]:
        yield Finding(
            "error",
            f"{file} holds {rounded[0]} in whole numbers, to which LeRobot rounded it on data of whole numbers",
            "train the policy anew: this version of the package makes floats of such data first",
        )
    held = {name.rpartition(".")[0] for name in header}
    for key, feature in features.items():
        kind = feature.get("type") if isinstance(feature, dict) else None
        if isinstance(kind, str) and modes.get(kind, "IDENTITY") != "IDENTITY" and key not in held:
            yield Finding("error", f"{file} holds no statistics of {shortened(key)}", _RESTORE)


def _check_state(folder: Path) -> Iterator[Finding]:
    weights = folder.parent / "pretrained_model"
    mend = (
        f"resume an earlier checkpoint, or begin a new training from the weights with --policy.path={weights}"
    )
    sharded = (folder / _SHARDED_OPTIMIZER).is_dir()
    wanted = [*_STATE_FILES, *(() if sharded else _OPTIMIZER_FILES)]
    absent = [name for name in wanted if not (folder / name).is_file()]
    if absent:
        yield Finding(
            "error", f"{folder} lacks {', '.join(absent)}, so training cannot be resumed from it", mend
        )
    for path in sorted(folder.glob("*.safetensors")):
        if fault := _tensor_fault(path):
            yield Finding("error", fault, mend)
    for path in sorted(folder.glob("*.json")):
        try:
            read_json(path)
        except (OSError, ValueError) as error:
            yield Finding("error", f"{path} is not readable ({error})", mend)


def _read_object(path: Path) -> Json:
    """What a JSON file of names and values holds.

    Raises:
        AegisError: it is none.
    """
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise AegisError(f"{path} is not readable ({error}): {_RESTORE}.") from error
    if not isinstance(found, dict):
        raise AegisError(f"{path} holds no names and values: {_RESTORE}.")
    return found
