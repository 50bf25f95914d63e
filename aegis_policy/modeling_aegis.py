"""The policy as LeRobot sees it: glue between the VLM, the action expert, flow matching and the protection.

Shapes: B batch, F flow samples an observation, N = F B, C cameras, T prefix tokens, H action horizon, A action
dimension, S state dimension.
"""

import json
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

import lerobot
import torch
from huggingface_hub import ModelCard, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from lerobot.configs import PreTrainedConfig
from lerobot.policies import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from lerobot.utils.device_utils import resolve_safetensors_device
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor

from aegis_policy.checkpoint.card import CARD_FILE, VQAScore, card_text
from aegis_policy.checkpoint.files import (
    ANCHOR_FILE,
    find_anchor,
    find_reference,
    load_training_state,
    save_beside,
    save_training_state,
)
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.data.checks import check_batch, check_language, check_statistics, instructions
from aegis_policy.data.chunk_reading import read_chunks_by_column
from aegis_policy.model import flow_matching
from aegis_policy.model.expert import ActionExpert, PrefixCache
from aegis_policy.optimizer_aegis import PolicyParameters, parameter_groups
from aegis_policy.protections import protection_named
from aegis_policy.protections.action_tokens import ActionChunks
from aegis_policy.support import ranks
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import atomic_write
from aegis_policy.vlm.backbone import Prefix, VLMBackbone
from aegis_policy.vqa.probe import VQAProbe

_VLM_FOLDER = "vlm"
_STEPS = "steps"
_VQA_BEFORE = "vqa_before"


