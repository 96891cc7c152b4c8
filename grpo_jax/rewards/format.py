"""Does a completion keep to a layout of tags? What stands inside is another reward's matter."""

import re
from collections.abc import Sequence

from grpo_jax.rewards.base import Completion, Question, RewardFn, each


def format_tags(tags: Sequence[str] = ("think", "answer")) -> RewardFn:
    """A reward function: 1.0 for `<think>...</think><answer>...</answer>` and nothing else.

    Each opening and closing tag stands exactly once, in the order of `tags`; before, between and
    after the blocks there is only white space.

    Args:
        tags: names of the tags, letters, digits, "_" and "-", each different.

    Returns:
        A reward function of 1.0 or 0.0 for each completion, without unit; it looks at nothing of
        the question, and time is linear in the text.

    Raises:
        ValueError: if `tags` is empty, repeats a name or holds something that is no name.

    Reference: DeepSeek-R1, arXiv:2501.12948, section 2.2.2 (format rewards).
    Choice: the paper gives no rule beyond the tags. Here blocks may be empty, and a tag named
    twice scores 0, since text that quotes a tag leaves open which block is the answer.

    >>> layout = format_tags()
    >>> texts = ["<think>2 + 2</think> <answer>4</answer>", "<answer>4</answer>", "4"]
    >>> layout(Question(0, "2 + 2?"), [Completion(text, 9) for text in texts])
    [1.0, 0.0, 0.0]
    """
    if not tags or len(set(tags)) < len(tags):
        raise ValueError(f"tags {list(tags)!r} must be one or more different names")
    for tag in tags:
        if not re.fullmatch(r"[A-Za-z][\w-]*", tag):
            raise ValueError(f"tag {tag!r} is not a name; write it without brackets, as in 'think'")
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]

    def format_reward(question: Question, completion: Completion) -> float:
        rest = completion.text
        # Counted first: with every mark there once, cutting at each in turn is the whole parse.
        if any(rest.count(mark) != 1 for mark in marks):
            return 0.0
        for number, mark in enumerate(marks):
            before, found, rest = rest.partition(mark)
            opens = number % 2 == 0
            if not found or (opens and before.strip()):
                return 0.0
        return float(not rest.strip())

    return each(format_reward)
