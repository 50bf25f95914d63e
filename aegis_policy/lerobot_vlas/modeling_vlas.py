"""LeRobot's `smolvla`, `pi0` and `pi05` as they are, but that what their VLM learns is protected.

Their forward passes, processors, real-time chunking and compilation stay LeRobot's. What is added happens in
training: what may learn, what the loss is beside, how the optimizer steps; and a checkpoint holds the anchor.
"""

from pathlib import Path
from typing import Any, Self

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pi0.modeling_pi0 import PI0Policy
from lerobot.policies.pi05.modeling_pi05 import PI05Policy
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from safetensors import SafetensorError, safe_open
from torch import Tensor

from aegis_policy.checkpoint import files
from aegis_policy.checkpoint.changes import VLA_RULES, check_changes, optimizer_begun
from aegis_policy.checkpoint.checks import CONFIG_FILE, WEIGHTS_FILE
from aegis_policy.isolation import Anchor
from aegis_policy.lerobot_vlas.configuration_vlas import (
    AegisPI0Config,
    AegisPI05Config,
    AegisSmolVLAConfig,
    ProtectedVLAConfig,
)
from aegis_policy.lerobot_vlas.inner import parts_of, plain_type
from aegis_policy.optimizer_aegis import PolicyParameters
from aegis_policy.protections.holding import HoldsProtected
from aegis_policy.support import ranks
from aegis_policy.support.errors import AegisError, one_line, some
from aegis_policy.support.files import atomic_contents
from aegis_policy.support.finding import enforce
from aegis_policy.support.json_files import read_json
from aegis_policy.support.lerobot_flags import resuming
from aegis_policy.support.sharding import refuse_sharding
from aegis_policy.vlm.parts import VLMParts

_WRITTEN = ("base", "vlm_fingerprint", "anchor_info")


class ProtectedVLA(HoldsProtected):
    """Mixed into one of LeRobot's policies: a protection of the VLM inside.

    Args:
        config: LeRobot's, with the protection.
        checkpoint: the folder of this type whose weights the caller is going to load.
        options: LeRobot's own.
    """

    name: str
    config: ProtectedVLAConfig

    def __init__(self, config: ProtectedVLAConfig, *, checkpoint: Path | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.protection = config.resolve_options()
        self._checkpoint = checkpoint
        self._optimized: PolicyParameters | None = None
        self._anchor: Anchor | None = None
        self._reference: dict[str, Tensor] | None = None
        if checkpoint is not None:
            self.protection.adapt(self._parts())

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **options: Any
    ) -> Self:
        """A policy of this type, or LeRobot's own that is to be protected, with its weights.

        Args:
            pretrained_name_or_path: a `pretrained_model` folder or a hub id.
            config: replaces that of the folder; LeRobot's own has no protection, so it needs one.
            options: as of LeRobot's.

        Raises:
            AegisError: the folder is of another type, lacks weights of this policy, or was trained under a protection
                that does not go on so.
        """
        folder = files.find_checkpoint(pretrained_name_or_path, options)
        held = read_json(folder / CONFIG_FILE)
        kind = held.get("type")
        if kind not in (cls.name, plain_type(cls.name)):
            raise AegisError(
                f"{pretrained_name_or_path} is a policy of type {kind}, and --policy.type={cls.name} takes a "
                f"{plain_type(cls.name)}, or one of its own type."
            )
        config = config or files.read_config(folder)
        if own := kind == cls.name:
            for name in _WRITTEN:
                setattr(config, name, held.get(name))
            enforce(check_changes(folder, config, resuming(), VLA_RULES))
        else:
            config.base = str(pretrained_name_or_path)
        policy: Self = super().from_pretrained(  # type: ignore[misc]  # LeRobot's
            folder, config=config, checkpoint=folder if own else None, **options
        )
        _require_loaded(policy, folder / WEIGHTS_FILE)
        return policy

    def get_optim_params(self) -> PolicyParameters:
        """All that learns, in one group as LeRobot has it, with the projectors that bend its steps.

        Raises:
            AegisError: the run is sharded, or the anchor is none of this VLM.
        """
        refuse_sharding(self)
        ranks.keep_group()
        if self._optimized is None:
            self._begin_training()
            learning = [p for p in self.parameters() if p.requires_grad]
            restored = optimizer_begun(self._checkpoint) if self._checkpoint and resuming() else {}
            self._optimized = PolicyParameters(
                [{"params": learning, "name": self.name}], self.protection.projectors, restored
            )
        return self._optimized

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """As LeRobot's; in training, with what the protection adds to the loss.

        Raises:
            AegisError: nothing would project.
        """
        loss, figures = super().forward(*arguments, **options)
        if self.training and torch.is_grad_enabled():
            refuse_sharding(self)
            if self._optimized is None or (self.protection.projects and not self._optimized.projects):
                raise AegisError(
                    f"--policy.protection={self.config.protection} acts in the optimizer's step, and this run's "
                    "optimizer knows nothing of it: use --optimizer.type=aegis_adamw, which is the default as long as "
                    "--use_policy_training_preset stays true."
                )
            figures |= self.protection.weight_figures()
            if (penalty := self.protection.weight_penalty()) is not None:
                loss, figures = loss + penalty.loss, figures | penalty.figures
        return loss, figures

    def _begin_training(self) -> None:
        """Mark what may learn, and have the protection begin with the weights as they are now."""
        vlm, config = self._parts(), self.config
        if config.vlm_fingerprint is None:
            config.vlm_fingerprint = vlm.fingerprint()
        if self._checkpoint is None:
            self.protection.adapt(vlm)
        if config.protection != "none":
            _freeze_words(vlm)
        if not self.protection.trains_decoder:
            vlm.model.requires_grad_(False)
        self.protection.narrow(vlm)
        self._anchor = files.find_anchor(config, self.protection, vlm, self._checkpoint)
        self._reference = files.find_reference(self.protection, vlm, self._checkpoint)
        self.protection.begin_training(vlm, self._anchor, self._reference)
        for coverage in self.protection.coverages():
            enforce(coverage.findings())

    def _parts(self) -> VLMParts:
        return parts_of(self, self.config.base or self.name)

    def _save_pretrained(self, save_directory: Path, **options: Any) -> None:
        """Write the policy as a whole, or nothing; the first rank alone, as others are called by newer versions."""
        if ranks.index() > 0:
            self.hold()  # as the first rank does, in `state_dict`
            return
        files.remove_left(save_directory)
        with atomic_contents(save_directory) as folder:
            super()._save_pretrained(folder, **options)  # type: ignore[misc]  # LeRobot's
            files.save_beside(folder, self._anchor, self._reference)


