"""Chat templates rendered without transformers, with the same result as its `apply_chat_template`.

A template comes from the Hub and is a program: it runs in jinja2's immutable sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from align import user_paths
from align.data.patience import TookTooLongError, within
from align.errors import AlignError, Place

if TYPE_CHECKING:
    from jinja2 import Environment, Template

LARGEST: Final = 10_000_000  # of what an operator of a template makes: characters, items or bits
SECONDS: Final = 10.0  # of one row; a template may loop for as good as ever
PLAIN: Final = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ 'Assistant:' }}"
    "{% generation %}{{ ' ' + message['content'] + (eos_token or '\\n') }}{% endgeneration %}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\\n' }}"
    "{% else %}{{ message['role'] | capitalize + ': ' + message['content'] }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nAssistant:' }}{% endif %}"
)
"""For a base model without a template. It needs no new tokens; the space belongs to the answer, because most
tokenizers join it to the word that follows, so that a prompt's tokens begin the tokens of prompt and answer."""


def render(
    template: str,
    messages: Sequence[dict[str, Any]],
    *,
    add_generation_prompt: bool,
    bos_token: str | None,
    eos_token: str | None,
    **extra: Any,
) -> str:
    """The text that `template` makes of `messages`; raises AlignError where it refuses them.

    Args:
        add_generation_prompt: end where the assistant's answer would begin.
        extra: more variables, such as `tools` or other special tokens.
    """
    tokens = {"bos_token": bos_token, "eos_token": eos_token}
    return rendered(_compiled(template), messages, add_generation_prompt=add_generation_prompt, **tokens, **extra)


def rendered(
    compiled: Template, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool, **variables: Any
) -> str:
    """The text that a template of our `environment` makes; raises AlignError where it refuses the messages.

    Args:
        variables: what the template may use besides; one that is None, such as a token that the tokenizer lacks, stays
            undefined, which renders as nothing.
    """
    from jinja2 import TemplateError

    given = {"tools": None, "documents": None} | {k: value for k, value in variables.items() if value is not None}
    try:
        with within(SECONDS):
            return compiled.render(messages=list(messages), add_generation_prompt=add_generation_prompt, **given)
    except TookTooLongError:
        what = f"the chat template took more than {SECONDS:g} s to render a row"
        raise AlignError(what, "choose another chat_template") from None
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        what = f"the chat template rejects the messages: {str(error).rstrip('.')}"
        raise AlignError(what, "change the row, or choose another chat_template") from None


def find(model_folder: Path) -> str | None:
    """The chat template that a model folder carries, or None."""
    own = model_folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    config = model_folder / "tokenizer_config.json"
    if not config.is_file():
        return None
    found = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def resolve(name_or_path: str, root: Path) -> str:
    """The template that a recipe's `chat_template` means: `plain`, or a .jinja file; raises AlignError.

    Args:
        root: the recipe's folder; a relative path is looked for in the current folder first, then here.
    """
    if name_or_path == "plain":
        return PLAIN
    path = user_paths.find(name_or_path, root, Path.is_file)
    if path is not None:
        template = user_paths.text(path, name_or_path)
        _check_syntax(template, name_or_path)
        return template
    given, places = Path(name_or_path), user_paths.candidates(name_or_path, root)
    folder = next((place.parent for place in places if place.parent.is_dir()), root)
    near = get_close_matches(given.name, [entry.name for entry in folder.iterdir()], n=1)
    remedy = f"did you mean '{given.with_name(near[0])}'?" if near else "give plain, or the path of a .jinja file"
    raise AlignError(f"there is no chat template '{name_or_path}'", remedy)


def _check_syntax(template: str, file: str) -> None:
    from jinja2 import TemplateSyntaxError

    try:
        _compiled(template)
    except TemplateSyntaxError as error:
        what = f"the chat template is not valid: {str(error.message).rstrip('.')}"
        raise AlignError(what, "correct the template there", place=Place(file, error.lineno)) from None


@lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    return environment().from_string(template)


def environment(generated: tuple[str, str] = ("", "")) -> Environment:
    """The environment that transformers documents for chat templates: whitespace, filters and functions as there.

    Args:
        generated: what is written before and after the content of `{% generation %}`.
    """
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the assistant says. Its content has a scope of its own."""

        tags = {"generation"}  # noqa: RUF012  # the name and form are jinja2's

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            before, after = (nodes.Output([nodes.TemplateData(text)]) for text in generated)
            return nodes.Scope([before, *body, after], lineno=line)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # jinja2's own filter writes for HTML and escapes < > & '
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    class Sandbox(ImmutableSandboxedEnvironment):
        """Bounds operators of which one call could take for ever or all the memory; none is worked out beforehand."""

        intercepted_binops = frozenset({"**", "*"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            listed = [isinstance(one, str | list | tuple) for one in (left, right)]
            if operator == "**" and isinstance(left, int) and isinstance(right, int):
                large = left.bit_length() * abs(right) > LARGEST
            elif any(listed) and not all(listed):
                sizes = [len(one) if isinstance(one, str | list | tuple) else one for one in (left, right)]
                large = all(isinstance(one, int) for one in sizes) and sizes[0] * sizes[1] > LARGEST
            else:
                large = False
            if large:
                raise TemplateError(f"the result of {operator} is too large")
            return super().call_binop(context, operator, left, right)

    made = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = to_json
    made.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return made
