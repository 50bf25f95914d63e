"""A transformers image-text-to-text model, seen twice.

The policy sees the *prefix encoder*: camera images and an instruction become the hidden states of every decoder
layer. VQA sees the *answerer*: an image and a question become text. Both are the same weights, the same processor
and the same prompt format; no modeling code is copied here. The prefix encoder may end at an earlier decoder layer
(`depth`), the answerer never does.

Shapes: B batch, C cameras, T prefix tokens, D hidden size, L decoder layers.
"""

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteriaList

from aegis_policy.pretrained import resolve
from aegis_policy.support.errors import AegisError, one_line
from aegis_policy.support.finding import enforce
from aegis_policy.vlm.early_end import ending_early, require_depth
from aegis_policy.vlm.generation import GoesOn, greedy
from aegis_policy.vlm.loading import longest_prompt, read_files
from aegis_policy.vlm.merging import merged
from aegis_policy.vlm.parts import VLMParts
from aegis_policy.vlm.prefix import Prefix
from aegis_policy.vlm.processor_checks import OTHER_PROCESSOR, check_files
from aegis_policy.vlm.prompts import NO_LABEL, Pictures, Prompts
from aegis_policy.vlm.weights import build_model, load_model, require_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FREE_TOKEN = re.compile("reserved|unused")
_OF_THE_MACHINE = re.compile("alloc|out of memory|same device|CUDA|CUBLAS|cuDNN|NCCL|MPS")
"""What errors say that are no matter of what a model reads."""


@dataclass(frozen=True)
class ReadText:
    """Running text as a model read it: `tokens_T`, logits behind each token, and the head's inputs that they are from.

    `logits_STV` are the model's own, S = 1, and, where an earlier reading's features were given, those of it behind.
    """

    tokens_T: Tensor
    logits_STV: Tensor
    features_TD: Tensor


