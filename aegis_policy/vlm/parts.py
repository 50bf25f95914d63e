"""The parts of a VLM by what they are, wherever its family keeps them."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.families import Family, family_of
from aegis_policy.vlm.fingerprint import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class VLMParts:
    """A transformers image-text-to-text model of a known family, and the parts that a protection is about.

    Attributes:
        model: the model itself.
        name: how errors call it.
        flag: of `aegis-anchor`, that takes this name.
        family: where its parts are.
        depth: how many of its decoder layers a policy runs, the first ones.
    """

    model: "PreTrainedModel"
    name: str
    flag: str
    family: Family
    depth: int

    def __init__(self, model: "PreTrainedModel", name: str, flag: str = "--vlm") -> None:
        """Look the parts up.

        Raises:
            AegisError: the model lacks one.
        """
        family = family_of(model.config.model_type)
        assert family is not None, "whoever loads a model refuses what is unknown"
        for path in (family.decoder_layers, family.vision_tower, family.projector):
            try:
                model.get_submodule(path)
            except AttributeError as error:
                raise AegisError(
                    f"{name} has no part `{path}`, where models of type `{model.config.model_type}` should keep it: "
                    "mend the paths of its Family."
                ) from error
        self.model = model
        self.name = name
        self.flag = flag
        self.family = family
        self.depth = self.num_layers

    @property
    def decoder_layers(self) -> nn.ModuleList:
        layers = self._part(self.family.decoder_layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def encoding_layers(self) -> nn.ModuleList:
        """The decoder layers that a policy runs."""
        return self.decoder_layers[: self.depth]

    @property
    def vision_tower(self) -> nn.Module:
        return self._part(self.family.vision_tower)

    @property
    def projector(self) -> nn.Module:
        return self._part(self.family.projector)

    @property
    def linear_layers(self) -> dict[str, nn.Linear]:
        """Every linear layer of vision tower, projector and decoder layers, by its name in the model."""
        parts = [self.family.vision_tower, self.family.projector, self.family.decoder_layers]
        return {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and any(name == p or name.startswith(f"{p}.") for p in parts)
        }

    @property
    def hidden_size(self) -> int:
        return self.model.config.get_text_config().hidden_size

    @property
    def num_layers(self) -> int:
        return len(self.decoder_layers)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def fingerprint(self) -> str:
        """What tells its weights from others', in every precision; see `vlm.fingerprint`."""
        return fingerprint(self.model.config.model_type, self.decoder_layers, self.model)

    def _part(self, path: str) -> nn.Module:
        return self.model.get_submodule(path)
