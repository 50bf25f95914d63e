"""What a flag says about where questions come from: names, places, and several of them joined by `+`.

Wherever two readings are possible, the one that names something that exists is meant.
"""

from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from aegis_policy.support.files import exists

ENTRY_POINTS = "aegis_policy.vqa"


def offered() -> dict[str, EntryPoint]:
    """The sources that installed packages offer, by name."""
    return {
        point.name: point for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda each: each.name)
    }


def expanded(place: str) -> str:
    """A place with `~` for the home folder, which a shell leaves alone behind a flag's `=`; not where it exists."""
    if not place.startswith("~") or exists(place):
        return place
    try:
        return str(Path(place).expanduser())
    except RuntimeError:  # nobody has that home
        return place


def parse_source(source: str, names: Collection[str]) -> tuple[str | None, str]:
    """The name of an offered source, or None, and a place, which may be empty.

    Args:
        source: NAME, NAME:PLACE or PLACE. A folder that is called like a name is meant by `./NAME`.
        names: of the offered sources.
    """
    name, colon, place = source.partition(":")
    if name in names and not (colon and exists(source)):
        return name, expanded(place)
    return None, expanded(source)


def split_sources(text: str) -> list[str]:
    """What `+` joins; the longest pieces that exist are taken whole, whatever their names hold."""
    names, pieces, found = offered(), text.split("+"), []
    while pieces:
        lengths = range(len(pieces), 1, -1)
        length = next((each for each in lengths if _exists("+".join(pieces[:each]), names)), 1)
        found.append("+".join(pieces[:length]))
        pieces = pieces[length:]
    return found


def _exists(source: str, names: Collection[str]) -> bool:
    place = parse_source(source, names)[1]
    return place != "" and exists(place)
