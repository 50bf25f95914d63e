"""Every VLM family through the same code: inputs, training under `aegis`, checkpoint, answers, export."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vlms import FAMILY_RECIPES, save_tiny_vlm
from training_steps import MakeBatch, build_optimizer, training_step
from transformers import AutoModelForImageTextToText, AutoProcessor

from aegis_eval.checkpoints import PolicySource
from aegis_eval.commands.export import ExportConfig
from aegis_eval.commands.work.export import export
from aegis_policy.anchors.building import build_anchor
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.protections.subspace import HOLD_EVERY
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.families import FAMILIES, WholePrompt
from aegis_policy.vlm.prompts import NO_LABEL
from aegis_policy.vqa.examples import VQAExample

QUESTIONS = ["what colour is it", "how many red cubes are there on the table"]
ANSWERS = ["red", "two"]


def _images(*sizes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]


PICTURES = _images((32, 32), (40, 64))


@pytest.fixture(scope="module", params=["paligemma", *FAMILY_RECIPES])
def directory(
    request: pytest.FixtureRequest, tiny_vlm_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    if request.param == "paligemma":
        return tiny_vlm_dir
    return save_tiny_vlm(request.param, tmp_path_factory.mktemp("family") / request.param)


@pytest.fixture(scope="module")
def vlm(directory: Path) -> VLMBackbone:
    return VLMBackbone.from_pretrained(directory).eval()


def test_all_known_families_are_here() -> None:
    assert set(FAMILIES) == {"paligemma", *FAMILY_RECIPES}


@torch.no_grad()
def test_padding_on_either_side_changes_no_hidden_state(vlm: VLMBackbone) -> None:
    right = vlm.prepare(
        [torch.rand(2, 3, 32, 32), torch.rand(2, 3, 48, 32)], ["pick up the blue cube", "reach"]
    )
    left = vlm.question_inputs(PICTURES, QUESTIONS)
    assert right["attention_mask"][1, -1] == 0 == left["attention_mask"][0, 0]
    cameras = [torch.rand(1, 3, 32, 32), torch.rand(1, 3, 48, 32)]
    both = [torch.cat([camera, camera]) for camera in cameras]
    pairs = [
        (vlm.prepare(both, ["pick up the blue cube", "reach"]), vlm.prepare(cameras, ["reach"]), 1),
        (left, vlm.question_inputs(PICTURES[:1], QUESTIONS[:1]), 0),
    ]
    for padded, alone, row in pairs:
        among, single = vlm.encode(padded), vlm.encode(alone)
        mask = among.mask[row]
        for h, h0 in zip(among.hidden_states, single.hidden_states, strict=True):
            torch.testing.assert_close(h[row, mask], h0[0], rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_a_prefix_that_ends_early_is_the_beginning_of_the_whole(vlm: VLMBackbone) -> None:
    inputs = vlm.prepare([torch.rand(2, 3, 32, 32)], ["pick up the blue cube", "reach"])
    whole, ran = vlm.encode(inputs), []
    handles = [
        layer.register_forward_hook(lambda layer, *_: ran.append(layer)) for layer in vlm.decoder_layers
    ]
    vlm.end_at(1)
    try:
        first = vlm.encode(inputs)
    finally:
        vlm.end_at(None)
        for handle in handles:
            handle.remove()
    assert ran == [vlm.decoder_layers[0]] and len(whole.hidden_states) == vlm.num_layers > 1
    (hidden,) = first.hidden_states
    assert torch.equal(hidden, whole.hidden_states[0])


@torch.no_grad()
def test_an_autocast_changes_hidden_states_a_little(vlm: VLMBackbone) -> None:
    inputs = vlm.prepare([torch.rand(2, 3, 32, 32)], ["pick up the blue cube", "reach"])
    whole = vlm.encode(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = vlm.encode(inputs)
    for h, h0 in zip(rounded.hidden_states, whole.hidden_states, strict=True):
        error = (h.float() - h0)[whole.mask].norm() / h0[whole.mask].norm()
        assert 0 < error < 0.05


@torch.no_grad()
def test_every_camera_has_its_image_tokens(vlm: VLMBackbone) -> None:
    first, second = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 48, 32)
    counts = [
        int(vlm.image_tokens(vlm.prepare(cameras, ["reach"])).sum())
        for cameras in ([first, second], [first, second, first], [first, second, first, first])
    ]
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0
    before = vlm.encode(vlm.prepare([first, second], ["reach"])).hidden_states[-1]
    after = vlm.encode(vlm.prepare([first, 1 - second], ["reach"])).hidden_states[-1]
    assert not torch.allclose(before, after, atol=1e-3)


@torch.no_grad()
def test_what_is_read_behind_the_prompt_leaves_it_as_it_is(vlm: VLMBackbone) -> None:
    inputs = vlm.prepare([torch.rand(2, 3, 32, 32)], ["pick up the blue cube", "reach"])
    suffix = vlm.reserved_tokens(4).expand(2, -1)
    prefix, logits = vlm.encode_with_suffix(inputs, suffix)
    for h, h0 in zip(prefix.hidden_states, vlm.encode(inputs).hidden_states, strict=True):
        torch.testing.assert_close(h[prefix.mask], h0[prefix.mask], rtol=1e-4, atol=2e-5)
    _, other = vlm.encode_with_suffix(inputs, suffix.flip(1))
    torch.testing.assert_close(logits[:, 0], other[:, 0])
    assert not torch.allclose(logits[:, 1], other[:, 1], atol=1e-3)


def test_reserved_words_are_none_that_a_prompt_is_made_of(vlm: VLMBackbone) -> None:
    reserved = set(vlm.reserved_tokens(8).tolist())
    used = set(vlm.question_inputs(PICTURES, QUESTIONS)["input_ids"].flatten().tolist())
    used |= set(vlm.prepare([torch.rand(1, 3, 32, 32)], ["reach"])["input_ids"].flatten().tolist())
    assert len(reserved) == 8 and not reserved & used
    if vlm.family.chat:
        special = {
            index for index, token in vlm.processor.tokenizer.added_tokens_decoder.items() if token.special
        }
        assert not reserved & special


@torch.no_grad()
def test_an_answers_tokens_and_their_end_are_what_is_learned(vlm: VLMBackbone) -> None:
    inputs = vlm.answer_inputs(PICTURES, QUESTIONS, ANSWERS)
    logits, labels = vlm.answer_logits(inputs)
    assert logits.shape[:2] == labels.shape
    for row, answer in zip(labels, ANSWERS, strict=True):
        tokens = row[row != NO_LABEL]
        assert vlm.processor.tokenizer.decode(tokens[:-1]).strip() == answer
        assert tokens[-1] == vlm.processor.tokenizer.eos_token_id
    alone, _ = vlm.answer_logits(vlm.answer_inputs(PICTURES[:1], QUESTIONS[:1], ANSWERS[:1]))
    count = int((labels[0] != NO_LABEL).sum())
    torch.testing.assert_close(logits[0, -count:], alone[0, -count:], rtol=1e-4, atol=1e-4)


def _special_counts(vlm: VLMBackbone, inputs: dict[str, torch.Tensor]) -> Counter[int]:
    tokenizer = vlm.processor.tokenizer
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.discard(tokenizer.unk_token_id)
    return Counter(index for index in inputs["input_ids"].flatten().tolist() if index in special)


def test_special_tokens_that_a_text_quotes_are_read_as_words(vlm: VLMBackbone) -> None:
    """Each at the beginning, amid, doubled and one in the other; wherever a text comes in."""
    tokenizer = vlm.processor.tokenizer
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    quoting = [
        *(f"{token}what {token}{token} is this {token}" for token in tokens),
        f"{tokens[-1][0]}{tokens[-1]}",
    ]
    quoting += ["<row_1_col_1>", f"{tokens[0][:2]}{tokens[-1]}{tokens[0][2:]}", "</s> [INST] <|endoftext|>"]
    picture, camera = PICTURES[:1], [torch.rand(1, 3, 32, 32)]
    for text in quoting:
        ways = [
            (vlm.prepare(camera, [text]), vlm.prepare(camera, ["what"])),
            (vlm.question_inputs(picture, [text]), vlm.question_inputs(picture, ["what"])),
            (vlm.answer_inputs(picture, ["what"], [text]), vlm.answer_inputs(picture, ["what"], ["red"])),
        ]
        for quoted, plain in ways:
            assert _special_counts(vlm, quoted) == _special_counts(vlm, plain), text
            if tokenizer.unk_token_id not in quoted["input_ids"][0].tolist():
                letters = tokenizer.decode(quoted["input_ids"][0]).replace(" ", "")
                assert text.replace(" ", "") in letters, "no letter is lost"
        labels = ways[2][0]["labels"]
        assert Counter(labels.flatten().tolist())[tokenizer.eos_token_id] == 1
        assert vlm.refuses(text) is None
    vlm.answer(picture * len(quoting), quoting, max_new_tokens=1)


def test_a_text_that_the_model_has_no_room_for_is_refused_and_named(vlm: VLMBackbone) -> None:
    longest = vlm.model.config.get_text_config().max_position_embeddings
    long = "a? " * longest
    nearly = "a? " * (longest * longest // len(vlm.processor.tokenizer(long)["input_ids"]) - 10)
    assert f"tokens, and {vlm.name} reads {longest} at most: shorten it" in str(vlm.refuses(long))
    assert vlm.refuses(nearly) is None
    for ask in (
        lambda text: vlm.prepare([torch.rand(1, 3, 32, 32)], [text]),
        lambda text: vlm.question_inputs(PICTURES[:1], [text]),
        lambda text: vlm.answer_inputs(PICTURES[:1], ["what"], [text]),
    ):
        with pytest.raises(AegisError, match=r"The text 'a\? .*\.\.\.' makes .* shorten it"):
            ask(long)
    with pytest.raises(AegisError, match=r"tokens with its pictures.*fewer pictures"):
        vlm.prepare([torch.rand(1, 3, 32, 32)] * 20, [nearly])


@torch.no_grad()
def test_pictures_of_any_mode_and_shape_are_read_as_colours(vlm: VLMBackbone) -> None:
    colour = Image.fromarray(PICTURES[1])
    for mode in ("L", "RGBA", "P", "LA", "CMYK", "1"):
        other = colour.convert(mode)
        asked = [
            vlm.question_inputs([each], ["what"]) for each in (other, other.convert("RGB"), np.asarray(other))
        ]
        alike = 2 if mode in ("P", "CMYK") else 3  # arrays have no such modes
        pixels = [each["pixel_values"] for each in asked[:alike]]
        assert all(torch.equal(each, pixels[0]) for each in pixels)
    shapes = [(1, 1), (1, 2), (3, 3), (1, 300), (5000, 1)]
    assert len(vlm.answer(_images(*shapes), ["what"] * len(shapes), max_new_tokens=1)) == len(shapes)
    vlm.encode(vlm.prepare([torch.rand(1, 3, 1, 1), torch.rand(1, 3, 9, 900)], ["reach"]))


TEXTS = {
    "nothing": "",
    "Chinese": "\u628a\u7ea2\u8272\u65b9\u5757\u63a8\u5230\u84dd\u8272\u533a\u57df",
    "Arabic": "\u0627\u062f\u0641\u0639 \u0627\u0644\u0645\u0643\u0639\u0628",
    "a picture": "\U0001f916 \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "combining marks": "e\u0301" * 9,
    "null and other controls": "a\x00b\x1b[31mc\x7f",
    "braces of formats and templates": "{} {0} {{ messages }} {% for %} %s \\n",
    "lines": "a\r\nb\u2028c\u0085d",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_script_is_read(vlm: VLMBackbone, text: str) -> None:
    assert vlm.refuses(text) is None
    vlm.prepare([torch.rand(1, 3, 32, 32)], [text])
    labels = vlm.answer_inputs(PICTURES[:1], [text], [text])["labels"]
    assert (labels[0] != NO_LABEL).sum() >= (1 if not text else 2)
    assert len(vlm.answer(PICTURES[:1], [text], max_new_tokens=1)) == 1


def test_half_a_letter_is_refused_and_so_are_pictures_that_cannot_be(vlm: VLMBackbone) -> None:
    for ask in (vlm.question_inputs, lambda pictures, texts: vlm.answer_inputs(pictures, ["what"], texts)):
        with pytest.raises(AegisError, match=r"The text 'a\\ud800' holds half a letter"):
            ask(PICTURES[:1], ["a\ud800"])
    with pytest.raises(AegisError, match=r"cannot read pictures of 0 x 32 pixels with the prompt"):
        vlm.prepare([torch.rand(1, 3, 0, 32)], ["reach"])


def test_steps_under_aegis_a_checkpoint_and_an_export(
    directory: Path, make_config: Callable[..., AegisConfig], make_batch: MakeBatch, tmp_path: Path
) -> None:
    pretrained = VLMBackbone.from_pretrained(directory)
    examples = (VQAExample(image, "what colour is it") for image in _images(*[(32, 32)] * 8))
    anchor = build_anchor(pretrained, examples, kinds=["gaussian", "subspace"], source="noise", batch_size=4)
    anchor.save(tmp_path / "anchor.safetensors")
    options = {
        "vlm": str(directory),
        "anchor_path": tmp_path / "anchor.safetensors",
        "optimizer_lr_backbone": 1e-3,
    }
    policy = AegisPolicy(make_config("aegis", anchor="gaussian+subspace", **options))
    for parameter in policy.expert.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    optimizer = build_optimizer(policy)
    figures = [training_step(policy, optimizer, make_batch(seed=step)) for step in range(HOLD_EVERY + 1)]
    assert all(np.isfinite(list(each.values())).all() for each in figures)
    assert figures[-1]["subspace_blocked_energy"] > 0
    before = dict(pretrained.model.named_parameters())
    moved = {name for name, p in policy.vlm.model.named_parameters() if not torch.equal(p, before[name])}
    decoder = [name for name in policy.vlm.linear_layers if name.startswith(policy.vlm.family.decoder_layers)]
    assert moved == {f"{name}.weight" for name in decoder}, "what no block guards does not learn"
    policy.eval()  # which holds what the last steps moved
    names = {id(p): name for name, p in policy.vlm.model.named_parameters()}
    blocks = [each for projector in policy.protection.projectors for each in getattr(projector, "blocks", ())]
    assert len(blocks) == len(decoder)
    for weight, block in blocks:
        change = weight.detach() - before[names[id(weight)]]
        assert (change @ block).norm() < 1e-3 * change.norm()

    policy.save_pretrained(tmp_path / "policy")
    restored = AegisPolicy.from_pretrained(tmp_path / "policy").eval()
    policy.eval()
    batch, noise = make_batch(), torch.randn(4, 4, 3)
    with torch.no_grad():
        torch.testing.assert_close(
            restored.predict_action_chunk(batch, noise=noise), policy.predict_action_chunk(batch, noise=noise)
        )
    assert restored.vlm.answer(PICTURES, QUESTIONS, 4) == policy.vlm.answer(PICTURES, QUESTIONS, 4)

    exported = export(ExportConfig(PolicySource(str(tmp_path / "policy")), tmp_path / "exported"))
    model = AutoModelForImageTextToText.from_pretrained(exported).eval()
    AutoProcessor.from_pretrained(exported)
    inputs = policy.vlm.question_inputs(PICTURES, QUESTIONS)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, policy.vlm.model(**inputs).logits)


@pytest.mark.parametrize(
    ("family", "sentence"),
    [
        ('Family("model.language_model.layers", "model.vision_tower", "model.multi_modal_projector")', None),
        ('"a string"', "llava = my_vlms:LLAVA of aegis_policy.vlm_families is no Family"),
        ("undefined", "cannot be loaded"),
        ("Family()", "cannot be loaded"),
        (
            'Family("model.language_model.layers", "model.vision_tower", "model.bridge")',
            "no part `model.bridge`",
        ),
    ],
)
def test_another_family_comes_from_an_installed_package(
    family: str, sentence: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `pip install` would leave it: a module, and the metadata that names its entry point."""
    directory = save_tiny_vlm("llava", tmp_path / "llava")
    with pytest.raises(AegisError, match="`llava` model; known families are"):
        VLMBackbone.from_pretrained(directory)
    (tmp_path / "site" / "my_vlms-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "my_vlms.py").write_text(
        f"from aegis_policy.vlm.families import Family\n{'' if family == 'undefined' else f'LLAVA = {family}'}\n"
    )
    metadata = tmp_path / "site" / "my_vlms-1.0.dist-info"
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my_vlms\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[aegis_policy.vlm_families]\nllava = my_vlms:LLAVA\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "my_vlms", raising=False)
    if sentence is not None:
        with pytest.raises(AegisError, match=sentence):
            VLMBackbone.from_pretrained(directory)
        return
    vlm = VLMBackbone.from_pretrained(directory)
    assert len(vlm.answer(PICTURES, QUESTIONS, 4)) == 2
    assert len(vlm.encode(vlm.prepare([torch.rand(1, 3, 32, 32)], ["reach"])).hidden_states) == 2
    monkeypatch.delitem(sys.modules, "my_vlms", raising=False)