class AegisPolicy(PreTrainedPolicy):
    """A VLM that moves a robot and still answers questions (`policy.vlm.answer`).

    Args:
        config: what the user set. A fresh policy loads `config.vlm` with its weights.
        checkpoint: the folder that `from_pretrained` restores; the VLM is built from its `vlm/` instead,
            and the weights are left to the caller.
        dataset_stats, dataset_meta: what LeRobot knows of the data: checked, and named on the checkpoint's card.

    Raises:
        AegisError: the VLM, the anchor or the data cannot be used.
    """

    config_class = AegisConfig
    name = "aegis"
    config: AegisConfig

    def __init__(
        self,
        config: AegisConfig,
        *,
        checkpoint: Path | None = None,
        dataset_stats: dict[str, dict[str, Any]] | None = None,
        dataset_meta: Any | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config)
        config.validate_features()
        self._dataset: str | None = dataset_meta.repo_id if dataset_meta is not None else None
        if dataset_meta is not None:
            check_language(config, dataset_meta.tasks.index)
            read_chunks_by_column()
        if dataset_stats is not None:
            check_statistics(config, dataset_stats)

        if checkpoint is None:
            self.vlm = VLMBackbone.from_pretrained(config.vlm)
            config.vlm_fingerprint = self.vlm.fingerprint()
        else:
            folder = checkpoint / _VLM_FOLDER
            self.vlm = VLMBackbone.from_architecture(folder, name=config.vlm)
        if config.gradient_checkpointing:
            self.vlm.model.gradient_checkpointing_enable({"use_reentrant": False})

        self.expert = ActionExpert(
            action_dim=config.action_dim,
            state_dim=config.state_dim,
            horizon=config.chunk_size,
            backbone_dim=self.vlm.hidden_size,
            backbone_layers=self.vlm.num_layers,
            width=config.expert_width,
            depth=config.expert_depth,
            heads=config.expert_heads,
        )
        self.protection = protection_named(config.protection)(config)
        self.protection.adapt(self.vlm)
        self.protection.set_trainable(self.vlm)
        self.anchor = find_anchor(config, self.protection, self.vlm, checkpoint)
        self.reference = find_reference(self.protection, self.vlm, checkpoint)
        self._probe: VQAProbe | None = None
        self._anchor_file: Path | None = None
        self._optimized: PolicyParameters | None = None
        self._training_begun = False
        self._training_state = load_training_state(checkpoint)
        self._training_steps = int(self._training_state.pop(_STEPS, 0))
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        strict: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Restore a checkpoint, from its own folder alone, in evaluation mode.

        Args:
            pretrained_name_or_path: a folder that `save_pretrained` wrote, or a hub id.
            config: replaces the checkpoint's configuration.
            strict: refuse weights that do not fit exactly.

        Raises:
            AegisError: the folder is no whole checkpoint of this policy.
        """
        directory = Path(pretrained_name_or_path)
        if not directory.is_dir():
            hub_options = ("revision", "cache_dir", "force_download", "token", "local_files_only")
            options = {key: kwargs[key] for key in hub_options if key in kwargs}
            try:
                directory = Path(snapshot_download(str(pretrained_name_or_path), **options))
            except (OSError, ValueError, HfHubHTTPError) as error:
                raise AegisError(
                    f"--policy.path={pretrained_name_or_path} is neither a folder nor a model that the hub gives "
                    f"({' '.join(str(error).split())}): name the `pretrained_model` folder of a checkpoint."
                ) from error
        if not (directory / _VLM_FOLDER).is_dir():
            raise AegisError(
                f"{directory} holds no {_VLM_FOLDER}/ folder, so it is not a whole checkpoint of this "
                "policy: name the `pretrained_model` folder that training saved."
            )
        _require_same_vlm(directory, config)
        return super().from_pretrained(
            directory, config=config, strict=strict, checkpoint=directory, **kwargs
        )

    @classmethod
    def _load_as_safetensor(cls, model: Self, model_file: str, map_location: str, strict: bool) -> Self:
        try:
            missing, unexpected = load_model(
                model, model_file, strict=False, device=resolve_safetensors_device(map_location)
            )
        except (OSError, RuntimeError, SafetensorError) as error:
            raise AegisError(
                f"{model_file} does not fit the configuration beside it and this data "
                f"({' '.join(str(error).split())})."
            ) from error
        if strict and (missing or unexpected):
            raise AegisError(
                f"{model_file} does not fit its configuration: it lacks {sorted(missing) or 'nothing'} and "
                f"has {sorted(unexpected) or 'nothing'} too many."
            )
        return model

    def _save_pretrained(
        self, save_directory: Path, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        super()._save_pretrained(save_directory, state_dict=state_dict, **kwargs)
        self.vlm.save_architecture(save_directory / _VLM_FOLDER)
        save_beside(save_directory, self.anchor, self.reference)
        state = self.protection.state() if self._training_begun else self._training_state
        figures = {_STEPS: torch.tensor(self._training_steps)}
        if (before := self._vqa_before()) is not None:
            figures[_VQA_BEFORE] = torch.tensor(before)
        save_training_state(save_directory, {**state, **figures})
        self._anchor_file = save_directory / ANCHOR_FILE
        with atomic_write(save_directory / CARD_FILE) as card:
            card.write_text(self._card(self._dataset))

    def generate_model_card(self, dataset_repo_id: str, *_: Any, **__: Any) -> ModelCard:
        """What LeRobot puts beside a policy that it pushes to the hub."""
        return ModelCard(self._card(dataset_repo_id))

    def _card(self, dataset: str | None) -> str:
        return card_text(
            self.config,
            steps=self._training_steps,
            probed=self._probed(),
            anchor_file=self._anchor_file,
            dataset=dataset,
        )

    def _probed(self) -> VQAScore | None:
        if self._probe is None or self._probe.last is None:
            return None
        questions = f"{self.config.vqa_probe_data}, probed in training"
        return VQAScore(questions, len(self._probe), after=self._probe.last, before=self._vqa_before())

    def _vqa_before(self) -> float | None:
        """What the probe found of the pretrained model, maybe before a resume."""
        if _VQA_BEFORE in self._training_state:
            return float(self._training_state[_VQA_BEFORE])
        return self._probe.first if self._probe is not None else None

    def get_optim_params(self) -> PolicyParameters:
        """Parameter groups of the action expert and the backbone, with the projectors that bend their steps.

        Raises:
            AegisError: the run is sharded by FSDP, which this LeRobot cannot do for a policy of this kind.
        """
        _refuse_sharding()
        ranks.keep_group()
        self._begin_training()
        groups = [
            *parameter_groups("expert", self.expert, self.config.optimizer_lr),
            *parameter_groups(
                "backbone", self.vlm, self.config.optimizer_lr_backbone, self.protection.undecayed(self.vlm)
            ),
        ]
        self._optimized = PolicyParameters(groups, self.protection.projectors)
        return self._optimized

    def forward(
        self,
        batch: dict[str, Any],
        noise: Tensor | None = None,
        time: Tensor | None = None,
        reduction: Literal["mean", "none"] = "mean",
    ) -> tuple[Tensor, dict[str, float]]:
        """The flow-matching loss of a batch; in training, the protection's part of the step too.

        The backbone encodes each observation once; the expert is asked about it at `config.flow_samples`
        points of the path, whose losses are averaged.

        Args:
            batch: normalised, with `action` (B, H, A), `action_is_pad` (B, H), `observation.state` (B, S),
                `task` (B strings) and the cameras (B, 3, height, width) in [0, 1].
            noise: (F B, H, A) instead of drawing it: the whole batch F times over.
            time: (F B,) flow times instead of drawing them.
            reduction: `none` returns one loss a sample, (B,).

        Returns:
            The loss, averaged over the valid action steps of the global batch, and figures to log.

        Raises:
            AegisError: keys are missing, the loss is not finite (on any rank), or nothing would project.
        """
        check_batch(self.config, batch, with_actions=True)
        training = self.training and torch.is_grad_enabled()
        if training:
            self._training_steps += 1
            _refuse_sharding()
            self._require_projection()
            self._begin_training()
        actions_BHA: Tensor = batch[ACTION]
        flow_samples = self.config.flow_samples if noise is None else len(noise) // len(actions_BHA)
        if noise is None:
            noise = _draw(lambda count: torch.randn(count, *actions_BHA.shape[1:]), actions_BHA, flow_samples)
        if time is None:
            time = _draw(self._sample_times, actions_BHA, flow_samples)
        inputs = self._vlm_inputs(batch)
        is_pad_BH: Tensor | None = batch.get("action_is_pad")
        if training:
            prefix = self.protection.encode(self.vlm, inputs, ActionChunks(actions_BHA, is_pad_BH))
        else:
            prefix = self.vlm.encode(inputs)
        targets_NHA = actions_BHA.repeat(flow_samples, 1, 1)
        velocity_NHA = self.expert(
            flow_matching.interpolate(noise, targets_NHA, time),
            time,
            batch[OBS_STATE].repeat(flow_samples, 1),
            self._cache(prefix),
        )
        loss_N = flow_matching.sample_losses(
            velocity_NHA,
            flow_matching.target_velocity(noise, targets_NHA),
            None if is_pad_BH is None else is_pad_BH.repeat(flow_samples, 1),
        )
        loss_B = loss_N.view(flow_samples, -1).mean(0)
        loss_B = loss_B / _valid_steps_a_sample(actions_BHA, is_pad_BH, across_ranks=training)
        loss = loss_B.mean()
        figures = {"flow_loss": loss.item()}
        if training:
            self._require_finite(loss, batch)
            figures |= self.protection.end_forward()
            if self._probe is not None:
                figures |= self._probe.figures(self.vlm, self.protection, self._training_steps - 1)
            if (penalty := self.protection.penalty_loss()) is not None:
                loss, loss_B = loss + penalty[0], loss_B + penalty[0]
                figures |= penalty[1]
                self._require_finite(loss, batch)
        return (loss if reduction == "mean" else loss_B), figures

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], noise: Tensor | None = None, **_: Any) -> Tensor:
        """Sample a chunk of normalised actions (B, H, A), from `noise` or from torch's global generator."""
        self.eval()
        check_batch(self.config, batch, with_actions=False)
        state_BS: Tensor = batch[OBS_STATE]
        with torch.autocast(
            state_BS.device.type, dtype=torch.bfloat16, enabled=self.config.dtype == "bfloat16"
        ):
            cache = self._cache(self.vlm.encode(self._vlm_inputs(batch)))
            if noise is None:
                shape = (len(state_BS), self.config.chunk_size, self.config.action_dim)
                noise = torch.randn(shape, device=state_BS.device)
            return flow_matching.euler_sample(
                lambda x_BHA, time_B: self.expert(x_BHA, time_B, state_BS, cache).float(),
                noise,
                self.config.num_inference_steps,
            )

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], noise: Tensor | None = None, **_: Any) -> Tensor:
        """The next normalised action (B, A); a new chunk is sampled every `n_action_steps` calls."""
        if not self._queue:
            chunk_BHA = self.predict_action_chunk(batch, noise)
            self._queue.extend(chunk_BHA[:, : self.config.n_action_steps].unbind(dim=1))
        return self._queue.popleft()

    def reset(self) -> None:
        """Forget the actions that are left of the last chunk: the environment was reset."""
        self._queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)

    def _sample_times(self, draws: int) -> Tensor:
        config = self.config
        return flow_matching.sample_times(draws, config.time_alpha, config.time_beta, config.time_max)

    def _vlm_inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return self.vlm.prepare(
            [batch[key] for key in self.config.image_features], instructions(self.config, batch)
        )

    def _cache(self, prefix: Prefix) -> PrefixCache:
        return self.expert.prepare_prefix(prefix.hidden_states, prefix.mask)

    def _begin_training(self) -> None:
        """Once: when the optimizer asks for the parameters, or else with the first batch."""
        if not self._training_begun:
            self.protection.begin_training(self.vlm, self.anchor, self.reference)
            for name, tensor in self.protection.state().items():
                if name in self._training_state:
                    tensor.copy_(self._training_state[name])
            if self.config.frozen_dtype == "bfloat16":
                for parameter in self.vlm.parameters():
                    if not parameter.requires_grad:
                        parameter.data = parameter.data.to(torch.bfloat16)
            if self.config.vqa_probe_freq:
                self._probe = VQAProbe(self.config)
            self._training_begun = True

    def _require_projection(self) -> None:
        if self.protection.projects and not (self._optimized and self._optimized.projects):
            raise AegisError(
                f"--policy.protection={self.config.protection} projects gradients in the optimizer's step, "
                "and this run's optimizer does not: use --optimizer.type=aegis_adamw, which is the default "
                "as long as --use_policy_training_preset stays true."
            )

    def _require_finite(self, loss: Tensor, batch: dict[str, Any]) -> None:
        """Stop all ranks together, before the gradient of a loss that is not finite reaches the weights."""
        if ranks.all_true(torch.isfinite(loss.detach())):
            return
        broken = [key for key in (ACTION, OBS_STATE) if not torch.isfinite(batch[key]).all()]
        advice = (
            f"{' and '.join(broken)} of this batch hold NaN or infinity: check the dataset and its statistics"
            if broken
            else "lower --policy.optimizer_lr and --policy.optimizer_lr_backbone, or look for outliers"
        )
        raise AegisError(f"The loss is not finite at training step {self._training_steps}; {advice}.")


