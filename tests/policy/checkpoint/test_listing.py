"""What LeRobot uploads of a checkpoint is all of it, for every family of VLMs."""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from lerobot.common import train_utils
from lerobot.policies import pretrained
from tiny_vlms import FAMILY_RECIPES, save_tiny_vlm
from training_steps import MakeBatch

from aegis_policy.checkpoint.listing import LIST_FILE, UPLOADED, missing_files, whole, write_list
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.support.errors import AegisError

MakeConfig = Callable[..., AegisConfig]


def uploaded(checkpoint: Path, target: Path) -> Path:
    """A copy of what `--policy.push_to_hub` uploads, as the hub's client chooses it."""
    paths = [path for path in checkpoint.rglob("*") if path.is_file()]
    names = filter_repo_objects(
        (path.relative_to(checkpoint).as_posix() for path in paths), allow_patterns=list(UPLOADED)
    )
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(checkpoint / name, target / name)
    return target


def test_lerobot_uploads_files_of_these_names() -> None:
    sources = (
        module.__file__ for module in (pretrained, train_utils)
    )  # which of them, depends on the version
    assert any(
        f"allow_patterns={json.dumps(UPLOADED)}" in Path(str(source)).read_text() for source in sources
    )


@pytest.mark.parametrize("family", ["paligemma", *FAMILY_RECIPES])
def test_an_uploaded_checkpoint_acts_and_answers_as_the_one_that_was_saved(
    family: str, tiny_vlm_dir: Path, make_config: MakeConfig, make_batch: MakeBatch, tmp_path: Path
) -> None:
    vlm = tiny_vlm_dir if family == "paligemma" else save_tiny_vlm(family, tmp_path / family)
    policy = AegisPolicy(make_config("none", vlm=str(vlm))).eval()
    policy.save_pretrained(tmp_path / "saved")
    assert missing_files(tmp_path / "saved") == []
    copy = uploaded(tmp_path / "saved", tmp_path / "uploaded")
    assert missing_files(copy) == []
    batch, noise = make_batch(size=1), torch.randn(1, 4, 3)
    pictures = [np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)]
    again = AegisPolicy.from_pretrained(copy)
    for each in (again, _saved_again(again, tmp_path)):
        assert torch.equal(each.predict_action_chunk(batch, noise), policy.predict_action_chunk(batch, noise))
        assert each.vlm.answer(pictures, ["what is this"]) == policy.vlm.answer(pictures, ["what is this"])


def _saved_again(policy: AegisPolicy, folder: Path) -> AegisPolicy:
    """What a training that began with an uploaded checkpoint saves and uploads."""
    policy.save_pretrained(folder / "again")
    return AegisPolicy.from_pretrained(uploaded(folder / "again", folder / "uploaded again"))


CONTENTS = {
    "model.safetensors": b"\x00",
    "vlm/config.json": b"{}",
    "vlm/chat_template.jinja": "{{ 'é\r\n' }}".encode(),
    "vlm/additional_chat_templates/tools.jinja": b"{{ tools }}",
    "vlm/tokenizer.model": bytes(range(256)),
    "vlm/merges.txt": b"a b\n",
    "vlm/vocab.bin": b"",
    "vlm/processing_own.py": b"pass\n",
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with files of all kinds of names, and their list."""
    folder = tmp_path / "saved"
    for name, content in CONTENTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    write_list(folder)
    return folder


def test_files_of_any_name_come_back_byte_by_byte(checkpoint: Path, tmp_path: Path) -> None:
    copy = uploaded(checkpoint, tmp_path / "uploaded")
    assert {path.name for path in (copy / "vlm").iterdir()} == {"config.json"}
    assert missing_files(copy) == []
    with whole(copy, "vlm") as folder:
        for name, content in CONTENTS.items():
            if name.startswith("vlm/"):
                assert (folder.parent / name).read_bytes() == content
    assert not folder.exists() and {path.name for path in (copy / "vlm").iterdir()} == {"config.json"}


def test_a_whole_folder_is_read_where_it_is(checkpoint: Path) -> None:
    (checkpoint / "vlm" / "merges.txt").write_text("changed by its owner")
    with whole(checkpoint, "vlm") as folder:
        assert folder == checkpoint / "vlm"


def test_what_was_lost_is_named(checkpoint: Path) -> None:
    (checkpoint / "vlm" / "config.json").unlink()
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "vlm" / "tokenizer.model").unlink()
    assert missing_files(checkpoint) == ["model.safetensors", "vlm/config.json"]


def test_a_checkpoint_of_a_former_version_has_no_list(checkpoint: Path) -> None:
    (checkpoint / LIST_FILE).unlink()
    assert missing_files(checkpoint) == []
    with whole(checkpoint, "vlm") as folder:
        assert folder == checkpoint / "vlm"


@pytest.mark.parametrize(
    "listed",
    [
        [],
        {"files": ["model.safetensors"]},
        {"files": [3], "contents": {}},
        {"files": [], "contents": {"vlm/x": "no base64!"}},
        {"files": [], "contents": {"vlm/x": None}},
        *(
            {"files": [], "contents": {name: base64.b64encode(b"x").decode()}}
            for name in ("../x", "vlm/../../x", "/tmp/x", "", "vlm/\0", "vlm/\ud800", "vlm/" + 300 * "x")
        ),
    ],
)
def test_a_list_that_is_none_is_refused_and_leads_nowhere(checkpoint: Path, listed: Any) -> None:
    (checkpoint / LIST_FILE).write_text(json.dumps(listed))
    for read in (missing_files, lambda folder: whole(folder, "vlm").__enter__()):
        with pytest.raises(AegisError, match=r"saved_files\.json is no list of a checkpoint's files"):
            read(checkpoint)
