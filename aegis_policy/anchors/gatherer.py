"""What gathers one kind of statistics of a VLM, fed batch by batch: the base class of those in this package."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from aegis_policy.vqa.examples import VQAExample

Continue = Callable[[Tensor], None]
"""Called before each further token of the answers, with which of them go on: bool (N,)."""


class Gatherer:
    """One kind of statistics of a VLM.

    Attributes:
        needs_answers: whether it is about the model's own answers too.
    """

    needs_answers = True

    @contextmanager
    def watch(self, inputs: dict[str, Tensor]) -> Iterator[Continue]:
        """Be there while the model reads prepared inputs, and answers if they are questions."""
        yield lambda goes_on_N: None

    def answered(self, batch: Sequence[VQAExample], answers: Sequence[str], number: int) -> None:
        """Take in what the model answered to the batch of this number in the stream."""

    def gathered(self) -> dict[str, Any]:
        """The fields of an `Anchor` that hold the statistics.

        Raises:
            ValueError: there are none, or they are not finite.
        """
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """What an interrupted pass continues from."""
        raise NotImplementedError

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue where the gatherer that returned `state` was."""
        raise NotImplementedError
