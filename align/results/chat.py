"""Talk to the result of a run in the terminal."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import AlignError
from align.results import find
from align.runner import launch

if TYPE_CHECKING:
    from align.results.policy_switch import Switch


HELP = "an empty line ends, /new starts a new conversation"


def talk(folder: Path, stage: str | None, *, max_new_tokens: int, temperature: float) -> None:
    """Read questions from standard input and print answers until the input ends.

    Raises:
        AlignError: the folder is no run, or the stage has no policy.
    """
    ticket, outcome = find.find(folder, stage)
    launch.quiet()
    from align.policy import load as models
    from align.results.policy_switch import Switch

    tokenizer = models.load_tokenizer(ticket.policy.base.path, ticket.chat_template, ticket.model)
    model = Switch(folder, ticket, outcome)
    asking = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a stray byte must not end the talk
    if asking:
        print(f"{ticket.run_name}: {HELP}, /use NAME switches to one of {', '.join(model.names)}")
    messages: list[dict[str, str]] = []
    while True:
        if asking:
            print(f"{model.name}> ", end="", flush=True)
        line = sys.stdin.readline()
        asked = line.strip()
        if not asked:
            return
        if asked == "/new":
            messages = []
        elif asked.startswith("/"):
            print(_command(model, asked), flush=True)
        else:
            messages.append({"role": "user", "content": asked})
            answer = reply(model.model, tokenizer, messages, max_new_tokens=max_new_tokens, temperature=temperature)
            messages.append({"role": "assistant", "content": answer})
            print(answer, flush=True)


def _command(model: Switch, asked: str) -> str:
    """Do what a line that begins with a slash says, and tell what was done; the conversation goes on."""
    word, _, name = asked.partition(" ")
    if word != "/use":
        return f"there is no {word}: {HELP}, /use NAME switches to one of {', '.join(model.names)}"
    try:
        seconds = model.use(name.strip())
    except AlignError as error:
        return str(error)
    return f"{model.name} answers from here on (switched in {1000 * seconds:.0f} ms)"


def reply(
    model: Any, tokenizer: Any, messages: list[dict[str, str]], *, max_new_tokens: int, temperature: float
) -> str:
    """The model's next answer in a conversation."""
    import torch

    from align.data import encode
    from align.data.tokenizer import TextTokenizer
    from align.policy import generation

    asked = messages if tokenizer.chat_template else messages[-1]["content"]
    ids = torch.tensor(encode.prompt_ids([asked], TextTokenizer.of(tokenizer)), device=model.device)
    sampling = (
        {"do_sample": True, "temperature": temperature}
        if temperature > 0
        else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    )
    with (
        torch.no_grad(),
        torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=model.dtype == torch.bfloat16),
    ):
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            eos_token_id=generation.ends(model, tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            **sampling,
        )
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip()
