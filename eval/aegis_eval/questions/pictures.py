"""Pictures of questions: decoded as the `datasets` library decodes them."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from aegis_eval.questions.records import Picture
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import is_file


def decode(picture: Picture) -> NDArray[np.uint8]:
    """(H, W, 3), upright.

    Raises:
        ValueError: it is missing, or no picture with 8 bits a channel.
    """
    try:
        opened = Image.open(picture) if isinstance(picture, Path) else picture()
        with opened as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"its pixels are {image.mode}: save it with 8 bits a channel")
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:  # from Pillow and `datasets`, anything
        raise ValueError(str(error) or type(error).__name__) from error


def require_files(pictures: Iterable[tuple[Picture | None, str]]) -> None:
    """Refuse pictures, each with the origin of a question about it, whose files are missing.

    Raises:
        AegisError: with how many, and the first.
    """
    files = {picture: origin for picture, origin in pictures if isinstance(picture, Path)}
    if missing := sorted(str(file) for file in files if not is_file(file)):
        raise AegisError(
            f"{len(missing)} of {len(files)} images are missing, {' '.join(missing[0].split())} first "
            f"({files[Path(missing[0])]}): complete them."
        )