def test_an_export_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AegisError, match=r"--output_dir=.* already holds files"):
        export(ExportConfig(PolicySource("nowhere/policy"), tmp_path))


TEXT = "the sun rises in the east and it sets in the west"


def test_questions_without_a_picture_stand_in_the_models_own_words(vlm: VLMBackbone) -> None:
    inputs = vlm.question_inputs([None, None], QUESTIONS)
    assert "pixel_values" not in inputs and not vlm.image_tokens(inputs).any()
    tokenizer = vlm.processor.tokenizer
    for row, mask, question in zip(inputs["input_ids"], inputs["attention_mask"], QUESTIONS, strict=True):
        turn = [{"role": "user", "content": [{"type": "text", "text": question}]}]
        expected = (
            vlm.processor.apply_chat_template(turn, add_generation_prompt=True)
            if vlm.family.chat
            else f"{tokenizer.bos_token}answer en {question}\n"
        )
        assert row[mask.bool()].tolist() == tokenizer(expected, add_special_tokens=False)["input_ids"]


def test_a_question_that_says_itself_how_it_is_answered_is_put_to_chat_models_as_it_stands(
    vlm: VLMBackbone,
) -> None:
    question = "which is it\nA. red\nB. two\nanswer with the letter"
    words = vlm.processor.tokenizer.decode(
        vlm.question_inputs(PICTURES[:1], [WholePrompt(question)])["input_ids"][0]
    )
    usual = vlm.processor.tokenizer.decode(vlm.question_inputs(PICTURES[:1], [question])["input_ids"][0])
    if vlm.family.chat:
        assert question in words and "single word" not in words
        assert question not in usual and "single word" in usual
    else:
        assert words == usual, "these models know one form of question"


