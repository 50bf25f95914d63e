"""Which directions should an anchor hold? Every rule tried on the same covariances, then trained and measured.

    python benchmarks/anchor_rules.py --ablate.vlm=embedded --ablate.output_dir=outputs/rules

The pretrained model reads questions with its own answers once, and running text if there is any; of every linear
layer's inputs the whole covariance is kept, and each rule of `RULES` chooses directions from it. What a rule chose is
an anchor's file; the trainings, which hold all that their file holds, are those of `aegis-ablate`, on validation data.
With `--anchor=FILE` nothing is read: rules of questions choose from the directions that this anchor keeps.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import batched
from pathlib import Path
from statistics import mean, median

import torch
from real_vlm.covariances import Covariances, WeightedCovariances
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from aegis_eval.commands.ablate import AblateConfig
from aegis_eval.commands.work.ablate import ablate
from aegis_eval.experiments.variants import ANCHORS, VARIANTS, Variant
from aegis_policy.anchors.answers import fisher_passes, with_answers
from aegis_policy.isolation import Anchor, LinearFactors, Spectrum
from aegis_policy.support import cli
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import atomic_write
from aegis_policy.support.json_files import write_json
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vqa.examples import load_vqa
from aegis_policy.vqa.texts import read_paragraphs

Values = Tensor
"""Eigenvalues of a layer's inputs, descending, (D,)."""


def share(values: Values, part: float) -> int:
    """A share of the directions, whatever their energy."""
    return round(part * len(values))


def energy(values: Values, part: float) -> int:
    """The directions that hold a share of the energy."""
    return int((values.cumsum(0) < part * values.sum()).sum()) + 1


