"""Chats that the language model writes itself, to be reminded of how it answers where there is no picture.

A chat model continues the beginning of a user's turn as readily as one of its own, so it needs nobody to ask it
(Magpie, arXiv 2406.08464).
"""

import json
import re
from itertools import batched, cycle
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from aegis_policy.support.json_files import write_json
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.prompts import NO_LABEL

_OPENINGS = ("", "What", "Which", "Who", "Where", "When", "How many", "Name", "Is", "In which", "Why", "How")
_HELD_OUT = [Path(__file__).with_name(f"general_questions{part}.jsonl") for part in ("", "_test")]
_AT_ONCE = 48

Chat = tuple[str, str]
"""A question and its answer."""


def own_chats(vlm: VLMBackbone, count: int, seed: int, kept: Path) -> list[Chat]:
    """So many different chats that the untrained model writes, none with one of the general questions.

    Args:
        vlm: the model.
        count: at least so many.
        seed: of the sampling.
        kept: file that they are read from if it is there, and written to if not.
    """
    if not kept.is_file():
        questions = _questions(vlm, count, seed)
        answers = []
        for batch in tqdm(list(batched(questions, _AT_ONCE)), desc="its answers"):
            answers += vlm.answer([None] * len(batch), batch, max_new_tokens=24)
        write_json(kept, [pair for pair in zip(questions, answers, strict=True) if pair[1]])
    return [tuple(pair) for pair in json.loads(kept.read_text())]


@torch.no_grad()
def _questions(vlm: VLMBackbone, count: int, seed: int) -> list[str]:
    tokenizer = vlm.processor.tokenizer
    ends = [tokenizer.eos_token_id, *tokenizer("\n", add_special_tokens=False)["input_ids"]]
    lines = [line for file in _HELD_OUT for line in file.read_text().splitlines()]
    found = {_plain(json.loads(line)["question"]): "" for line in lines}
    held_out = len(found)
    with torch.random.fork_rng(devices=[]), tqdm(total=count, desc="its questions") as bar:
        torch.manual_seed(seed)
        for opening in cycle(_OPENINGS):
            if len(found) - held_out >= count:
                break
            ids = tokenizer(f"<|im_start|>user\n{opening}", add_special_tokens=False, return_tensors="pt")
            said = vlm.model.generate(
                input_ids=ids["input_ids"].expand(_AT_ONCE, -1),
                attention_mask=ids["attention_mask"].expand(_AT_ONCE, -1),
                do_sample=True,
                top_p=0.95,
                max_new_tokens=24,
                eos_token_id=ends,
            )
            for row in said[:, ids["input_ids"].shape[1] :].tolist():
                stops = [place for place, token in enumerate(row) if token in ends]
                text = (opening + tokenizer.decode(row[: stops[0]])).strip() if stops else ""
                if len(text) > len(opening) + 8:
                    found.setdefault(_plain(text), text)
            bar.update(len(found) - held_out - bar.n)
    return list(found.values())[held_out:]


def _plain(question: str) -> str:
    return re.sub(r"\W+", " ", question.lower()).strip()


class ChatLoss(nn.Module):
    """KL(untrained || trained) of the next token, at every token of the chats' answers, in nats."""

    def __init__(self, vlm: VLMBackbone, untrained: VLMBackbone) -> None:
        super().__init__()
        self.vlm = vlm
        self._untrained = (untrained,)  # a tuple, so that its weights are no part of this module

    def forward(self, chats: list[Chat]) -> Tensor:
        questions, answers = zip(*chats, strict=True)
        inputs = self.vlm.answer_inputs([None] * len(chats), questions, answers)
        with torch.autocast(inputs["input_ids"].device.type, dtype=torch.bfloat16):
            with torch.no_grad():
                wanted_NKV, _ = self._untrained[0].answer_logits(inputs)
            logits_NKV, labels_NK = self.vlm.answer_logits(inputs)
        said = labels_NK != NO_LABEL
        return nn.functional.kl_div(
            logits_NKV[said].float().log_softmax(-1),
            wanted_NKV[said].float().log_softmax(-1),
            log_target=True,
            reduction="batchmean",
        )
