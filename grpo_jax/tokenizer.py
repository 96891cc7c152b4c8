"""Text <-> ids: a Hugging Face tokenizer, or a character each for toys. No JAX."""

import contextlib
import datetime
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

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
        """Ids of plain text, begun as the tokenizer begins one; or of chat turns with the
        assistant's turn opened."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of a completion, up to its end token and without special tokens."""
        ...


class HFTokenizer:
    """The tokenizer and chat template of a model directory.

    Args:
        directory: the model's.
        stop_ids: the model's end tokens; those of tokenizer and template are added.
        vocab_size: rows of the model's embedding; 0 where nobody knows.
        date: what a template is told that asks for the day; None is today.

    Raises:
        ValueError: the directory holds no tokenizer, or one of another model, or neither it nor the
            model has an end token.
    """

    def __init__(
        self,
        directory: Path,
        stop_ids: Sequence[int] = (),
        vocab_size: int = 0,
        date: datetime.date | None = None,
    ):
        # It would warn that torch is missing, which is as it should be here.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # of many types, whatever is wrong with the files
            raise ValueError(
                f"{directory} holds no tokenizer that transformers can read (tokenizer.json and "
                f"tokenizer_config.json): {_first_line(error)}"
            ) from error
        self._directory, self._date = directory, date or datetime.date.today()
        end = self._tokenizer.eos_token_id
        ids = set(stop_ids) | (set() if end is None else {end}) | self._ends_of_turns()
        if not ids:
            raise ValueError(
                "no end token: neither the tokenizer nor config.json nor generation_config.json in "
                f"{directory} names one; set eos_token in tokenizer_config.json"
            )
        self.stop_ids = tuple(sorted(ids))
        first = self._tokenizer.encode("", add_special_tokens=True)[:1]
        self._beginning = first if first == [self._tokenizer.bos_token_id] else []
        pad = self._tokenizer.pad_token_id
        self.pad_id = self.stop_ids[0] if pad is None else pad
        self._vocab_size = vocab_size
        if vocab_size:
            self._check_vocabulary()

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
            return self._from_template(list(prompt), add_generation_prompt=True)
        for marker in set(re.findall(r"<\|\w+\|>", prompt)):
            if len(self._tokenizer.encode(marker, add_special_tokens=False)) != 1:
                raise ValueError(
                    f"the prompt writes out {marker}, which is no token of this model: it would be "
                    "spelled in pieces; use a task whose prompts are chat turns, or plain text "
                    "(quickstart --plain)"
                )
        return prompt

    def encode(self, prompt: str | tuple[Message, ...]) -> list[int]:
        """The ids of `render`; those of plain text begin as the tokenizer begins a text (Llama 3
        and Gemma do so with <bos>), while a template writes that itself."""
        ids = self._tokenizer.encode(self.render(prompt), add_special_tokens=False)
        begun = not isinstance(prompt, str) or ids[:1] == self._beginning
        ids = ids if begun else self._beginning + ids
        if self._vocab_size and max(ids, default=0) >= self._vocab_size:
            token = self._tokenizer.convert_ids_to_tokens(max(ids))
            raise ValueError(
                f"the prompt holds {token!r}, a token that the model in {self._directory} has no "
                "embedding for; leave it out"
            )
        return ids

    def _check_vocabulary(self) -> None:
        """All ids have a row of the embedding, but for special tokens that other models of the
        family use (Gemma 3's images), and those are no end and no padding."""
        size, added = len(self._tokenizer), self._tokenizer.added_tokens_decoder
        beyond = range(self._vocab_size, size)
        unused = all(i in added and added[i].special for i in beyond)
        if not unused or max(*self.stop_ids, self.pad_id) >= self._vocab_size:
            raise ValueError(
                f"the tokenizer in {self._directory} has {size} ids, the embedding only "
                f"{self._vocab_size} rows (vocab_size in config.json): they are of different "
                "models; take both from the same checkpoint"
            )

    def _from_template(self, turns: list[Message], *, add_generation_prompt: bool) -> str:
        try:
            with _told(self._date):
                return self._tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=add_generation_prompt
                )
        except Exception as error:  # whatever a template does
            roles = ", ".join(turn["role"] for turn in turns)
            raise ValueError(
                f"the chat template in {self._directory} does not take these turns ({roles}): "
                f"{_first_line(error)}; change the task's turns, or the template"
            ) from error

    def _ends_of_turns(self) -> set[int]:
        """The special token that the chat template writes after what the assistant says, if any."""
        if not self._tokenizer.chat_template:
            return set()
        said = "4f1d"
        turns: list[Message] = [{"role": "user", "content": "a"}]
        turns.append({"role": "assistant", "content": said})
        try:
            text = self._from_template(turns, add_generation_prompt=False)
        except ValueError:  # it will say so when it is asked for a prompt
            return set()
        if said not in text:  # the template changes what is said
            return set()
        rest = text.rpartition(said)[2].lstrip()
        added = self._tokenizer.added_tokens_decoder.items()
        found = [(len(t.content), i) for i, t in added if t.special and rest.startswith(t.content)]
        return {max(found)[1]} if found else set()

    def decode(self, tokens: Sequence[int]) -> str:
        kept = _before_end(tokens, self.stop_ids)
        return self._tokenizer.decode(
            kept, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


@contextlib.contextmanager
def _told(day: datetime.date) -> Iterator[None]:
    """Templates that ask for the day are told this one. transformers lets them ask the clock and
    takes no other; a run that is resumed on another day would have other prompts."""
    from transformers.utils import chat_template_utils

    class Clock:
        @staticmethod
        def now() -> datetime.date:
            return day

    module: Any = chat_template_utils
    before, module.datetime = module.datetime, Clock
    try:
        yield
    finally:
        module.datetime = before


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