def _refuse_sharding() -> None:
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise AegisError(
            f"LeRobot {lerobot.__version__} calls a policy's forward behind FSDP's back, so "
            "--policy.type=aegis cannot be sharded: launch with torchrun or accelerate's MULTI_GPU (DDP) "
            "instead."
        )


def _require_same_vlm(checkpoint: Path, config: PreTrainedConfig | None) -> None:
    """A checkpoint brings its own VLM; another one named beside it would be ignored."""
    own = json.loads((checkpoint / "config.json").read_text()).get("vlm")
    if isinstance(config, AegisConfig) and config.vlm != own:
        raise AegisError(
            f"--policy.vlm={config.vlm} was given together with the checkpoint {checkpoint}, whose backbone is "
            f"a fine-tuned {own}: leave --policy.vlm out, or start from it without --policy.path."
        )


def _draw(draw: Callable[[int], Tensor], like: Tensor, flow_samples: int) -> Tensor:
    """This rank's rows of `flow_samples` random draws for the global batch, one round after the other."""
    return torch.cat([ranks.share(draw, like) for _ in range(flow_samples)])


def _valid_steps_a_sample(actions_BHA: Tensor, is_pad_BH: Tensor | None, across_ranks: bool) -> Tensor:
    """What the loss is divided by: the mean number of valid action steps a sample, over all ranks.

    Ranks that divided by their own number would weigh a step by the rank it happened to fall on.
    """
    batch_size, horizon = actions_BHA.shape[:2]
    if is_pad_BH is None:
        return actions_BHA.new_tensor(float(horizon))
    steps = (~is_pad_BH).sum().float() / batch_size
    if across_ranks:
        steps = ranks.mean(steps)
    return steps.clamp(min=1.0 / batch_size)
