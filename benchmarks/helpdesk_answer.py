"""A checker of help-desk answers: right if it is a sentence of the grammar and says what the data's answer says."""

from align.lab import helpdesk


def right(completion: str, answer: str) -> bool:
    """Whether the answer names the same item and asks for the same action, in whatever words and tone."""
    found, wanted = (helpdesk.parse_reply(text.strip()) for text in (completion, answer))
    return wanted is not None and helpdesk.correct(found, wanted.item, wanted.action)