class AegisSmolVLAPolicy(ProtectedVLA, SmolVLAPolicy):
    """`smolvla` with a protection."""

    config_class = AegisSmolVLAConfig
    name = "aegis_smolvla"


class AegisPI0Policy(ProtectedVLA, PI0Policy):
    """`pi0` with a protection."""

    config_class = AegisPI0Config
    name = "aegis_pi0"


class AegisPI05Policy(ProtectedVLA, PI05Policy):
    """`pi05` with a protection."""

    config_class = AegisPI05Config
    name = "aegis_pi05"


def _freeze_words(vlm: VLMParts) -> None:
    """Embeddings, final norm and head stay: no anchor is about them, and no loss reaches the head."""
    parts = (vlm.vision_tower, vlm.projector, vlm.decoder_layers)
    inside = {id(p) for part in parts for p in part.parameters()}
    for parameter in vlm.model.parameters():
        if id(parameter) not in inside:
            parameter.requires_grad_(False)


def _require_loaded(policy: Any, file: Path) -> None:
    """See that every weight came from the file: LeRobot goes on with random ones, or some, where it could not load.

    Raises:
        AegisError: some did not.
    """
    names_of: dict[int, list[str]] = {}
    for name, parameter in policy.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    weights = {id(parameter): parameter for parameter in policy.parameters()}
    try:
        with safe_open(file, "pt") as held:
            there = {f"model.{name.removeprefix('model.')}": name for name in held.keys()}  # noqa: SIM118
            missing = []
            for key, names in names_of.items():
                stored = next((there[name] for name in names if name in there), None)
                if stored is None or not _begins_with(weights[key], held.get_slice(stored)):
                    missing.append(names[0])
    except (OSError, SafetensorError) as error:
        raise AegisError(
            f"{file} cannot be read ({one_line(error)}): take the folder as training saved it."
        ) from error
    if missing:
        raise AegisError(
            f"{file} did not give {some(missing)} of this {policy.name}: see that the flags are those of the policy "
            "that was saved there (sizes, number of layers, vlm_model_name)."
        )


def _begins_with(weight: Tensor, stored: Any) -> bool:
    """Whether a weight's first row is that of a stored one."""
    if list(weight.shape) != stored.get_shape():
        return False
    row = stored[:1] if weight.ndim else torch.as_tensor(stored[:])
    return torch.equal(row.to(weight.dtype), weight.detach()[:1].cpu() if weight.ndim else weight.cpu())
