"""The model card of an embedded VLM: how it was made, what it scores, what it cannot do."""

import math
from collections.abc import Mapping
from typing import Any

from aegis_eval.answers.scoring import Scores, format_table
from aegis_eval.pretraining.batches import STANDARD_EVERY, STANDARD_TAIL

_CARD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
license: apache-2.0
tags: [paligemma, aegis, robotics]
---

# Tabletop VLM

A PaliGemma-2-shaped vision-language model of {parameters:.2f} million parameters (SigLIP vision tower,
linear projector, Gemma 2 decoder), trained from scratch on questions about rendered scenes of the AEGIS
tabletop. It is the default backbone of `--policy.type=aegis`, so that the package can be tried without a download, and
a plain transformers directory.

## What it scores

Exact match on the `{split}` split of `--benchmark=tabletop` ({samples} questions about scenes that training never saw),
through `generate`, with 95 % intervals; *blind* is the majority answer of the training questions.

```
{table}
```

The same, about front-camera frames of the scripted expert's episodes (`--benchmark=tabletop_robot`, {robot_samples}
questions):

```
{robot_table}
```

And questions that join two attributes and a relation ("what colour is the cube left of the green sphere?"), a form
that no training question has (`--benchmark=tabletop_composed`, {composed_samples} questions):

```
{composed_table}
```

## How it was made

```
{command}
```

{images} rendered scenes, {vision_steps} steps in which image tokens learn to name what lies under them, then
{steps} steps of cross-entropy on the answers (a long one weighing as much as a short one) of {batch_size} images each:
{questions} questions and a detection caption an image, or one question alone in one step of {standard_every} and the
last {standard_tail:.0%}. Muon updates the matrices inside the layers, AdamW the rest. The training took
{minutes} minutes on {hardware}; seed {seed}.

| setting | value |
|---|---|
{settings}

## What it is asked

`answer en QUESTION` about the front camera's image, as any PaliGemma: colour, shape, count, existence, spatial relation
and extremes, and `detect objects`. Words it does not know are spelled out letter by letter.

## What it cannot do

It has seen one table. It knows eight colours, three shapes, zones and a bowl, in 96-pixel images of one camera, and
no other words of the world. It has never seen the wrist camera, and was never asked about the arm. Where a table above
shows an accuracy near the blind baseline, it cannot answer that kind of question.

`anchor.safetensors` is what `aegis-anchor` gathers over {anchor_samples} training questions, for
`--policy.protection=aegis`: moments of every decoder layer's output, and covariances of every linear layer.
"""


def model_card(
    scores: Mapping[str, Scores],
    *,
    split: str,
    parameters: int,
    settings: Mapping[str, Any],
    seconds: float,
    provenance: Mapping[str, Any],
    anchor_samples: int,
) -> str:
    """Markdown with the YAML header that the hub reads.

    Args:
        scores: by benchmark.
        split: the scores' split.
        parameters: of the model.
        settings: flags of `aegis-pretrain`.
        seconds: of training.
        provenance: command and hardware.
        anchor_samples: questions behind the anchor.
    """
    hardware = provenance["hardware"]
    machine = hardware["gpu"] or f"{hardware['cores']} cores of {hardware['processor']}"
    return _CARD.format(
        parameters=parameters / 1e6,
        split=split,
        samples=scores["tabletop"].overall.n,
        table=format_table(scores["tabletop"]),
        robot_samples=scores["tabletop_robot"].overall.n,
        robot_table=format_table(scores["tabletop_robot"]),
        composed_samples=scores["tabletop_composed"].overall.n,
        composed_table=format_table(scores["tabletop_composed"]),
        command=provenance["command"],
        images=settings["scenes"],
        minutes=math.ceil(seconds / 60),
        hardware=machine,
        settings="\n".join(f"| `{key}` | {value} |" for key, value in settings.items()),
        anchor_samples=anchor_samples,
        standard_every=STANDARD_EVERY,
        standard_tail=STANDARD_TAIL,
        **{key: settings[key] for key in ("vision_steps", "steps", "batch_size", "questions", "seed")},
    )
