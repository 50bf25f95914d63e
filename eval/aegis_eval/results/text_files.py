"""What runs make of files without pictures: answers kept, and how far running text is read otherwise.

Of each run a mapping from the file's name to what `measured.text_answers` or `measured.running_text` found of it.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from aegis_eval.results.run_file import Json
from aegis_eval.statistics.resampling import Estimate, Resampling, bits, estimate

TEXT = "text-"
"""What the kinds of stages begin with that ask, or have read, a file without pictures."""
Texts = Mapping[str, Json]


def text_files(measured: Json) -> dict[str, Json]:
    """File -> what was found of it, of everything that was measured of a run."""
    return {kind.removeprefix(TEXT): found for kind, found in measured.items() if kind.startswith(TEXT)}


def retained(group: Sequence[Texts], seed: int = 0) -> dict[str, Estimate]:
    """Of each file of questions the share of the pretrained model's right answers that the runs still have, by number.

    Questions of one of its `scenes`, if it has some, belong together. Files of which the pretrained model knows hardly
    any are left out.
    """
    found = {}
    for name, first in group[0].items():
        if "correct" not in first:
            continue
        scenes = first.get("scenes", range(len(first["correct"])))
        questions = Resampling(len(group), groups_N=scenes, seed=seed)
        before, after = (
            questions.means(np.stack([bits(texts[name][key]) for texts in group]))
            for key in ("pretrained", "correct")
        )
        if before.all():  # in every draw, or some would divide by nothing
            found[name] = estimate(after / before)
    return found


def divergence(group: Sequence[Texts], seed: int = 0) -> dict[str, Estimate]:
    """Of each file of running text the KL to the pretrained model, nats a token."""
    found = {}
    for name, first in group[0].items():
        if "kl" in first:
            paragraphs = Resampling(len(group), count=len(first["kl"]), weights_N=first["tokens"], seed=seed)
            found[name] = estimate(paragraphs.means(np.array([texts[name]["kl"] for texts in group])))
    return found
