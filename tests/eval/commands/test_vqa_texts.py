"""`aegis-vqa --benchmark=text:FILE`: questions without a picture, and running text that two models read."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from aegis_eval.checkpoints import PolicySource
from aegis_eval.commands.vqa import VqaConfig
from aegis_eval.commands.work.vqa import evaluate
from aegis_eval.pages.report import write_report
from aegis_eval.results.run import RunSummary, find_runs
from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import read_json, read_jsonl
from aegis_policy.vlm.backbone import VLMBackbone

PROSE = "the red cube is on the table\n\npush the green sphere to the left of the blue zone\n\nup and down\n"


@pytest.fixture(scope="module")
def other_vlm(tiny_vlm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny VLM, its weights moved."""
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in (*vlm.decoder_layers.parameters(), vlm.model.get_output_embeddings().weight):
            parameter.add_(0.2 * torch.randn_like(parameter))
    vlm.save_pretrained(folder := tmp_path_factory.mktemp("vlm") / "other")
    return folder


@pytest.fixture
def own_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy, whose card gets a line of what is asked here."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "pretrained_model"))


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    (tmp_path / "prose.txt").write_text(PROSE)
    return tmp_path / "prose.txt"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    lines = [{"question": f"what is {n} and {n}?", "answers": [str(2 * n), "cube"]} for n in range(6)]
    (tmp_path / "general.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "general.jsonl"


def _log_probabilities(vlm: VLMBackbone, text: str) -> tuple[np.ndarray, np.ndarray]:
    """What transformers says behind each token of a text but the last, and the tokens that come, in float64."""
    processor = vlm.processor(text=[f"<image>{text}"], images=[np.zeros((8, 8, 3), np.uint8)])
    ids = [token for token in processor["input_ids"][0] if token != vlm.model.config.image_token_id]
    ids_1T = torch.tensor([ids])
    with torch.no_grad():
        logits = vlm.model(input_ids=ids_1T, token_type_ids=torch.ones_like(ids_1T)).logits[0, :-1].double()
    return torch.log_softmax(logits, -1).numpy(), np.array(ids[1:])


def test_running_text_is_compared_token_by_token(
    tiny_vlm_dir: Path, other_vlm: Path, prose: Path, tmp_path: Path
) -> None:
    out = evaluate(
        VqaConfig(
            vlm=str(other_vlm),
            pretrained=str(tiny_vlm_dir),
            benchmark=f"text:{prose}",
            output_dir=tmp_path / "out",
        )
    )
    results, lines = read_json(out / "results.json"), read_jsonl(out / "paragraphs.jsonl")
    kl, agrees, nll, before = [], [], [], []
    models = [VLMBackbone.from_pretrained(folder).eval() for folder in (other_vlm, tiny_vlm_dir)]
    for text in PROSE.strip().split("\n\n"):
        (model, came), (reference, _) = (_log_probabilities(each, text) for each in models)
        kl += [float((np.exp(q) * (q - p)).sum()) for p, q in zip(model, reference, strict=True)]
        agrees += [float(p.argmax() == q.argmax()) for p, q in zip(model, reference, strict=True)]
        nll += [-p[token] for p, token in zip(model, came, strict=True)]
        before += [-q[token] for q, token in zip(reference, came, strict=True)]
    expected = {"kl": np.mean(kl), "agreement": np.mean(agrees), "perplexity": math.exp(np.mean(nll))}
    for name, value in {**expected, "pretrained_perplexity": math.exp(np.mean(before))}.items():
        assert results[name]["value"] == pytest.approx(value, rel=1e-4), name
        assert results[name]["ci"][0] <= results[name]["value"] <= results[name]["ci"][1]
    assert results["kl"]["value"] > 0.01
    assert (results["n"], results["tokens"], results["benchmark"]) == (3, len(kl), "text:prose.txt")
    assert [line["tokens"] for line in lines] and sum(line["tokens"] for line in lines) == len(kl)
    assert sum(line["kl"] * line["tokens"] for line in lines) == pytest.approx(sum(kl), rel=1e-4)
    assert results["provenance"]["benchmark_fingerprint"]


def test_a_model_reads_as_itself_and_without_a_pretrained_one_has_a_perplexity(
    tiny_vlm_dir: Path, own_checkpoint: Path, prose: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = VqaConfig(policy=PolicySource(str(own_checkpoint)), benchmark=f"text:{prose}")
    checkpoint.output_dir = tmp_path / "checkpoint"
    compared = read_json(evaluate(checkpoint) / "results.json")
    assert compared["kl"]["value"] == pytest.approx(0, abs=1e-6) and compared["agreement"]["value"] == 1
    assert "KL to the pretrained model" in capsys.readouterr().out
    alone = VqaConfig(
        vlm=str(tiny_vlm_dir), benchmark=f"text:{prose}", output_dir=tmp_path / "alone", samples=2
    )
    results = read_json(evaluate(alone) / "results.json")
    assert results["kl"] is None and results["perplexity"]["value"] > 1 and results["n"] == 2


def test_questions_without_a_picture_are_scored_against_the_pretrained_model(
    own_checkpoint: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(_vlm: VLMBackbone, images: list[None], texts: list[str], max_new_tokens: int) -> list[str]:
        asked.append((set(images), max_new_tokens))
        return ["I see a cube." if "3" in text else "none" for text in texts]

    monkeypatch.setattr(VLMBackbone, "answer", answer)
    config = VqaConfig(policy=PolicySource(str(own_checkpoint)), benchmark=f"text:{questions}")
    config.output_dir = tmp_path / "run" / "vqa"
    results = read_json(evaluate(config) / "results.json")
    assert (results["accuracy"], results["n"], results["blind"]) == (pytest.approx(1 / 6), 6, None)
    assert results["pretrained"]["retained"] == 1 and results["benchmark"] == "text:general.jsonl"
    assert results["provenance"]["config"]["max_new_tokens"] == 24
    assert asked == [({None}, 24)] * 2, "the model and the one it was made from"


def test_a_page_shows_answers_without_pictures_and_leaves_running_text_out(
    tiny_vlm_dir: Path, questions: Path, prose: Path, tmp_path: Path
) -> None:
    for file in (questions, prose):
        out = tmp_path / "runs" / f"of-{file.stem}"
        evaluate(VqaConfig(vlm=str(tiny_vlm_dir), benchmark=f"text:{file}", output_dir=out))
    found = find_runs(tmp_path / "runs")
    assert [run.name for run in found] == ["of-general"]
    write_report(tmp_path / "page.html", found)
    assert "what is 0 and 0?" in (tmp_path / "page.html").read_text()
    with pytest.raises(AegisError, match=r"of-prose.results\.json holds running text, which has no answers"):
        RunSummary.read("prose", vqa_dir=tmp_path / "runs" / "of-prose")


def test_what_cannot_be_compared_on_running_text_is_one_sentence(
    tiny_vlm_dir: Path, prose: Path, questions: Path, tmp_path: Path
) -> None:
    text = {"vlm": str(tiny_vlm_dir), "benchmark": f"text:{prose}"}
    answers = evaluate(
        VqaConfig(vlm=str(tiny_vlm_dir), benchmark=f"text:{questions}", output_dir=tmp_path / "answers")
    )
    with pytest.raises(AegisError, match=r"^--pretrained_answers says nothing about running text"):
        evaluate(VqaConfig(**text, pretrained_answers=answers, output_dir=tmp_path / "new"))
    with pytest.raises(
        AegisError, match=r"reads the text in other words than .*, so they cannot be compared"
    ):
        evaluate(VqaConfig(**text, pretrained="embedded", output_dir=tmp_path / "new"))
    with pytest.raises(AegisError, match="holds no paragraph"):
        prose.write_text("\n")
        evaluate(VqaConfig(**text, output_dir=tmp_path / "new"))
    assert not (tmp_path / "new").exists()
