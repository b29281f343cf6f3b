"""Talk to the result of a run in the terminal."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from align import launch, rundir
from align.errors import AlignError
from align.rundir import RunDir
from align.stage import Outcome, Ticket


def talk(folder: Path, stage: str | None, *, max_new_tokens: int, temperature: float) -> None:
    """Read questions from standard input and print answers until the input ends.

    Raises:
        AlignError: the folder is no run, or the stage has no policy.
    """
    ticket, outcome = _find(folder, stage)
    launch.quiet()
    from align import adapters
    from align import model as models

    tokenizer = models.load_tokenizer(ticket.policy.base.path, ticket.chat_template)
    assert outcome.policy is not None
    model = adapters.load_policy(outcome.policy, ticket.model, folder)
    asking = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a stray byte must not end the talk
    if asking:
        print(f"{ticket.run_name}: an empty line ends, /new begins a new conversation")
    messages: list[dict[str, str]] = []
    while True:
        if asking:
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line.strip():
            return
        if line.strip() == "/new":
            messages = []
            continue
        messages.append({"role": "user", "content": line.strip()})
        answer = reply(model, tokenizer, messages, max_new_tokens=max_new_tokens, temperature=temperature)
        messages.append({"role": "assistant", "content": answer})
        print(answer, flush=True)


def reply(
    model: Any, tokenizer: Any, messages: list[dict[str, str]], *, max_new_tokens: int, temperature: float
) -> str:
    """The model's next answer in a conversation."""
    import torch

    from align.data import encode

    text = encode.chat(tokenizer, messages, prompt=True) if tokenizer.chat_template else messages[-1]["content"]
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=tokenizer.chat_template is None).to(model.device)
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
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            **sampling,
        )
    return str(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def _find(folder: Path, stage: str | None) -> tuple[Ticket, Outcome]:
    run = RunDir(folder)
    record = rundir.read_json(run.record)
    if record is None:
        raise AlignError(f"'{folder}' is no run folder", "give a folder that `align run` wrote")
    done = [
        id
        for id in record["order"]
        if run.stage(id).outcome.is_file() and rundir.read_json(run.stage(id).outcome, {}).get("policy")
    ]
    if not done:
        raise AlignError(f"no stage of '{folder}' is done", "run it first: align run")
    chosen = stage or done[-1]
    if chosen not in done:
        raise AlignError(f"'{folder}' has no finished stage '{chosen}'", f"choose one of: {', '.join(done)}")
    here = run.stage(chosen)
    return (
        Ticket.model_validate(rundir.read_json(here.ticket)),
        Outcome.model_validate(rundir.read_json(here.outcome)),
    )
