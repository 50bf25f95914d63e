"""A few questions to the backbone while it trains: does it still answer, and where does the flow loss push it?"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aegis_policy.support import ranks
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vqa.examples import ANSWER_TOKENS, SENTENCE_TOKENS, load_vqa
from aegis_policy.vqa.loss import answer_loss
from aegis_policy.vqa.text_probe import TextProbe
from aegis_policy.vqa.texts import RUNNING, text_file

if TYPE_CHECKING:
    from aegis_policy.configuration_aegis import AegisConfig
    from aegis_policy.protections import Protection

_BATCH = 32


class VQAProbe:
    """Asks the same questions every `config.vqa_probe_freq` steps; the ranks share them.

    Raises:
        AegisError: the questions cannot be read or have no answers.
    """

    def __init__(self, config: "AegisConfig", vlm: VLMBackbone) -> None:
        self._every = config.vqa_probe_freq
        self._examples = ranks.first_alone(
            lambda: load_vqa(
                config.vqa_probe_data,
                "--policy.vqa_probe_data",
                split="val",
                count=config.vqa_probe_samples,
                with_answers=True,
                refuses=vlm.refuses,
            )
        )
        of_text = text_file(config.vqa_probe_data) is not None
        self._longest_answer = SENTENCE_TOKENS if of_text else ANSWER_TOKENS
        self._figures: dict[str, float] = {}
        self.first: float | None = None
        """Accuracy before the first step of training, None if there was no probe then; answers are scored as in
        `aegis-vqa`."""
        self.last: float | None = None

    def __len__(self) -> int:
        """How many questions it asks."""
        return len(self._examples)

    def due(self, step: int) -> bool:
        """Whether `figures` of this step, from 0, are going to be found anew."""
        return not self._figures or step % self._every == 0

    def figures(self, vlm: VLMBackbone, protection: "Protection", step: int) -> dict[str, float]:
        """What the last probe found; the first call, and one in so many steps, probes.

        Args:
            step: of the training, from 0: how many batches it has had.
        """
        if self.due(step):
            self.last = self._accuracy(vlm)
            self.first = self.last if step == 0 else self.first
            self._figures = {
                "vqa_accuracy": self.last,
                **protection.diagnose(lambda: self._loss(vlm)),
            }
        return self._figures

    def _accuracy(self, vlm: VLMBackbone) -> float:
        own = self._examples[ranks.index() :: ranks.count()]
        correct = 0.0
        for start in range(0, len(own), _BATCH):
            batch = own[start : start + _BATCH]
            given = vlm.answer(
                [each.image for each in batch], [each.question for each in batch], self._longest_answer
            )
            correct += sum(each.score(said) for said, each in zip(given, batch, strict=True))
        total = ranks.mean(torch.tensor(correct, device=vlm.device)) * ranks.count()
        return float(total) / len(self._examples)

    def _loss(self, vlm: VLMBackbone) -> Tensor:
        return answer_loss(vlm, self._examples[:_BATCH])


def probe_of(config: "AegisConfig", vlm: VLMBackbone) -> VQAProbe | TextProbe:
    """The probe that `config.vqa_probe_data` asks for: of questions, or of running text (`text:FILE.txt`).

    Raises:
        AegisError: what it names cannot be read.
    """
    file = text_file(config.vqa_probe_data, "--policy.vqa_probe_data=")
    return TextProbe(config) if file is not None and file.suffix == RUNNING else VQAProbe(config, vlm)
