"""Fixtures shared by all tests: a tiny PaliGemma-2 directory as a user would have one on disk, and a shell."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from types import ModuleType

import commands
import pytest
from random_data import write_random_dataset

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Let the process that commands are forks of import what they need while the first tests run, in `make test`."""
    if hasattr(session.config, "workerinput"):
        from aegis_eval.experiments.forked_commands import start_server

        start_server(commands.SETTINGS)


_WORDS = "what colour is the cube sphere cylinder red green blue yellow push reach pick up to zone yes no answer en"
_CAMERAS = ("observation.images.front", "observation.images.wrist")
_TASKS = ("reach the red cube", "push the green sphere to the blue zone", "pick up the yellow cylinder")
_STATE_DIM, _ACTION_DIM = 5, 3


@pytest.fixture(scope="session")
def tiny_vlm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PaliGemma-2-shaped model with random weights (2 layers of 32), saved as a plain transformers directory."""
    from aegis_policy.vlm.small import SmallVLMSize, build_small_vlm

    directory = tmp_path_factory.mktemp("vlm") / "tiny-paligemma2"
    size = SmallVLMSize(
        image_size=32, patch_size=16, vision_layers=1, vision_width=32, text_layers=2, text_width=32, heads=2
    )
    build_small_vlm(_WORDS.split(), size, seed=0, name=str(directory)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeRobotDataset of three episodes of six frames, with two cameras as images."""
    return write_random_dataset(
        tmp_path_factory.mktemp("data") / "tiny",
        dict.fromkeys(_CAMERAS, (32, 32)),
        state=_STATE_DIM,
        action=_ACTION_DIM,
        tasks=_TASKS,
    )


@pytest.fixture(scope="session")
def shell() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`shell(*arguments)`: run a command as a user would, on one thread, without a network; see `commands.run`."""
    return commands.run


@pytest.fixture
def fork_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fork server of its own: that of other tests may have loaded what commands need."""
    server = forkserver.ForkServer()
    for name in ("connect_to_new_process", "ensure_running"):
        monkeypatch.setattr(forkserver, name, getattr(server, name))
    yield
    server._stop()


@pytest.fixture
def heavy_main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A `__main__` that imports torch, as those of LeRobot's commands do."""
    main = ModuleType("__main__")
    main.__file__ = str(tmp_path / "command.py")
    Path(main.__file__).write_text("import torch\n")
    monkeypatch.setitem(sys.modules, "__main__", main)
    return main


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_vlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `pretrained_model` folder of an untrained policy for the tabletop, as training saves it."""
    import torch
    from lerobot.configs import FeatureType, PolicyFeature

    from aegis_policy.configuration_aegis import AegisConfig
    from aegis_policy.modeling_aegis import AegisPolicy
    from aegis_policy.processor_aegis import make_aegis_pre_post_processors

    config = AegisConfig(
        vlm=str(tiny_vlm_dir),
        protection="none",
        device="cpu",
        chunk_size=8,
        n_action_steps=8,
        expert_width=16,
        expert_depth=2,
        expert_heads=2,
        input_features={
            "observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 96, 96)),
            "observation.images.wrist": PolicyFeature(FeatureType.VISUAL, (3, 96, 96)),
            "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (4,))},
    )
    sizes = {"observation.state": 8, "action": 4}
    stats = {
        key: {"mean": torch.full((size,), 0.3), "std": torch.full((size,), 0.1)}
        for key, size in sizes.items()
    }
    folder = tmp_path_factory.mktemp("checkpoint") / "pretrained_model"
    AegisPolicy(config).save_pretrained(folder)
    for processor in make_aegis_pre_post_processors(config, stats):
        processor.save_pretrained(folder)
    return folder