@torch.no_grad()
def test_answers_without_a_picture_are_what_the_model_finds_likeliest_word_by_word(vlm: VLMBackbone) -> None:
    together = vlm.answer([None, None], QUESTIONS, max_new_tokens=4)
    assert together == [vlm.answer([None], [question], max_new_tokens=4)[0] for question in QUESTIONS]
    inputs = vlm.question_inputs([None], QUESTIONS[:1])
    start = inputs["input_ids"].shape[1]
    for _ in range(4):
        logits = vlm.model(**inputs, use_cache=False).logits[:, -1]
        behind = {
            "input_ids": logits.argmax(-1, keepdim=True),
            "attention_mask": torch.ones(1, 1, dtype=torch.long),
        }
        behind["token_type_ids"] = torch.full((1, 1), vlm.family.causal_type)
        behind["mm_token_type_ids"] = torch.zeros(1, 1, dtype=torch.long)
        inputs = {key: torch.cat([x, behind[key]], dim=1) for key, x in inputs.items()}
    expected = vlm.processor.tokenizer.decode(inputs["input_ids"][0, start:], skip_special_tokens=True)
    assert together[0] == expected.strip()


def test_answers_without_a_picture_have_a_loss(vlm: VLMBackbone) -> None:
    inputs = vlm.answer_inputs([None, None], QUESTIONS, ANSWERS)
    logits, labels = vlm.answer_logits(inputs)
    said = [vlm.processor.tokenizer.decode(row[row != NO_LABEL], skip_special_tokens=True) for row in labels]
    assert [each.strip() for each in said] == ANSWERS
    logits.sum().backward()
    gradient = next(iter(vlm.decoder_layers[0].parameters())).grad
    assert gradient is not None and gradient.any()
    vlm.zero_grad()


