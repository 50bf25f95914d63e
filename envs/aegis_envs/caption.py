"""A sentence on a picture: what a policy was told, in a video of what it did."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_LARGEST, _SMALLEST = 16, 6
_MARGIN = 5
_PAPER, _INK = (255, 255, 255), (20, 20, 20)


def captioned(image_HW3: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """A copy of the picture whose upper edge is a band with `text`, as large as fits its width, down to 6 pixels."""
    picture = Image.fromarray(image_HW3)
    draw = ImageDraw.Draw(picture)
    font = next(
        (font for font in _fonts() if font.getlength(text) <= picture.width - 2 * _MARGIN), _fonts()[-1]
    )
    draw.rectangle((0, 0, picture.width, _LARGEST + 2 * _MARGIN), fill=_PAPER)
    draw.text((picture.width / 2, _LARGEST / 2 + _MARGIN), text, fill=_INK, font=font, anchor="mm")
    return np.asarray(picture)


@cache
def _fonts() -> list[ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    return [ImageFont.load_default(size) for size in range(_LARGEST, _SMALLEST - 1, -1)]
