"""What the pretrained VLM said, from an `aegis-vqa` that asked it before, checked to be what is needed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from aegis_eval.answers.asking import AskedWithImage
from aegis_eval.questions.tabletop import fingerprint
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.support.errors import AegisError


@dataclass(frozen=True)
class PretrainedAnswers:
    """The answers of the pretrained VLM of this name, in the order of the questions."""

    name: str
    answers: list[str]

    @classmethod
    def read(
        cls,
        folder: Path,
        samples: Sequence[AskedWithImage],
        policy_config: AegisConfig | None,
        *,
        batch_size: int,
        max_new_tokens: int,
    ) -> Self:
        """Read `--pretrained_answers`.

        Args:
            folder: the `--output_dir` of an `aegis-vqa --vlm=`.
            samples: the questions, which must be those that were asked there.
            policy_config: of the policy that is asked now, whose VLM must be the one that was asked.
            batch_size: and max_new_tokens, of the command that reads, on which answers may depend.

        Raises:
            AegisError: the folder is no such output, or of other questions, another model or other flags.
        """
        flag = f"--pretrained_answers={folder}"
        try:
            results = json.loads((folder / "results.json").read_text())
            lines = (folder / "samples.jsonl").read_text().splitlines()
            given = {line["id"]: line["given"] for line in map(json.loads, lines)}
            questions = results["provenance"]["benchmark_fingerprint"]
            flags = results["provenance"]["config"]
            name, asked = results["model"], results["vlm_fingerprint"]
            vlm = flags["vlm"]
            before = {option: flags[option] for option in ("batch_size", "max_new_tokens")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AegisError(
                f"{flag} is not what aegis-vqa writes ({type(error).__name__}: {error}): name its --output_dir."
            ) from error
        if vlm is None:
            raise AegisError(
                f"{flag} holds the answers of a policy: ask the VLM it was made from, with --vlm."
            )
        now = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
        for option, value in before.items():
            if value != now[option]:
                raise AegisError(
                    f"{flag} was asked with --{option}={value}, not {now[option]}, on which answers may depend."
                )
        if questions != fingerprint(samples):
            raise AegisError(
                f"{flag} answers other questions: benchmark, split, samples and seed must be the same."
            )
        if policy_config is not None and asked != policy_config.vlm_fingerprint:
            raise AegisError(
                f"{flag} holds the answers of {name}, which is not the VLM that this policy was made from "
                f"({policy_config.vlm}): ask that one."
            )
        if lacking := [sample.id for sample in samples if sample.id not in given]:
            raise AegisError(
                f"{flag}/samples.jsonl lacks {len(lacking)} of {len(samples)} answers: ask the VLM again."
            )
        return cls(name, [given[sample.id] for sample in samples])
