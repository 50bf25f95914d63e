"""The sizes of a small VLM: flags of `aegis-pretrain`, which is asked for them before torch is imported."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SmallVLMSize:
    """Sizes of a small VLM. `image_size` and `patch_size` in pixels: (image_size / patch_size)^2 tokens a camera."""

    image_size: int = 96
    patch_size: int = 16
    vision_layers: int = 3
    vision_width: int = 128
    text_layers: int = 4
    text_width: int = 128
    heads: int = 4

    @property
    def image_tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2
