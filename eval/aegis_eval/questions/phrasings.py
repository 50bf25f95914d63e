"""How the tabletop questions are worded; placeholders are filled by `aegis_eval.questions.templated`."""

import re
from collections.abc import Iterator, Sequence

COLOUR = (
    "what colour is the {shape}?",
    "what color is the {shape}?",
    "which colour does the {shape} have?",
    "tell me the colour of the {shape}",
)
SHAPE = (
    "what shape is the {color} object?",
    "which shape does the {color} object have?",
    "what kind of object is the {color} one?",
    "tell me the shape of the {color} object",
)
COUNT = (
    "how many {plural} are there?",
    "how many {plural} are on the table?",
    "how many {plural} do you see?",
    "count the {plural}",
)
EXISTENCE = (
    "is there {a_name}?",
    "is there {a_name} on the table?",
    "do you see {a_name}?",
    "can you see {a_name}?",
)
RELATION_YES_NO = (
    "is the {name} {relation} the {other}?",
    "do you see the {name} {relation} the {other}?",
    "is it true that the {name} is {relation} the {other}?",
)
RELATION_CHOICE = {
    "u": (
        "is the {name} left or right of the {other}?",
        "on which side of the {other} is the {name}, left or right?",
        "left or right: where is the {name} relative to the {other}?",
    ),
    "v": (
        "is the {name} in front of or behind the {other}?",
        "where is the {name} relative to the {other}, in front or behind?",
        "in front or behind: where is the {name} relative to the {other}?",
    ),
}
RELATION_WHICH = (
    "which object is {relation} the {other}?",
    "what is {relation} the {other}?",
    "name the object {relation} the {other}",
)
RELATIONS = {"u": ("left of", "right of"), "v": ("behind", "in front of")}
SIDES = {"u": ("left", "right"), "v": ("behind", "front")}

COMPOSED_COLOUR = (
    "what colour is the {shape} {relation} the {other}?",
    "tell me the colour of the {shape} {relation} the {other}",
)
COMPOSED_SHAPE = (
    "what shape is the {color} object {relation} the {other}?",
    "tell me the shape of the {color} object {relation} the {other}",
)
COMPOSED_EXISTENCE = (
    "is there {a_thing} {relation} the {other}?",
    "can you see {a_thing} {relation} the {other}?",
)

EXTREMES = {
    ("u", -1): ("leftmost object", "object furthest to the left", "object on the far left"),
    ("u", 1): ("rightmost object", "object furthest to the right", "object on the far right"),
    ("v", 1): ("nearest object", "object nearest to the camera", "object closest to the front"),
    ("v", -1): ("farthest object", "object farthest from the camera", "object closest to the back"),
}
EXTREME_ASKS = {
    "name": ("what is the {extreme}?", "which one is the {extreme}?", "name the {extreme}"),
    "color": (
        "what colour is the {extreme}?",
        "what color is the {extreme}?",
        "tell me the colour of the {extreme}",
    ),
    "shape": (
        "what shape is the {extreme}?",
        "which shape does the {extreme} have?",
        "tell me the shape of the {extreme}",
    ),
}

WHERE = ("where is the {name}?", "find the {name}", "locate the {name}", "point to the {name}")
DETECTION_PROMPT = "detect objects"
CAPTION_PROMPTS = ("describe the scene", "what is on the table?", "what do you see?")


def templates() -> Iterator[str]:
    """Every phrasing that training uses, with its placeholders taken out."""
    groups: list[Sequence[str]] = [
        COLOUR,
        SHAPE,
        COUNT,
        EXISTENCE,
        RELATION_YES_NO,
        RELATION_WHICH,
        WHERE,
    ]
    groups += [*RELATION_CHOICE.values(), *RELATIONS.values(), *EXTREMES.values(), *EXTREME_ASKS.values()]
    groups += [CAPTION_PROMPTS, (DETECTION_PROMPT,)]
    for group in groups:
        for template in group:
            yield re.sub(r"\{\w+\}", " ", template)
