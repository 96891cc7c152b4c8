"""Text <-> ids: a Hugging Face tokenizer, or a character each for toys. No JAX."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from grpo_jax.rewards.base import Message


class Tokenizer(Protocol):
    """What the run asks of a tokenizer.

    Attributes:
        stop_ids: every id that ends a completion.
        pad_id: written where nothing is; may equal an end token, since masks come from lengths.
    """

    stop_ids: tuple[int, ...]
    pad_id: int

    def encode(self, prompt: str | tuple[Message, ...]) -> list[int]:
        """Ids of verbatim text, or of chat turns with the assistant's turn opened."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of a completion, up to its end token and without special tokens."""
        ...


class HFTokenizer:
    """The tokenizer and chat template of a model directory.

    Raises:
        ValueError: the directory holds no tokenizer, or neither it nor the model has an end token.
    """

    def __init__(self, directory: Path, stop_ids: Sequence[int] = ()):
        # It would warn that torch is missing, which is as it should be here.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except Exception as error:  # of many types, whatever is wrong with the files
            raise ValueError(
                f"{directory} holds no tokenizer that transformers can read (tokenizer.json and "
                f"tokenizer_config.json): {_first_line(error)}"
            ) from error
        end = self._tokenizer.eos_token_id
        ids = set(stop_ids) | (set() if end is None else {end})
        if not ids:
            raise ValueError(
                "no end token: neither the tokenizer nor config.json nor generation_config.json in "
                f"{directory} names one; set eos_token in tokenizer_config.json"
            )
        self.stop_ids = tuple(sorted(ids))
        pad = self._tokenizer.pad_token_id
        self.pad_id = self.stop_ids[0] if pad is None else pad

    def __len__(self) -> int:
        return len(self._tokenizer)

    def render(self, prompt: str | tuple[Message, ...]) -> str:
        """The text that is encoded: chat turns through the model's template.

        Raises:
            ValueError: chat turns without a template, or text that writes out a special token of
                another model.
        """
        if not isinstance(prompt, str):
            if not self._tokenizer.chat_template:
                raise ValueError(
                    "the prompt has chat turns, but the model directory holds no chat template; "
                    "use a chat model, or a task whose prompts are plain text"
                )
            return self._tokenizer.apply_chat_template(
                list(prompt), tokenize=False, add_generation_prompt=True
            )
        for marker in set(re.findall(r"<\|\w+\|>", prompt)):
            if len(self._tokenizer.encode(marker, add_special_tokens=False)) != 1:
                raise ValueError(
                    f"the prompt writes out {marker}, which is no token of this model: it would be "
                    "spelled in pieces; use a task whose prompts are chat turns"
                )
        return prompt

    def encode(self, prompt: str | tuple[Message, ...]) -> list[int]:
        return self._tokenizer.encode(self.render(prompt), add_special_tokens=False)

    def decode(self, tokens: Sequence[int]) -> str:
        kept = _before_end(tokens, self.stop_ids)
        return self._tokenizer.decode(
            kept, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


class CharTokenizer:
    """One id a character of the alphabet; the last one is the end.

    >>> tokenizer = CharTokenizer("abc.")
    >>> tokenizer.encode("cab"), tokenizer.decode([2, 0, 3, 1]), tokenizer.stop_ids
    ([2, 0, 1], 'ca', (3,))
    """

    def __init__(self, alphabet: str):
        self._alphabet = alphabet
        self.pad_id = len(alphabet) - 1
        self.stop_ids = (self.pad_id,)

    def __len__(self) -> int:
        return len(self._alphabet)

    def encode(self, prompt: str | tuple[Message, ...]) -> list[int]:
        if not isinstance(prompt, str):
            raise ValueError("the prompt has chat turns; a character tokenizer takes plain text")
        unknown = sorted(set(prompt) - set(self._alphabet))
        if unknown:
            raise ValueError(f"{unknown} are not in the alphabet {self._alphabet!r}")
        return [self._alphabet.index(character) for character in prompt]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self._alphabet[token] for token in _before_end(tokens, self.stop_ids))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _before_end(tokens: Sequence[int], stop_ids: tuple[int, ...]) -> list[int]:
    kept = [int(token) for token in tokens]
    ends = [i for i, token in enumerate(kept) if token in stop_ids]
    return kept[: ends[0]] if ends else kept
