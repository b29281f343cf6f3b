"""What a policy is asked that writes its own rows: where a question stands in a chat template. No torch."""

from __future__ import annotations

from typing import Final

from align.data.messages import user
from align.data.tokenizer import TextTokenizer
from align.errors import AlignError

_MARK: Final = "Q7f3aZ"


def around_question(tokenizer: TextTokenizer) -> tuple[str, str]:
    """What the chat template writes before a user's first words, and after them up to where the answer begins.

    A chat model that goes on from the first writes a question of its own (Magpie; Xu et al. 2024, arXiv 2406.08464).

    Raises:
        AlignError: the template does not write the user's words as they are.
    """
    assert tokenizer.template is not None
    before, mark, after = tokenizer.template.ask([user(_MARK)]).partition(_MARK)
    if not mark or _MARK in after:
        what = "the chat template changes a user's words, so the policy cannot write the questions"
        raise AlignError(what, "give `prompts`")
    return before, after
