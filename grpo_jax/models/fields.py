"""config.json, read field by field, so that none which could matter is passed over.

What is wrong is collected, and told all at once.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# About training, generation, file formats or how things are printed; or repeats of other fields.
_OF_NO_CONSEQUENCE = frozenset(
    [
        "architectures",
        "auto_map",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "model_type",
        "initializer_range",
        "max_position_embeddings",
        "use_cache",
        "pretraining_tp",
        "id2label",
        "label2id",
        "problem_type",
        "num_labels",
        "classifier_dropout",
        "attention_dropout",  # of their own training; here nothing is dropped
        "embd_pdrop",
        "resid_pdrop",
        "is_llama_config",
        "transformers.js_config",
        "cache_implementation",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "router_aux_loss_coef",
        "aux_loss_alpha",
        "seq_aux",
        "ep_size",
        "num_nextn_predict_layers",
        "num_mtp_layers",
        "chunk_size_feed_forward",
        "tokenizer_class",
        "task_specific_params",
        "tie_encoder_decoder",
        "is_decoder",
        "torchscript",
        "temperature",
        "top_p",
        "top_k",
        "typical_p",
        "min_length",
        "max_length",
        "length_penalty",
        "repetition_penalty",
        "diversity_penalty",
        "num_beams",
        "num_beam_groups",
        "num_return_sequences",
        "do_sample",
        "early_stopping",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "suppress_tokens",
        "begin_suppress_tokens",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "return_dict_in_generate",
        "output_scores",
        "prefix",
        "decoder_start_token_id",
        "name_or_path",
        "attn_implementation",
        "experts_implementation",
        "max_sequence_length",
        "dual_chunk_attention_config",  # for lengths that its own server alone reaches
        "router_jitter_noise",
        "unsloth_version",
        "unsloth_fixed",
    ]
)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is something else.
    """
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; fetch it again") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path} is not a JSON object but {str(fields)[:80]}; fetch it again")
    return fields


class Fields:
    """The fields of a config.json; or of an object in it.

    Args:
        values: as parsed.
        within: path to them in the file, for messages: "rope_scaling." or "".
        problems: collected here, one line each.
    """

    def __init__(self, values: dict[str, Any], within: str = "", problems: list[str] | None = None):
        self.values = values
        self.problems: list[str] = [] if problems is None else problems
        self._within = within
        self._read: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether it is there and not null."""
        return self.values.get(name) is not None

    def is_null(self, name: str) -> bool:
        """Whether it is there and null, which for some fields says something."""
        return name in self.values and self.values[name] is None

    def count(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """An integer of at least 1; required without a default."""
        found = self._get(name, default)
        if isinstance(found, bool) or not isinstance(found, int) or found < least:
            what = "positive integer" if least else "integer of at least 0"
            self._refuse(name, found, f"it must be a {what}")
            return 1
        return found

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number; required without a default."""
        found = self._get(name, default)
        if isinstance(found, bool) or not isinstance(found, int | float) or not found > 0:
            self._refuse(name, found, "it must be a positive number")
            return 1.0
        return float(found)

    def flag(self, name: str, *, default: bool = False) -> bool:
        """True or false."""
        found = self._get(name, default)
        if not isinstance(found, bool):
            self._refuse(name, found, "it must be true or false")
        return bool(found)

    def one_of(self, name: str, *understood: Any) -> Any:
        """One of these; the first where it is absent or null."""
        found = self._get(name, understood[0])
        if found not in understood:
            self._refuse(name, found, f"understood: {', '.join(map(repr, understood))}")
            return understood[0]
        return found

    def each(self, name: str, length: int, *understood: Any) -> list[Any]:
        """A list of so many entries, each one of these; or any number, where none are named."""
        found = self._get(name, None)
        allowed = isinstance(found, list) and all(
            x in understood if understood else isinstance(x, int | float) for x in found
        )
        if not allowed or len(found) != length:
            what = f" of {', '.join(map(repr, understood))}" if understood else " of numbers"
            self._refuse(name, found, f"it must be a list of {length} entries{what}")
            return [understood[0] if understood else 1.0] * length
        return found

    def layers(self, name: str) -> frozenset[int]:
        """A list of numbers of layers, from 0; empty where it is absent or null."""
        found = self._get(name, [])
        if not isinstance(found, list) or not all(type(x) is int and x >= 0 for x in found):
            self._refuse(name, found, "it must be a list of layers, numbered from 0")
            return frozenset()
        return frozenset(found)

    def inner(self, name: str) -> "Fields":
        """An object in this one; empty where there is none."""
        found = self._get(name, {})
        if not isinstance(found, dict):
            self._refuse(name, found, "it must be an object")
            found = {}
        return Fields(found, f"{self._within}{name}.", self.problems)

    def passed_over(self, *names: str) -> None:
        """These say nothing that is not known."""
        self._read.update(names)

    def check_all_read(self, understood: Sequence[str] = ()) -> None:
        """What nobody asked for, and is not off, is a problem."""
        for name, value in self.values.items():
            known = name in self._read or name in _OF_NO_CONSEQUENCE or name in understood
            if value and not known and not name.startswith("_"):
                self._refuse(
                    name,
                    value,
                    "this field is not understood, and could change what the model computes; if "
                    "it does not, take it out",
                )

    def refuse(self, reason: str) -> None:
        """A problem of several fields; told once."""
        if reason not in self.problems:
            self.problems.append(reason)

    def _get(self, name: str, default: Any) -> Any:
        self._read.add(name)
        found = self.values.get(name)
        return default if found is None else found

    def _refuse(self, name: str, found: Any, rule: str) -> None:
        self.problems.append(f"{self._within}{name} is {repr(found)[:80]}; {rule}")


def refuse_all(path: Path, problems: Sequence[str]) -> None:
    """Raises ValueError with all of them, if there are any."""
    if problems:
        raise ValueError(f"cannot use {path}:" + "".join(f"\n  {problem}" for problem in problems))
