"""What is left of the last chunk of actions, for the one rollout that it was sampled for.

LeRobot's commands may run several rollouts in threads with one policy; whoever came second would be handed the first
one's actions. Nothing tells a policy which rollout asks, so that is refused.
"""

import threading
from collections import deque
from collections.abc import Callable

from torch import Tensor

from aegis_policy.support.errors import AegisError


class ActionQueue:
    """Actions (B, A) that are still to be carried out, by one thread between two calls of `begin`."""

    def __init__(self) -> None:
        self._actions: deque[Tensor] = deque()
        self._thread: int | None = None
        self._clashed: set[int] = set()

    def begin(self) -> None:
        """Begin a rollout, with nothing left of the last.

        Raises:
            AegisError: this thread and another that still runs asked in turns: what it begins now would end likewise.
        """
        caller = threading.get_ident()
        if caller in self._clashed and any(map(_is_alive, self._clashed - {caller})):
            raise _clash()
        self._actions, self._thread, self._clashed = deque(), None, self._clashed - {caller}

    def clear(self) -> None:
        """Drop what is left, in the middle of a rollout."""
        self._actions.clear()

    def next(self, batch_size: int, sample: Callable[[], Tensor]) -> Tensor:
        """The next action (B, A) of a batch of `batch_size`; `sample` gives B x steps of them where none is left.

        Raises:
            AegisError: another thread is in the middle of a rollout, or the actions are for another batch.
        """
        actions = self._actions  # another thread's `begin` puts a new one in its place while this one samples
        self._claim()
        if not actions:
            actions.extend(sample().unbind(dim=1))
        if len(actions[0]) != batch_size:
            raise AegisError(
                f"select_action got a batch of {batch_size}, in the middle of a chunk of actions for "
                f"{len(actions[0])}: call the policy's reset() before another rollout begins."
            )
        return actions.popleft()

    def _claim(self) -> None:
        caller, owner = threading.get_ident(), self._thread
        if owner not in (None, caller) and _is_alive(owner):
            self._clashed |= {owner, caller}
        if caller in self._clashed:
            raise _clash()
        self._thread = caller


def _is_alive(ident: int) -> bool:
    return any(thread.ident == ident for thread in threading.enumerate())


def _clash() -> AegisError:
    return AegisError(
        "Two threads asked one policy for actions in turns, and either might get the other's: evaluate with "
        "--env.max_parallel_tasks=1, and start the command once for each task to evaluate several at a time "
        "(in a program of your own: one policy for each thread, or predict_action_chunk, which keeps nothing)."
    )
