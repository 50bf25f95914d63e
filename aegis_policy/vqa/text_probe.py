"""Running text read by the backbone while it trains: how far has what it would say moved since the first reading?"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aegis_policy.support import ranks
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vqa.texts import read_paragraphs, text_change, text_file

if TYPE_CHECKING:
    from aegis_policy.configuration_aegis import AegisConfig
    from aegis_policy.protections import Protection


class TextProbe:
    """Reads the same paragraphs every `config.vqa_probe_freq` steps; the ranks share them.

    The first reading is kept as what the language model's head was given, one vector a token: the head never trains, so
    it says again what it said then (but for entries that `knowledge_insulation` reserves).

    Raises:
        AegisError: the file holds no paragraph.
    """

    first: float | None = None
    """It asks nothing, so there is no accuracy; as of a `VQAProbe`."""
    last: float | None = None

    def __init__(self, config: "AegisConfig") -> None:
        self._every = config.vqa_probe_freq
        file = text_file(config.vqa_probe_data, "--policy.vqa_probe_data=")
        assert file is not None
        self._paragraphs = read_paragraphs(file, config.vqa_probe_samples)
        self._before_TD: dict[int, Tensor] = {}
        self._figures: dict[str, float] = {}

    def __len__(self) -> int:
        """How many paragraphs it reads."""
        return len(self._paragraphs)

    def due(self, step: int) -> bool:
        """Whether `figures` of this step, from 0, are going to be found anew."""
        return not self._figures or step % self._every == 0

    def figures(self, vlm: VLMBackbone, protection: "Protection", step: int) -> dict[str, float]:
        """What the last reading found; the first call, and one in so many steps, reads.

        Args:
            vlm: reads.
            protection: of no account: running text has no answers whose gradient it could be asked about.
            step: of the training, from 0.
        """
        if self.due(step):
            self._figures = self._read(vlm)
        return self._figures

    def _read(self, vlm: VLMBackbone) -> dict[str, float]:
        sums = torch.zeros(3)
        for number in range(len(self))[ranks.index() :: ranks.count()]:
            reading = vlm.read(self._paragraphs[number], self._before_TD.get(number))
            self._before_TD.setdefault(number, reading.features_TD.cpu())
            change = text_change(reading.logits_STV[0], reading.logits_STV[-1], reading.tokens_T)
            sums += torch.stack([change.kl_T.sum(), change.agrees_T.sum(), torch.tensor(len(change.kl_T))])
        kl, agreement, tokens = ranks.mean(sums.to(vlm.device)).tolist()
        return {"text_kl": kl / max(tokens, 1e-9), "text_agreement": agreement / max(tokens, 1e-9)}