def rest_energy(values: Values, part: float) -> int:
    """Those that dominate (twice the next one), and as many as carry a share of the energy of what is left."""
    ratios = values[:-1] / values[1:].clamp(min=1e-30)
    first = ratios[: max(len(values) // 20, 1)] > 2
    dominating = int(first.nonzero()[-1]) + 1 if first.any() else 0
    return dominating + energy(values[dominating:], part)


def above_tail(values: Values, factor: float) -> int:
    """Those that are so many times as strong as the mean of the weaker half."""
    return int((values > factor * values[len(values) // 2 :].mean()).sum())


@dataclass(frozen=True)
class Rule:
    """How many directions of each layer, and of which covariances.

    Attributes:
        count: of a layer's eigenvalues.
        side: of which covariances: `raw`, of questions with their answers; `text`, of running text; `both`, of either,
            a token counting alike; `unit`, of questions with rows at length one; `fisher`, of questions with rows
            weighted by the Fisher information of the layer's output there.
        narrow: a layer that is wider than the residual stream gets as many as one of its width would.
    """

    count: Callable[[Values], int]
    side: str = "raw"
    narrow: bool = False


RULES: dict[str, Rule] = {
    **{f"share {part}": Rule(partial(share, part=part)) for part in (0.02, 0.03, 0.05, 0.1, 0.17, 0.25)},
    **{
        f"{side} share {part}": Rule(partial(share, part=part), side)
        for side in ("unit", "fisher", "text", "both")
        for part in (0.02, 0.05, 0.1, 0.17)
    },
    **{
        f"narrow share {part}": Rule(partial(share, part=part), narrow=True)
        for part in (0.1, 0.17, 0.25, 0.35)
    },
    **{f"energy {part}": Rule(partial(energy, part=part)) for part in (0.9, 0.99)},
    **{f"unit energy {part}": Rule(partial(energy, part=part), side="unit") for part in (0.9,)},
    **{f"rest energy {part}": Rule(partial(rest_energy, part=part)) for part in (0.6, 0.7, 0.8)},
    **{f"above tail {factor}": Rule(partial(above_tail, factor=factor)) for factor in (30, 100)},
}

_OF_TEXT = ("text", "both")
"""Sides that running text is part of."""


@dataclass
class RulesConfig:
    """Flags.

    Attributes:
        ablate: flags of `aegis-ablate`, but for its variants.
        rules: of `RULES`, by default those of questions alone.
        beside: further variants of `aegis-ablate`.
        vqa: the questions that the model reads.
        samples: how many.
        texts: a file of paragraphs that it reads too, as many at most; rules of `text` and `both` need one.
        anchor: one of this VLM, made with a `--share` that no rule asks more than, to choose from instead.
    """

    ablate: AblateConfig = field(default_factory=lambda: AblateConfig(split="val", seeds=1))
    rules: list[str] = field(
        default_factory=lambda: [name for name, rule in RULES.items() if rule.side not in _OF_TEXT]
    )
    beside: list[str] = field(default_factory=list)
    vqa: str = "tabletop"
    samples: int = 1_000
    texts: Path | None = None
    anchor: Path | None = None


def main() -> None:
    """Entry point."""
    cli.run(RulesConfig, try_rules)


def try_rules(config: RulesConfig) -> None:
    """Make the anchors, then train and measure."""
    if unknown := [name for name in config.rules if name not in RULES]:
        raise AegisError(f"--rules: {unknown[0]} is unknown; there are: {', '.join(RULES)}.")
    of_text = [name for name in config.rules if RULES[name].side in _OF_TEXT]
    if of_text and config.texts is None:
        raise AegisError(f"--rules: {of_text[0]} is of running text: name some with --texts=FILE.")
    root = config.ablate.output_dir.absolute().with_name(f"{config.ablate.output_dir.name}-anchors")
    vlm = VLMBackbone.from_pretrained(config.ablate.vlm).eval()
    kept = root / "spectra.safetensors"
    about = {"vlm": vlm.name, "fingerprint": vlm.fingerprint(), "samples": str(config.samples)}
    if config.anchor is not None:
        given = Anchor.load(config.anchor)
        kept, spectra, about = config.anchor, _spectra_of(given), given.metadata
    else:
        spectra = _spectra(config, vlm, kept)
    sizes = {}
    for name in config.rules:
        rule, anchor = RULES[name], str(root / name.replace(" ", "-"))
        side = rule.side
        values = {
            layer.removeprefix(f"{side}/values/"): found
            for layer, found in spectra.items()
            if layer.startswith(f"{side}/values/")
        }
        if not values:
            raise AegisError(f"{kept} holds nothing that {name} chooses from: leave it out, or make it anew.")
        stream = vlm.hidden_size if rule.narrow else None
        chosen = {layer: min(max(rule.count(each[:stream]), 1), len(each)) for layer, each in values.items()}
        _write_anchor(Path(f"{anchor}.safetensors"), spectra, side, chosen, about)
        parts = [count / len(spectra[f"{side}/values/{layer}"]) for layer, count in chosen.items()]
        sizes[name] = {"least": min(parts), "median": median(parts), "mean": mean(parts), "most": max(parts)}
        ANCHORS[anchor] = ()
        VARIANTS[name] = Variant(("--policy.protection=aegis", "--policy.anchor_share=1"), anchor)
    write_json(root / "directions.json", sizes)
    print("\n".join(f"{name}: {size}" for name, size in sizes.items()))
    ablate(replace(config.ablate, variants=[*config.rules, *config.beside]))


def _spectra(config: RulesConfig, vlm: VLMBackbone, path: Path) -> dict[str, Tensor]:
    """`raw/values/LAYER`, `raw/vectors/LAYER` and the same of the other sides, eigenpairs descending."""
    if path.is_file():
        return load_file(path)
    prefix = vlm.family.decoder_layers
    layers = {name: layer for name, layer in vlm.linear_layers.items() if name.startswith(prefix)}
    covariances = Covariances(layers, units=True)
    weighted = WeightedCovariances(layers)
    examples = load_vqa(config.vqa, "--vqa", count=config.samples)
    for number, batch in enumerate(
        tqdm(batched(examples, 32), total=-(-len(examples) // 32), desc="reading")
    ):
        answers = vlm.answer([each.image for each in batch], [each.question for each in batch])
        inputs = with_answers(vlm, batch, answers)
        inputs["pixel_values"].requires_grad_()  # so that gradients pass through every layer
        with covariances.collect(inputs["attention_mask"].bool()), weighted.collect():
            logits, passes = fisher_passes(vlm, inputs, [0, number])
        for cotangent in passes:
            torch.autograd.grad(logits, inputs["pixel_values"], cotangent, retain_graph=True)
    sides = {"raw": covariances.raw, "unit": covariances.unit, "fisher": weighted.sums}
    if config.texts is not None:
        reading = Covariances(layers)
        with torch.no_grad(), reading.collect():
            for paragraph in tqdm(read_paragraphs(config.texts, config.samples), desc="texts"):
                vlm.encode(vlm.text_inputs(paragraph))
        sides |= {"text": reading.raw, "both": _added(covariances.raw, reading.raw)}
    found = {}
    for side, sums in sides.items():
        shared: dict[int, tuple[Tensor, Tensor]] = {}
        for name, covariance in tqdm(sums.items(), desc=f"{side} eigenvectors"):
            if id(covariance) not in shared:
                values, vectors = torch.linalg.eigh(covariance)
                shared[id(covariance)] = values.flip(0).clamp(min=0).float(), vectors.flip(1).half()
            found[f"{side}/values/{name}"] = shared[id(covariance)][0].clone()
            found[f"{side}/vectors/{name}"] = shared[id(covariance)][1].contiguous().clone()
    with atomic_write(path) as beside:
        save_file(found, beside)
    return found


def _spectra_of(anchor: Anchor) -> dict[str, Tensor]:
    """What `_spectra` returns of questions, from an anchor; what it did not keep counts as so many equal directions."""
    found = {}
    for name, factors in anchor.factors.items():
        values_K, vectors_DK, total = factors.inputs
        left = len(vectors_DK) - len(values_K)
        rest = (total - values_K.sum()).clamp(min=0) / max(left, 1)
        found[f"raw/values/{name}"] = torch.cat([values_K, rest.expand(left)])
        found[f"raw/vectors/{name}"] = vectors_DK
    return found


def _added(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The covariances of two readings added; layers that share one go on sharing."""
    sums: dict[int, Tensor] = {}
    for name, covariance in some.items():
        if id(covariance) not in sums:
            sums[id(covariance)] = covariance + others[name]
    return {name: sums[id(covariance)] for name, covariance in some.items()}


def _write_anchor(
    path: Path, spectra: Mapping[str, Tensor], side: str, chosen: Mapping[str, int], about: dict[str, str]
) -> None:
    if path.is_file():
        return
    factors = {}
    for layer, count in chosen.items():
        if count > (there := spectra[f"{side}/vectors/{layer}"].shape[1]):
            raise AegisError(
                f"{path.stem} takes {count} directions of {layer}, and the anchor keeps {there}: make it with a larger "
                "aegis-anchor --share."
            )
        values = spectra[f"{side}/values/{layer}"][:count].clamp(min=1e-12)
        vectors = spectra[f"{side}/vectors/{layer}"][:, :count]
        factors[layer] = LinearFactors(Spectrum(values, vectors, values.sum()))
    path.parent.mkdir(parents=True, exist_ok=True)
    Anchor(factors=factors, metadata={**about, "source": path.stem}).save(path)


if __name__ == "__main__":
    main()
