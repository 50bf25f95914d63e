"""Texts of users as ordinary words, whatever they hold: never a picture's place, a turn's end or another marker.

A prompt is put together as text, and a tokenizer finds its special tokens anywhere in it. A question that quotes one
(`<image>`, `<|im_end|>`, `<eos>`) would move the pictures or end the turn.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import AddedToken

_TOKEN_ATTRIBUTE = re.compile("_(token|tag)$")
"""Names under which processors keep what they replace in a prompt: `image_token`, `global_image_tag`."""


class PlainText:
    """Writes texts so that a processor's tokenizer reads none of its special tokens in them.

    Args:
        processor: with its tokenizer. What counts are the tokens that the tokenizer calls special, and those which
            the processor itself looks for in a prompt.
    """

    def __init__(self, processor: Any) -> None:
        self._tokenizer = processor.tokenizer
        special = {token for token in _special_tokens(processor) if len(token) > 1}
        longest_first = sorted(special, key=lambda token: (-len(token), token))
        self._special = re.compile("|".join(map(re.escape, longest_first))) if special else None
        ids = {*self._tokenizer.convert_tokens_to_ids(longest_first)}
        self._ids = ids - {self._tokenizer.unk_token_id, None}

    def __call__(self, text: str) -> str:
        """The same text, with a blank behind the first letter of each special token: `<image>` as `< image>`."""
        while self._special and self._special.search(text):
            text = self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
        return text

    def special_in(self, tokens: Iterable[int]) -> str | None:
        """A special token among the ids of a plain text: of a tokenizer that rewrites what it reads, and finds one."""
        found = self._ids.intersection(tokens)
        return self._tokenizer.convert_ids_to_tokens(min(found)) if found else None


def _special_tokens(processor: Any) -> Iterator[str]:
    tokenizer = processor.tokenizer
    yield from tokenizer.all_special_tokens
    yield from (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    for holder in (processor, tokenizer):
        for name, value in vars(holder).items():
            if _TOKEN_ATTRIBUTE.search(name) and isinstance(value, str | AddedToken):
                yield str(value)
