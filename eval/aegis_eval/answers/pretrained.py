"""What the pretrained VLM said, from an `aegis-vqa` that asked it before, checked to be what is needed."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from aegis_eval.answers.asking import Asking
from aegis_eval.questions.sample import fingerprint
from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import read_json, read_jsonl
from aegis_policy.vlm.fingerprint import same_weights

if TYPE_CHECKING:
    from aegis_eval.checkpoints import Origin


@dataclass(frozen=True)
class PretrainedAnswers:
    """The answers of the pretrained VLM of this name, in the order of the questions."""

    name: str
    answers: list[str]

    @classmethod
    def read(
        cls,
        folder: Path,
        asking: Asking,
        origin: "Origin | None",
        pictures: str | None,
    ) -> Self:
        """Read `--pretrained_answers`.

        Args:
            folder: the `--output_dir` of an `aegis-vqa --vlm=`.
            asking: what is asked now, and how; there it must have been the same.
            origin: the VLM of the policy that is asked now, which must be the one that was asked.
            pictures: hash of those that are asked about now; where either is not known, they are not compared.

        Raises:
            AegisError: the folder is no such output, or of other questions or pictures, another model or other flags.
        """
        flag = f"--pretrained_answers={folder}"
        try:
            results = read_json(folder / "results.json")
            given = {line["id"]: line["given"] for line in read_jsonl(folder / "samples.jsonl")}
            questions = results["provenance"]["benchmark_fingerprint"]
            seen = results["provenance"].get("pictures_fingerprint")
            flags = results["provenance"]["config"]
            name, asked = results["model"], results["vlm_fingerprint"]
            vlm = flags["vlm"]
            before = {option: flags[option] for option in ("batch_size", "max_new_tokens")}
            if not all(isinstance(answer, str) for answer in given.values()):
                raise TypeError("an answer in samples.jsonl is no text")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AegisError(
                f"{flag} is not what aegis-vqa writes ({type(error).__name__}: {error}): name its --output_dir."
            ) from error
        if vlm is None:
            raise AegisError(
                f"{flag} holds the answers of a policy: ask the VLM it was made from, with --vlm."
            )
        for option, value in before.items():
            now = getattr(asking, option)
            if value != now:
                raise AegisError(
                    f"{flag} was asked with --{option}={value}, not {now}, on which answers may depend: give that."
                )
        if questions != fingerprint(asking.samples):
            raise AegisError(
                f"{flag} answers other questions: benchmark, split, samples and seed must be the same."
            )
        if None not in (seen, pictures) and seen != pictures:
            raise AegisError(
                f"{flag} answers the same questions about other pictures: name answers about these, or leave it out."
            )
        if origin is not None and not same_weights(asked, origin.vlm_fingerprint):
            raise AegisError(
                f"{flag} holds the answers of {name}, which is not the VLM that this policy was made from "
                f"({origin.vlm}): ask that one."
            )
        if lacking := [sample.id for sample in asking.samples if sample.id not in given]:
            raise AegisError(
                f"{flag}/samples.jsonl lacks {len(lacking)} of {len(asking.samples)} answers: ask the VLM again."
            )
        return cls(name, [given[sample.id] for sample in asking.samples])