@torch.no_grad()
def test_a_question_about_several_pictures_sees_each_in_its_place(vlm: VLMBackbone) -> None:
    first, second = PICTURES
    states = [
        vlm.encode(vlm.question_inputs([shown], QUESTIONS[:1])).hidden_states[-1][0, -1]
        for shown in [(first, second), (second, first), (first, first)]
    ]
    assert len({tuple(state.tolist()) for state in states}) == 3
    # One question about two pictures beside another about one: each as if it were alone.
    among = vlm.encode(vlm.question_inputs([(first, second), first], QUESTIONS))
    for row, shown in enumerate([(first, second), first]):
        alone = vlm.encode(vlm.question_inputs([shown], QUESTIONS[row : row + 1])).hidden_states[-1][0]
        torch.testing.assert_close(among.hidden_states[-1][row, among.mask[row]], alone, rtol=1e-4, atol=2e-5)


def test_a_batch_with_and_without_pictures_is_refused(vlm: VLMBackbone) -> None:
    with pytest.raises(AegisError, match="in the same batch"):
        vlm.answer([PICTURES[0], None], QUESTIONS)


@torch.no_grad()
def test_running_text_is_read_as_the_language_model_alone_reads_it(vlm: VLMBackbone) -> None:
    found = vlm.read(TEXT)
    assert TEXT in vlm.processor.tokenizer.decode(found.tokens_T)
    inner = vlm.model.get_submodule(vlm.family.decoder_layers.rpartition(".")[0])
    count = len(found.tokens_T)
    causal_TT = torch.full((count, count), -torch.inf).triu(1)  # PaliGemma's alone would look ahead
    hidden = inner(
        input_ids=found.tokens_T[None], attention_mask=causal_TT[None, None], use_cache=False
    ).last_hidden_state
    torch.testing.assert_close(found.features_TD, hidden[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        found.logits_STV, vlm.model.get_output_embeddings()(hidden), atol=1e-4, rtol=1e-4
    )
    shorter = vlm.read(TEXT[: len(TEXT) // 2])
    same = int((found.tokens_T[: len(shorter.tokens_T)] == shorter.tokens_T).cumprod(0).sum())
    assert same > 5, "a token sees nothing of what comes behind it"
    torch.testing.assert_close(shorter.logits_STV[:, :same], found.logits_STV[:, :same], atol=1e-4, rtol=1e-4)


def test_running_text_has_the_hidden_states_that_it_is_read_with(vlm: VLMBackbone) -> None:
    with vlm.recorded_layers() as read:
        vlm.read(TEXT)
    with torch.no_grad():
        encoded = vlm.eval().encode(vlm.text_inputs(TEXT)).hidden_states
    assert len(read) == len(encoded) == vlm.num_layers
    for one, other in zip(read, encoded, strict=True):
        torch.testing.assert_close(one, other)


def test_an_earlier_reading_speaks_again_beside_a_later_one(directory: Path) -> None:
    vlm = VLMBackbone.from_pretrained(directory).eval()
    before = vlm.read(TEXT)
    with torch.no_grad():
        for parameter in vlm.decoder_layers.parameters():
            parameter.mul_(1.5)
    own, remembered = vlm.read(TEXT, before.features_TD).logits_STV
    torch.testing.assert_close(own[None], vlm.read(TEXT).logits_STV)
    torch.testing.assert_close(remembered[None], before.logits_STV)
    assert not torch.allclose(own, remembered)


def test_long_running_text_is_cut(vlm: VLMBackbone) -> None:
    assert len(vlm.read(TEXT * 100).tokens_T) == min(1024, vlm.prompts.longest or 1024)


@pytest.mark.parametrize("ask", [lambda vlm: vlm.answer([None], QUESTIONS[:1]), lambda vlm: vlm.read(TEXT)])
def test_a_model_that_does_nothing_without_a_picture_says_so(
    vlm: VLMBackbone, ask: Callable[[VLMBackbone], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(**_: object) -> None:
        raise AttributeError("'NoneType' object has no attribute 'shape'")

    monkeypatch.setattr(vlm.model, "forward", forward)
    with pytest.raises(AegisError, match=r"cannot read a text without a picture .*: ask it about pictures\."):
        ask(vlm)