class VLMBackbone(VLMParts, nn.Module):
    """A VLM with its processor, as prefix encoder and as answerer.

    Its `depth` is all of its decoder layers, until `end_at` says less.

    Attributes:
        whole: False where the last decoder layers are left out, so that what it answers means nothing.
    """

    whole = True

    def __init__(self, model: "PreTrainedModel", processor: Any, name: str, flag: str = "--vlm") -> None:
        nn.Module.__init__(self)
        VLMParts.__init__(self, model, name, flag)
        self.processor = processor
        self.prompts = Prompts(processor, self.family, name, longest_prompt(model.config))
        self.projector.register_forward_hook(partial(_as_word, model))
        self._generation = model.generation_config
        model.generation_config = greedy(self._generation, processor.tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        name_or_directory: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        flag: str = "--policy.vlm",
    ) -> "VLMBackbone":
        """Load architecture, weights (safetensors only) and processor of a directory, a hub id, or `embedded`.

        Args:
            name_or_directory: what to load.
            dtype: of the weights.
            flag: how errors call what named the model.

        Raises:
            AegisError: nothing usable is there, it is not an image-text-to-text model, or its family is unknown.
        """
        name = str(name_or_directory)
        named = f"{flag}={name}"
        files = read_files(resolve(name, named), named)
        enforce(check_files(files))
        model, findings = load_model(files, dtype=dtype)
        enforce(findings)
        return cls(model, files.processor, name)

    @classmethod
    def from_architecture(
        cls,
        directory: str | Path,
        *,
        name: str | None = None,
        named: str | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> "VLMBackbone":
        """Build the model with random weights from what `save_architecture` wrote; the caller loads the weights.

        Args:
            directory: what to load.
            name: of the model that was saved.
            named: how errors call the directory, if not by its path.
            shapes: of the weights that the caller will load, by name; an architecture with others takes no memory.

        Raises:
            AegisError: the folder holds no usable configuration or processor, or one of other weights.
        """
        directory = str(directory)
        files = read_files(directory, named or directory)
        if shapes is not None:
            require_shapes(files, shapes)
        enforce(check_files(files))
        return cls(build_model(files), files.processor, name or directory)

    def save_architecture(self, directory: str | Path) -> None:
        """Write configuration, generation defaults, tokenizer and processor, without weights."""
        self.model.config.save_pretrained(directory)
        self._generation.save_pretrained(directory)
        self.processor.save_pretrained(directory)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a plain transformers directory that `AutoModelForImageTextToText.from_pretrained` loads.

        Adapters are merged into a copy of the weights they belong to.
        """
        merged(self.model).save_pretrained(directory, safe_serialization=True)
        self._generation.save_pretrained(directory)
        self.processor.save_pretrained(directory)

    def end_at(self, depth: int | None) -> None:
        """Have `encode` end after so many decoder layers; None for all.

        Raises:
            AegisError: there are not so many.
        """
        require_depth(depth, self.num_layers, self.name)
        self.depth = depth or self.num_layers

    def prepare(self, images: Sequence[Tensor], texts: Sequence[str]) -> dict[str, Tensor]:
        """Turn one batch of camera images and instructions into model inputs, with the model's own processor.

        Args:
            images: one tensor (B, 3, H, W) a camera, floats in [0, 1].
            texts: B instructions.
        """
        return self._here(self.prompts.of_cameras(images, texts))

    def refuses(self, text: str) -> str | None:
        """Why a question, answer or instruction cannot be read, as the end of a sentence; None for nearly every text.

        Special tokens in it are no reason: they are read as ordinary words. A reader that knows a text's file and line
        asks this, and says both; `prepare`, `question_inputs` and `answer_inputs` raise the sentence without.
        """
        return self.prompts.refuses(text)

    def reserved_tokens(self, count: int) -> Tensor:
        """The last `count` words of the vocabulary that no prompt is made of, ascending ids (count,).

        Special tokens are left out, but for those that their family has left free ("reserved", "unused"). In PaliGemma
        the last 128 are for segmentation masks, which neither questions nor answers hold.

        Raises:
            AegisError: there are not so many.
        """
        tokenizer = self.processor.tokenizer
        special = {*tokenizer.all_special_ids, self.model.config.image_token_id}
        special |= {
            index
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special and not _FREE_TOKEN.search(token.content)
        }
        words = [index for index in range(len(tokenizer)) if index not in special]
        if count >= len(words):
            raise AegisError(
                f"The vocabulary of {self.name} has {len(words)} words: {count} cannot be reserved."
            )
        return torch.tensor(words[-count:], device=self.device)

    def image_tokens(self, inputs: dict[str, Tensor]) -> Tensor:
        """Which tokens of prepared inputs stand for a part of an image, bool (B, T)."""
        return inputs["input_ids"] == self.model.config.image_token_id

    def encode(self, inputs: dict[str, Tensor]) -> Prefix:
        """Run the backbone to its `depth` over prepared inputs; returns the hidden states of every layer that ran."""
        mask = inputs["attention_mask"].bool()
        model, options = self.model, {}
        if self.depth < self.num_layers:
            model = ending_early(model, self.family.decoder_layers, self.depth)
            options = dict.fromkeys(("output_hidden_states", "output_attentions"), False)  # hooks for good
        with self._reading(inputs), self.recorded_layers() as hidden_states:
            model.base_model(**inputs, **self._positions(mask), use_cache=False, **options)
        return Prefix(tuple(hidden_states), mask)

    def encode_with_suffix(self, inputs: dict[str, Tensor], suffix_BK: Tensor) -> tuple[Prefix, Tensor]:
        """`encode`, and what the model would say at each of the tokens that it reads, causally, behind the prefix.

        The prefix does not see what is behind it: its hidden states are those of `encode`. Padding may stand between
        the two, so the prefix's last token is read once more in front of the suffix, to predict its first.

        Returns:
            The prefix and logits (B, K, V), the k-th before the k-th token of the suffix is read.
        """
        mask_BT = inputs["attention_mask"].bool()
        last_B1 = (mask_BT * torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device)).argmax(
            1, keepdim=True
        )
        behind_BK = torch.cat([inputs["input_ids"].gather(1, last_B1), suffix_BK], dim=1)
        behind = {
            "input_ids": behind_BK,
            "attention_mask": torch.ones_like(behind_BK),
            "token_type_ids": torch.full_like(behind_BK, self.family.causal_type),
            "mm_token_type_ids": torch.zeros_like(behind_BK),
        }
        longer = {
            key: torch.cat([value, behind[key].to(value)], dim=1) if key in behind else value
            for key, value in inputs.items()
        }
        with self._reading(longer), self.recorded_layers() as hidden_states:
            output = self.model(
                **longer,
                **self._positions(longer["attention_mask"].bool()),
                use_cache=False,
                logits_to_keep=behind_BK.shape[1],
            )
        read = hidden_states[: self.depth]
        prefix = Prefix(tuple(hidden[:, : mask_BT.shape[1]] for hidden in read), mask_BT)
        return prefix, output.logits[:, :-1]

    @torch.no_grad()
    def answer(
        self,
        images: Sequence[Pictures],
        questions: Sequence[str],
        max_new_tokens: int = 16,
    ) -> list[str]:
        """Answer one question an image, or about several, greedily.

        Args:
            images: N images, each (H, W, 3) uint8, or several in its place; or N times None, for questions about no
                picture.
            questions: N questions.
            max_new_tokens: longest answer.

        Raises:
            AegisError: the model cannot read them, or answers nothing without a picture.
        """
        return self.answer_to(self.question_inputs(images, questions), max_new_tokens)

    @torch.no_grad()
    def answer_to(
        self,
        inputs: dict[str, Tensor],
        max_new_tokens: int = 16,
        before_each: Callable[[Tensor], object] | None = None,
    ) -> list[str]:
        """Answer the questions of `question_inputs`, greedily.

        Args:
            inputs: of N questions, which the model reads first.
            max_new_tokens: longest answer.
            before_each: called before the model reads a further token of every answer, with which of them go on, bool
                (N,); the others' are padding.
        """
        said = StoppingCriteriaList([] if before_each is None else [GoesOn(self.model, before_each)])
        with self._evaluating(), self._reading(inputs):
            tokens = self.model.generate(
                **inputs, do_sample=False, max_new_tokens=max_new_tokens, stopping_criteria=said
            )
        new_tokens = tokens[:, inputs["input_ids"].shape[1] :]
        answers = self.processor.batch_decode(new_tokens, skip_special_tokens=True)
        return [answer.strip() for answer in answers]

    def question_inputs(self, images: Sequence[Pictures], questions: Sequence[str]) -> dict[str, Tensor]:
        """Model inputs of N image-question pairs, left-padded as `generate` wants them."""
        return self._here(self.prompts.of_questions(images, questions))

    def text_inputs(self, text: str) -> dict[str, Tensor]:
        """Model inputs (1, T) of running text without a picture, as much of it as `Prompts.of_text` takes.

        Raises:
            AegisError: the model cannot read it.
        """
        return self._here(self.prompts.of_text(text))

    def answer_inputs(
        self,
        images: Sequence[Pictures],
        questions: Sequence[str],
        answers: Sequence[str],
    ) -> dict[str, Tensor]:
        """Model inputs of N questions with their answers, left-padded; `labels` (N, T) hold the answers' tokens.

        Args:
            images: N images, each (H, W, 3) uint8, or several in its place; or N times None.
            questions: N questions.
            answers: N answers, which the model reads as if it had given them.
        """
        return self._here(self.prompts.of_answers(images, questions, answers))

    def answer_logits(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the model would say at each token of the answers of `answer_inputs`, differentiable.

        Returns:
            Logits (N, K, V) and the answers' own tokens (N, K), right-aligned, K the longest answer; tokens that are
            no answer's are `NO_LABEL`.
        """
        inputs = dict(inputs)
        labels_NT = inputs.pop("labels")
        longest = int((labels_NT != NO_LABEL).sum(1).max())
        with self._reading(inputs):
            logits_NKV = self.model(
                **inputs,
                **self._positions(inputs["attention_mask"].bool()),
                use_cache=False,
                logits_to_keep=longest + 1,  # padding is on the left, so every answer ends at the end
            ).logits[:, :-1]
        return logits_NKV, labels_NT[:, -longest:]

    @torch.no_grad()
    def read(self, text: str, beside_TD: Tensor | None = None) -> "ReadText":
        """Read running text without a picture, as much of it as `Prompts.of_text` takes.

        Args:
            text: any.
            beside_TD: `features_TD` of an earlier reading of the same text, whose logits come as the second.

        Raises:
            AegisError: the model cannot read it, or nothing without a picture.
        """
        inputs = self.text_inputs(text)
        got: list[Tensor] = []

        def head_reads(_head: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
            got.append(arguments[0])
            beside = [] if beside_TD is None else [beside_TD.to(arguments[0])[None]]
            return (torch.cat([arguments[0], *beside]),)

        handle = self.model.get_output_embeddings().register_forward_pre_hook(head_reads)
        try:
            with self._evaluating(), self._reading(inputs):
                positions = self._positions(inputs["attention_mask"].bool())
                logits_STV = self.model(**inputs, **positions, use_cache=False).logits
        finally:
            handle.remove()
        return ReadText(inputs["input_ids"][0], logits_STV, got[0][0])

    def _here(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.device) for key, value in inputs.items()}

    def _positions(self, mask_NT: Tensor) -> dict[str, Tensor]:
        """Positions that do not count padding, for a family whose models do not find theirs alone."""
        first = self.family.first_position
        return {} if first is None else {"position_ids": (mask_NT.cumsum(-1) - 1).clamp(min=0) + first}

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    @contextmanager
    def _reading(self, inputs: Mapping[str, Tensor]) -> Iterator[None]:
        """Where the model runs: inputs of its own processor that it cannot read are a sentence.

        Raises:
            AegisError: that sentence.
        """
        try:
            yield
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except (ValueError, TypeError, AttributeError, IndexError, StopIteration, RuntimeError) as error:
            if _OF_THE_MACHINE.search(str(error)):
                raise
            if "pixel_values" not in inputs:
                raise AegisError(
                    f"{self.name} cannot read a text without a picture ({one_line(error)}): ask it about pictures."
                ) from error
            raise AegisError(
                f"{self.name} cannot read what its own processor makes of a picture and a text ({one_line(error)}): "
                f"{OTHER_PROCESSOR}."
            ) from error

    @contextmanager
    def recorded_layers(self) -> Iterator[list[Tensor]]:
        """The outputs of every decoder layer, one after the other, of what the model reads inside the block."""
        hidden_states: list[Tensor] = []
        caller = threading.get_ident()

        def record(_module: nn.Module, _inputs: Any, output: Tensor | tuple[Tensor, ...]) -> None:
            if threading.get_ident() == caller:  # not what another thread sends through the same layers
                hidden_states.append(output if isinstance(output, Tensor) else output[0])

        handles = [layer.register_forward_hook(record) for layer in self.decoder_layers]
        try:
            yield hidden_states
        finally:
            for handle in handles:
                handle.remove()


def _as_word(model: "PreTrainedModel", _projector: nn.Module, _inputs: Any, output: Any) -> Any:
    """A forward hook: what the projector made of an image gets the words' precision.

    It stands among them, and SmolVLM does not mix the two that an autocast leaves.
    """
    return output.to(model.get_input_embeddings().weight.dtype) if isinstance(output, Tensor) else output
