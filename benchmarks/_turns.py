"""How sides that are compared take turns, so that a busy machine disturbs all alike."""

from collections.abc import Callable, Mapping


def take_turns[T](actions: Mapping[str, Callable[[], T]], rounds: int, warm_up: int) -> list[dict[str, T]]:
    """What every action returned in each round, in an order that moves on by one from round to round.

    Args:
        actions: one a side.
        rounds: how many are kept.
        warm_up: how many go before them.
    """
    names = list(actions)
    found = []
    for index in range(warm_up + rounds):
        first = index % len(names)
        found.append({name: actions[name]() for name in names[first:] + names[:first]})
    return found[warm_up:]
