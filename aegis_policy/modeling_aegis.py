"""The policy as LeRobot sees it: glue between the model, the protection and a checkpoint's files.

Shapes: B batch, F flow samples an observation, N = F B, H action horizon, A action dimension, S state dimension.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

import torch
from huggingface_hub import ModelCard
from lerobot.configs import PreTrainedConfig
from lerobot.policies import PreTrainedPolicy
from lerobot.policies.rtc import RTCProcessor
from lerobot.utils.constants import ACTION, OBS_STATE
from lerobot.utils.device_utils import resolve_safetensors_device
from torch import Tensor

import aegis_policy.data.vectors  # noqa: F401  # whoever has a policy can read its processors
from aegis_policy.checkpoint import files
from aegis_policy.checkpoint.card import CARD_FILE, VQAScore, card_text
from aegis_policy.checkpoint.changes import check_use, optimizer_begun
from aegis_policy.checkpoint.checks import ANCHOR_FILE, VLM_FOLDER, check_checkpoint, check_upload
from aegis_policy.checkpoint.listing import whole, write_list
from aegis_policy.checkpoint.published_card import keep_card
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.data.batches import check_batch, instructions, read_question, read_vector
from aegis_policy.data.checks import action_names, check_dataset, read_features
from aegis_policy.data.statistics import check_statistics, constant_dimensions
from aegis_policy.model import flow_matching
from aegis_policy.model.action_queue import ActionQueue
from aegis_policy.model.compiled_expert import CompiledExpert
from aegis_policy.model.expert import ActionExpert
from aegis_policy.model.flow_vla import FlowVLA, draw
from aegis_policy.model.real_time_chunking import guided_sample, real_actions
from aegis_policy.optimizer_aegis import PolicyParameters, parameter_groups
from aegis_policy.protections import Step
from aegis_policy.protections.action_tokens import ActionChunks
from aegis_policy.protections.holding import HoldsProtected
from aegis_policy.support import ranks
from aegis_policy.support.errors import AegisError, one_line
from aegis_policy.support.files import atomic_contents
from aegis_policy.support.finding import enforce
from aegis_policy.support.lerobot_flags import resuming
from aegis_policy.support.sharding import refuse_sharding
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.checks import check_reading, check_saving, check_texts
from aegis_policy.vqa.examples import SENTENCE_TOKENS
from aegis_policy.vqa.probe import VQAProbe, probe_of
from aegis_policy.vqa.text_probe import TextProbe


class AegisPolicy(HoldsProtected, PreTrainedPolicy):
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
        self.protection = config.resolve_options()
        self._dataset: str | None = dataset_meta.repo_id if dataset_meta is not None else None
        if dataset_meta is not None:
            dataset_stats = dataset_meta.stats
            config.action_feature_names = action_names(dataset_meta)
            enforce(check_dataset(config, dataset_meta, checkpoint))
            if config.push_to_hub:
                enforce(check_upload(str(config.repo_id)))
        elif dataset_stats is not None:
            enforce(check_statistics(config, dataset_stats))
        if dataset_stats is not None and not resuming():  # then those of the checkpoint go on to normalise
            config.constant_dimensions = constant_dimensions(config, dataset_stats)
        config.validate_features()
        config.input_features, config.output_features = read_features(config)

        if checkpoint is None:
            self.vlm = VLMBackbone.from_pretrained(config.vlm)
            config.vlm_fingerprint = self.vlm.fingerprint()
        else:
            with whole(checkpoint, VLM_FOLDER) as folder:
                self.vlm = VLMBackbone.from_architecture(
                    folder,
                    name=config.vlm,
                    named=str(checkpoint / VLM_FOLDER),
                    shapes=files.weight_shapes(checkpoint, "vlm.model"),
                )
        self.vlm.end_at(config.backbone_depth)
        if dataset_meta is not None:
            tasks = map(str, dataset_meta.tasks.index) if config.instruction is None else [config.instruction]
            enforce(check_texts(self.vlm.prompts, list(tasks)))
        if config.gradient_checkpointing:
            self.vlm.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.vlm.model.disable_input_require_grads()  # or backward goes on through what is frozen below

        make_expert = partial(
            ActionExpert,
            action_dim=config.action_dim,
            state_dim=config.state_dim,
            horizon=config.chunk_size,
            backbone_dim=self.vlm.hidden_size,
            backbone_layers=self.vlm.depth,
            width=config.expert_width,
            depth=config.expert_depth,
            heads=config.expert_heads,
        )
        if checkpoint is not None:
            with torch.device("meta"):
                files.require_shapes(make_expert(), checkpoint, "expert")
        self.expert = make_expert()
        self.protection.adapt(self.vlm)
        self.protection.set_trainable(self.vlm)
        self.anchor = files.find_anchor(config, self.protection, self.vlm, checkpoint)
        self.reference = files.find_reference(self.protection, self.vlm, checkpoint)
        self._training_state = files.TrainingState.load(checkpoint)
        self._optimizer_restored = optimizer_begun(checkpoint) if checkpoint and resuming() else {}
        self._training_begun = False
        self._probe: VQAProbe | TextProbe | None = None
        self._anchor_file: Path | None = None
        self._saved_card: str | None = None
        self._action_queue = ActionQueue()
        self.init_rtc_processor()
        self._compiled = CompiledExpert(config.compile_mode) if config.compile_model else None

    @property
    def flow_vla(self) -> FlowVLA:
        """VLM and action expert as one model."""
        return FlowVLA(self.vlm, self.expert)

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
        folder = files.find_checkpoint(pretrained_name_or_path, kwargs)
        enforce(check_checkpoint(folder))
        config = config or files.read_config(folder)
        enforce(check_use(folder, config, kwargs.get("dataset_meta")))
        return super().from_pretrained(folder, config=config, strict=strict, checkpoint=folder, **kwargs)

    @classmethod
    def _load_as_safetensor(cls, model: Self, model_file: str, map_location: str, strict: bool) -> Self:
        files.load_weights(model, model_file, resolve_safetensors_device(map_location), strict)
        return model

    def _save_pretrained(self, save_directory: Path, **options: Any) -> None:
        """Write the policy as a whole, or nothing.

        Newer versions of LeRobot call this on every rank, where their own part writes on the first alone.
        """
        if ranks.index() > 0:
            if options.get("state_dict") is None:
                self.hold()  # as the first rank does, in `state_dict`
            return
        files.remove_left(save_directory)
        with atomic_contents(save_directory) as folder:
            self._record_optimizer()
            super()._save_pretrained(folder, **options)
            files.save_beside(folder, self.anchor, self.reference)
            self._anchor_file = folder / ANCHOR_FILE
            self._save_small_files(folder)
        self._anchor_file = save_directory / ANCHOR_FILE

    def _save_small_files(self, folder: Path) -> None:
        """Write what a checkpoint holds besides configuration, weights and anchor."""
        self.vlm.save_architecture(folder / VLM_FOLDER)
        self._state_to_save().save(folder)
        self._saved_card = self._card(self._dataset)
        (folder / CARD_FILE).write_text(self._saved_card)
        write_list(folder)

    def _record_optimizer(self) -> None:
        """Have the configuration say what was used, which flags of LeRobot's own (`--optimizer.*`) may have changed."""
        if self._optimized is not None and (used := self._optimized.optimizer) is not None:
            for name in ("betas", "eps", "weight_decay", "grad_clip_norm", "bits"):
                setattr(self.config, f"optimizer_{name}", getattr(used, name))

    def _try_saving(self) -> None:
        """See that nothing but a disk can fail a checkpoint, before there is a training to be lost.

        Raises:
            AegisError: something would.
        """
        enforce(check_saving(self.vlm))
        try:
            with TemporaryDirectory(prefix="aegis-checkpoint-") as folder:
                self.config.save_pretrained(folder)
                self._save_small_files(Path(folder))
        except Exception as error:  # whatever a configuration's values or a protection's state do
            raise AegisError(
                f"No checkpoint of this policy could be saved ({type(error).__name__}: {one_line(error)}): mend what "
                "it names before training."
            ) from error

    def _state_to_save(self) -> files.TrainingState:
        return replace(self._training_state, vqa_before=self._vqa_before())

    def push_to_hub(self, repo_id: str, **options: Any) -> str | None:
        """Upload the policy as it is saved, with a card that stays its own."""
        commit: str | None = super().push_to_hub(repo_id, **options)
        if self._saved_card is not None:
            keep_card(self.config, self._saved_card)
        return commit

    def generate_model_card(self, dataset_repo_id: str, *_: Any, **__: Any) -> ModelCard:
        """What LeRobot puts beside a policy that it pushes to the hub."""
        return ModelCard(self._card(dataset_repo_id))

    def _card(self, dataset: str | None) -> str:
        return card_text(
            self.config,
            steps=self._training_state.steps,
            probed=self._probed(),
            anchor_file=self._anchor_file,
            coverages=self.protection.coverages() if self._training_begun else (),
            dataset=dataset,
        )

    def _probed(self) -> VQAScore | None:
        if self._probe is None or self._probe.last is None:
            return None
        questions = f"{self.config.vqa_probe_data}, probed in training"
        return VQAScore(questions, len(self._probe), after=self._probe.last, before=self._vqa_before())

    def _vqa_before(self) -> float | None:
        """What the probe found of the pretrained model, maybe before a resume."""
        known = self._training_state.vqa_before
        return self._probe.first if known is None and self._probe is not None else known

    def get_optim_params(self) -> PolicyParameters:
        """Parameter groups of the action expert and the backbone, with the projectors that bend their steps.

        Raises:
            AegisError: the run is sharded.
        """
        self._check_sharding()
        ranks.keep_group()
        self._begin_training()
        matrices = self.expert.hidden_matrices() if self.config.expert_optimizer == "muon" else ()
        groups = [
            *parameter_groups("expert", self.expert, self.config.optimizer_lr, by_muon=matrices),
            *parameter_groups(
                "backbone",
                self.vlm,
                self.config.optimizer_lr_backbone,
                self.protection.undecayed(self.vlm),
                eps=self.config.optimizer_eps_backbone,
            ),
        ]
        self._optimized = PolicyParameters(groups, self.protection.projectors, self._optimizer_restored)
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
            The loss, averaged over the valid action steps of the global batch, and figures to log. Where a trainer
            accumulates gradients, that is of a micro-batch, and micro-batches count alike, however they are padded.

        Raises:
            AegisError: keys are missing, the loss is not finite (on any rank), or nothing would project.
        """
        check_batch(self.config, batch, with_actions=True)
        training = self.training and torch.is_grad_enabled()
        if training:
            self._count_step()
        with self._own_precision():
            chunks = ActionChunks(read_vector(self.config, batch, ACTION), batch.get("action_is_pad"))
            noise_NHA, time_N = self._path_points(chunks.actions_BHA, noise, time)
            inputs = self._vlm_inputs(batch)
            begin_step = self.protection.begin_step if training else _unprotected_step
            step = begin_step(self.vlm, inputs, chunks)
            state_BS = read_vector(self.config, batch, OBS_STATE)
            loss_B = self.flow_vla.losses(
                step.prefix, state_BS, *chunks, noise_NHA, time_N, across_ranks=training
            )
            mean = loss_B.mean()
            loss = mean if reduction == "mean" else loss_B
            figures = {"flow_loss": mean.item()}
            if training:
                self._require_finite(mean, batch)
                figures |= step.finish()
                if self._probe is not None:
                    figures |= self._probe.figures(self.vlm, self.protection, self._training_state.steps - 1)
                if (penalty := step.penalty()) is not None:
                    loss, mean = loss + penalty.loss, mean + penalty.loss
                    figures |= penalty.figures
                    self._require_finite(mean, batch)
        return loss, figures

    @torch.compiler.disable  # LeRobot's rollout compiles this method whole, tokenizer and all: the expert alone is
    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: dict[str, Any],
        noise: Tensor | None = None,
        *,
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        execution_horizon: int | None = None,
    ) -> Tensor:
        """Sample a chunk of normalised actions (B, H, A), from `noise` or from torch's global generator.

        With `config.rtc_config` it goes on from what is left of the last chunk, where that is given (real-time
        chunking, arXiv 2506.07339).

        Args:
            batch: preprocessed, as `forward` takes it, without the actions.
            noise: (B, H, A) instead of drawing it.
            inference_delay: actions of the last chunk that will have been carried out when this one is there.
            prev_chunk_left_over: those of it that were not, as they were sampled, (P, A) or (B, P, A).
            execution_horizon: how many of these it goes on from, instead of the configuration's.

        Raises:
            AegisError: more is left over than a chunk has.
        """
        self.eval()
        check_batch(self.config, batch, with_actions=False)
        state_BS = read_vector(self.config, batch, OBS_STATE)
        if noise is None:
            shape = (len(state_BS), self.config.chunk_size, self.config.action_dim)
            noise = torch.randn(shape, device=state_BS.device)
        with torch.autocast(
            state_BS.device.type, dtype=torch.bfloat16, enabled=self.config.dtype == "bfloat16"
        ):
            return self.flow_vla.sample(
                self._vlm_inputs(batch),
                state_BS,
                noise,
                self.config.num_inference_steps,
                self._sampler(inference_delay, prev_chunk_left_over, execution_horizon),
                self._compiled,
            )

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], noise: Tensor | None = None, **_: Any) -> Tensor:
        """The next normalised action (B, A); a new chunk is sampled every `n_action_steps` calls.

        Raises:
            AegisError: another rollout is under way, in another thread or with another batch size.
        """
        check_batch(self.config, batch, with_actions=False)
        return self._action_queue.next(
            len(batch[OBS_STATE]),
            lambda: self.predict_action_chunk(batch, noise)[:, : self.config.n_action_steps],
        )

    def supports_rtc(self) -> bool:
        """LeRobot's rollout asks this before it takes `--inference.type=rtc`."""
        return True

    def init_rtc_processor(self) -> None:
        """Follow `config.rtc_config`, which LeRobot's rollout sets before it calls this."""
        rtc, most = self.config.rtc_config, self.config.chunk_size
        if rtc is not None and rtc.enabled and rtc.execution_horizon > most:
            raise AegisError(
                f"A chunk of this policy has {most} actions, fewer than an execution horizon of "
                f"{rtc.execution_horizon}: use at most --inference.rtc.execution_horizon={most}."
            )
        self.rtc_processor = RTCProcessor(rtc) if rtc is not None and rtc.enabled else None

    def _sampler(
        self, delay: int | None, left_over: Tensor | None, horizon: int | None
    ) -> flow_matching.Sampler:
        if self.rtc_processor is None or left_over is None:
            return flow_matching.euler_sample
        left_over, most = real_actions(left_over), self.config.chunk_size
        if not left_over.shape[-2]:
            return flow_matching.euler_sample
        if left_over.shape[-2] > most:
            raise AegisError(
                f"{left_over.shape[-2]} actions are left over, and a chunk of this policy has {most}: use at most "
                f"--inference.rtc.execution_horizon={most}."
            )
        return partial(
            guided_sample,
            processor=self.rtc_processor,
            left_over_PA=left_over,
            delay=delay or 0,
            execution_horizon=horizon,
        )

    def reset(self) -> None:
        """Forget the actions that are left of the last chunk: the environment was reset."""
        self._action_queue.begin()

    def supports_text_generation(self) -> bool:
        """Newer versions of LeRobot ask this; their `lerobot-rollout --interactive=true` then takes `/vqa QUESTION`."""
        return True

    def generate_text(self, batch: dict[str, Any]) -> str:
        """What the VLM answers (`vlm.answer`) to the question of a batch of one observation.

        Args:
            batch: preprocessed, with a camera (1, 3, height, width) in [0, 1] and what LeRobot adds on `/vqa`:
                `query_kind` and `query_text`, which may begin with the name of another camera than the first.

        Raises:
            AegisError: nothing is asked, or no question, or the picture is missing.
        """
        picture, question = read_question(self.config, batch)
        return self.vlm.answer([picture], [question], SENTENCE_TOKENS)[0]

    def _own_precision(self) -> AbstractContextManager[Any]:
        """Matrix products as `config.dtype` says, whether or not the trainer sees to it (LeRobot 0.6.1 does).

        float32 leaves an autocast that the trainer was told to use.
        """
        if self.config.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.vlm.device.type, dtype=torch.bfloat16)

    def _path_points(
        self, actions_BHA: Tensor, noise: Tensor | None, time: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Where on the path from noise to actions the expert is asked: noise (N, H, A) and times (N,)."""
        config = self.config
        samples = config.flow_samples if noise is None else len(noise) // len(actions_BHA)
        if noise is None:
            noise = draw(lambda rows: torch.randn(rows, *actions_BHA.shape[1:]), actions_BHA, samples)
        if time is None:
            shape = (config.time_alpha, config.time_beta, config.time_max)
            time = draw(lambda rows: flow_matching.sample_times(rows, *shape), actions_BHA, samples)
        return noise, time

    def _vlm_inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return self.vlm.prepare(
            [batch[key] for key in self.config.image_features], instructions(self.config, batch)
        )

    def _count_step(self) -> None:
        self._training_state = replace(self._training_state, steps=self._training_state.steps + 1)
        self._check_sharding()
        self._require_projection()
        self._begin_training()
        if self._probe is not None and self._probe.due(self._training_state.steps - 1):
            self.hold()

    def _check_sharding(self) -> None:
        """See that what is done in a training step is right where parameters lie in pieces.

        Raises:
            AegisError: it is not.
        """
        config = self.config
        whole = {
            "vqa_probe_freq": config.vqa_probe_freq > 0,
            "expert_optimizer": config.expert_optimizer != "adamw",
            "optimizer_bits": config.optimizer_bits != 32,
        }
        if refuse_sharding(self, but_rows=self.protection.by_rows) and any(whole.values()):
            name = next(each for each in whole if whole[each])
            raise AegisError(
                f"--policy.{name}={getattr(config, name)} wants whole parameters, and this training is sharded: leave "
                "it out, or leave out --parallelism.dp_shard."
            )

    def _begin_training(self) -> None:
        """Once: when the optimizer asks for the parameters, or else with the first batch."""
        if not self._training_begun:
            if self._dataset is not None and ranks.index() == 0:
                enforce(check_reading(self.vlm))
            self.protection.begin_training(self.vlm, self.anchor, self.reference)
            for coverage in self.protection.coverages():
                enforce(coverage.findings())
            if self.config.frozen_dtype == "bfloat16":
                for parameter in self.vlm.parameters():
                    if not parameter.requires_grad:
                        parameter.data = parameter.data.to(torch.bfloat16)
            if self.config.vqa_probe_freq:
                self._probe = probe_of(self.config, self.vlm)
            self._training_begun = True
            if self._dataset is not None and ranks.index() == 0:
                self._try_saving()

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
        raise AegisError(f"The loss is not finite at training step {self._training_state.steps}; {advice}.")


def _unprotected_step(vlm: VLMBackbone, inputs: dict[str, Tensor], chunks: ActionChunks) -> Step:
    return Step(vlm.encode(inputs))
