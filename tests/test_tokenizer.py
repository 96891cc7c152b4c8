"""Text and turns to ids: how they begin, where they end."""

import datetime
import json

import pytest
import toys

from grpo_jax.tokenizer import HFTokenizer

CHATML = (
    "{% for turn in messages %}<s>{{ turn.role }} {{ turn.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant {% endif %}"
)


def directory(path, *, begins=False, template=None, special=()):
    """A tokenizer of characters; of those that begin each text with <s>, if asked for."""
    from tokenizers import Tokenizer, processors

    path.mkdir()
    toys.write_tokenizer(path)
    made = Tokenizer.from_file(str(path / "tokenizer.json"))
    if special:
        made.add_special_tokens(list(special))
    if begins:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    made.save(str(path / "tokenizer.json"))
    fields = {"bos_token": "<s>"} | ({"chat_template": template} if template else {})
    toys.edit_json(path / "tokenizer_config.json", **fields)
    return path


def test_plain_text_begins_as_the_tokenizer_begins_a_text(tmp_path):
    from transformers import AutoTokenizer

    path = directory(tmp_path / "begins", begins=True)
    found = HFTokenizer(path)
    assert found.encode("12=") == AutoTokenizer.from_pretrained(path)("12=")["input_ids"]
    assert found.encode("12=")[0] == 1
    assert found.encode("<s>12=") == found.encode("12=")  # written out: once


def test_plain_text_begins_with_nothing_where_the_tokenizer_adds_nothing(tmp_path):
    found = HFTokenizer(directory(tmp_path / "plain"))
    assert len(found.encode("12=")) == 3


def test_a_template_writes_the_beginning_itself(tmp_path):
    from transformers import AutoTokenizer

    path = directory(tmp_path / "chat", begins=True, template=CHATML, special=["<end>"])
    turns = ({"role": "user", "content": "1+2"},)
    expected = AutoTokenizer.from_pretrained(path).apply_chat_template(
        list(turns), add_generation_prompt=True, return_dict=False
    )
    found = HFTokenizer(path)
    assert found.encode(turns) == expected
    assert expected.count(1) == 2  # one a turn, of the template's


def test_what_the_template_writes_after_an_answer_ends_it(tmp_path):
    path = directory(tmp_path / "chat", template=CHATML, special=["<end>"])
    found = HFTokenizer(path, (0,))
    end = json.loads((path / "tokenizer.json").read_text())["added_tokens"][-1]
    assert end["content"] == "<end>"
    assert found.stop_ids == (0, 2, end["id"])


def test_a_template_that_asks_for_the_day(tmp_path):
    template = (
        "{{ strftime_now('%d %B %Y') }}{% for turn in messages %}{{ turn.content }}{% endfor %}"
    )
    path = directory(tmp_path / "chat", template=template)
    turns = ({"role": "user", "content": "b"},)
    found = HFTokenizer(path, date=datetime.date(2026, 11, 30))
    assert found.render(turns) == "30 November 2026b"
    assert HFTokenizer(path).render(turns) == f"{datetime.date.today():%d %B %Y}b"


def test_ids_beyond_the_embedding(tmp_path):
    path = directory(tmp_path / "plain", special=["<image>"])
    size = len(json.loads((path / "tokenizer.json").read_text())["model"]["vocab"])
    found = HFTokenizer(path, vocab_size=size)  # another model of the family has the images
    assert max(found.encode("12=")) < size
    with pytest.raises(ValueError, match=r"<image>.* no embedding"):
        found.encode("12<image>")
    with pytest.raises(ValueError, match="different models"):
        HFTokenizer(path, vocab_size=size - 1)
    with pytest.raises(ValueError, match="different models"):
        HFTokenizer(path, (size,), vocab_size=size)  # its end could never be said


def test_a_template_that_says_something_else_ends_nothing(tmp_path):
    path = directory(tmp_path / "chat", template="<s>{{ messages|length }}")
    assert HFTokenizer(path).stop_ids == (2,)


def test_a_template_that_raises_is_named(tmp_path):
    template = "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}"
    path = directory(tmp_path / "chat", template=template)
    turns = ({"role": "system", "content": "a"}, {"role": "user", "content": "b"})
    with pytest.raises(ValueError, match=r"chat.* \(system, user\): one turn only"):
        HFTokenizer(path).encode(turns)
