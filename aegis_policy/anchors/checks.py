"""Whether a file is an anchor of a VLM and serves a protection: asked when a training starts, and by `aegis-doctor`."""

from pathlib import Path
from typing import Protocol

from aegis_policy.isolation import Anchor, AnchorError
from aegis_policy.support.finding import Finding
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.fingerprint import same_weights


class Needs(Protocol):
    """A protection, as far as anchors are concerned."""

    def check_anchor(self, anchor: Anchor, vlm: VLMBackbone) -> None:
        """Make sure that `anchor` holds what protects what learns in `vlm`.

        Raises:
            AnchorError: it does not.
        """


def read_anchor(path: Path, vlm: VLMBackbone, fingerprint: str | None, protection: Needs) -> Anchor:
    """The anchor in a file.

    Args:
        path: of the file.
        vlm: what it has to be the anchor of, what learns marked.
        fingerprint: of the VLM's pretrained weights, if known.
        protection: what it has to serve.

    Raises:
        AnchorError: it is none of this VLM, or does not serve the protection; the mend names a command.
    """
    try:
        anchor = Anchor.load(path)
        made_from = anchor.metadata.get("fingerprint")
        if not same_weights(made_from, fingerprint):
            raise AnchorError(
                f"The anchor of {anchor.metadata.get('vlm', 'an unnamed model')} was made from weights {made_from} but "
                f"the model has {fingerprint}",
                "name the anchor of this model, or rebuild it from the pretrained model",
            )
        anchor.check(vlm.num_layers, vlm.hidden_size)
    except AnchorError as error:
        raise AnchorError(error.fault, f"{error.mend}, with aegis-anchor --vlm={vlm.name}") from error
    protection.check_anchor(anchor, vlm)
    return anchor


def refusal(named: str, error: AnchorError) -> Finding:
    """What is said of an anchor that cannot be used; `named` is the flag or the checkpoint that named it."""
    return Finding("error", f"{named} cannot be used: {error.fault}", f"{error.mend}.")
