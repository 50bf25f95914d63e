"""Whether a file is an anchor of a VLM and serves a protection: asked when a training starts, and by `aegis-doctor`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from aegis_policy.isolation import Anchor, AnchorError
from aegis_policy.support.errors import AegisError
from aegis_policy.support.finding import Finding
from aegis_policy.vlm.fingerprint import same_weights
from aegis_policy.vlm.parts import VLMParts

if TYPE_CHECKING:
    from aegis_policy.protections import Protection


def check_anchor(path: Path, vlm: VLMParts, protection: "Protection") -> Iterator[Finding]:
    """What a training with `--policy.anchor_path` would say of an anchor: it does the same one after the other.

    Args:
        path: of the file.
        vlm: the pretrained model; what learns is marked in it, and the protection begins with it.
        protection: as the training is configured.
    """
    fingerprint = vlm.fingerprint()
    protection.adapt(vlm)
    protection.set_trainable(vlm)
    try:
        anchor = read_anchor(path, vlm, fingerprint, protection)
    except AnchorError as error:
        yield refusal(f"--policy.anchor_path={path}", error)
        return
    about = anchor.metadata
    yield Finding(
        "ok", f"{path}: of {about.get('vlm')}, {about.get('samples')} samples of {about.get('source')}"
    )
    if protection.projects:
        try:
            protection.begin_training(vlm, protection.part_of(anchor), None)
        except AegisError as error:
            yield Finding("error", str(error))
            return
        for coverage in protection.coverages():
            yield from coverage.findings()


def read_anchor(path: Path, vlm: VLMParts, fingerprint: str | None, protection: "Protection") -> Anchor:
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
        raise AnchorError(error.fault, f"{error.mend}, with aegis-anchor {vlm.flag}={vlm.name}") from error
    protection.check_anchor(anchor, vlm)
    return anchor


def refusal(named: str, error: AnchorError) -> Finding:
    """What is said of an anchor that cannot be used; `named` is the flag or the checkpoint that named it."""
    return Finding("error", f"{named} cannot be used: {error.fault}", f"{error.mend}.")
