"""The recipe keys of a user's probes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from align.errors import did_you_mean, shown
from align.functions.declared import NAMED

EVALUATE = "evaluate:"
GREEDY = ("contains", "regex")  # beside functions and metrics of `evaluate`: what looks at a greedy answer
METRICS = ("exact", *GREEDY, "choice", "perplexity", "accuracy")  # `accuracy` is the former name of `exact`
SETS = ("general", "lab")
RESERVED = {  # names that no probe can have, and what they mean
    "auto": "the probes chosen for the base model",
    "none": "that nothing is measured",
    "default": "all other probes in `max_drop`",
}
TOKENS = 64


def _metric(value: str) -> str:
    if value in METRICS or NAMED.fullmatch(value) or value.removeprefix(EVALUATE) not in ("", value):
        return value
    if value == EVALUATE.rstrip(":") or value == EVALUATE:
        raise ValueError("it does not say which metric: write `evaluate:exact_match`, or `evaluate:./my_metric`")
    known = f"{', '.join(METRICS[:-1])}, ./score.py:right or evaluate:exact_match"
    near = did_you_mean(value, METRICS)
    raise ValueError(f"{value!r} is not a metric; {near if near.startswith('did') else f'choose one of: {known}'}")


def _halves(value: object) -> str:
    return "two files" if isinstance(value, Mapping | Halves) else "one file"


class Halves(BaseModel):
    """Two files, one for each half of a probe."""

    model_config = ConfigDict(extra="forbid")

    gate: str = Field(min_length=1, description="File of the items that the gate decides on.")
    report: str = Field(min_length=1, description="File of the items that the report shows.")


class ProbeFile(BaseModel):
    """A user-defined probe."""

    model_config = ConfigDict(extra="forbid")

    data: Annotated[
        Annotated[str, Tag("one file")] | Annotated[Halves, Tag("two files")],
        Discriminator(_halves),
    ] = Field(
        description="File of held-out items that no stage trains on, one JSON object per line; or two files, one for "
        "each half, {gate: a.jsonl, report: b.jsonl}."
    )
    metric: Annotated[str, AfterValidator(_metric)] = Field(
        description="How an item is scored: exact, contains, regex, choice, perplexity, ./score.py:right or "
        "evaluate:NAME; accuracy is exact.",
        examples=[*METRICS, "./score.py:right", "evaluate:exact_match"],
    )
    field: str | None = Field(
        default=None, min_length=1, description="Which number of an `evaluate` metric is the score, if it has several."
    )
    tokens: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description=f"Longest greedy answer that is generated; {TOKENS} if null.",
    )
    seed: int | None = Field(
        default=None, ge=0, description="Split one file into equal halves by this seed; null: by content."
    )

    @property
    def files(self) -> dict[str, str]:
        """The files by the half that they fill; under "" one file for both."""
        return {"": self.data} if isinstance(self.data, str) else self.data.model_dump()

    @property
    def greedy(self) -> bool:
        """Whether a greedy answer is generated, and looked at."""
        return self.metric not in METRICS or self.metric in GREEDY

    @model_validator(mode="after")
    def _used(self) -> ProbeFile:
        """A key that would do nothing is refused."""
        if self.tokens is not None and not self.greedy:
            raise ValueError(f"`tokens` has no use, as {self.metric} generates no answer: write it without `tokens`")
        if self.field is not None and not self.metric.startswith(EVALUATE):
            raise ValueError("`field` is for metrics of `evaluate`: write it without `field`")
        if self.seed is not None and not isinstance(self.data, str):
            raise ValueError("`seed` splits one file, and here are two: write it without `seed`")
        return self


class ProbeTask(BaseModel):
    """A task of lm-evaluation-harness."""

    model_config = ConfigDict(extra="forbid")

    task: str = Field(
        min_length=1,
        description="A task or group of lm-evaluation-harness by name, or a folder or YAML file with one of your own.",
    )
    limit: int | None = Field(
        default=None, ge=2, description="Take only this many items from the start of each task; null: all."
    )
    field: str | None = Field(
        default=None,
        min_length=1,
        description="Which metric of the task is the score, as in `acc_norm` or `exact_match,flexible-extract`; null: "
        "its first.",
    )


def _shape(value: object) -> str:
    if isinstance(value, bool):
        return "a shipped set"
    task = isinstance(value, ProbeTask) or (isinstance(value, Mapping) and "task" in value)
    return "a task of the harness" if task else "a file of items"


OwnProbe = Annotated[
    Annotated[bool, Tag("a shipped set")]
    | Annotated[ProbeFile, Tag("a file of items")]
    | Annotated[ProbeTask, Tag("a task of the harness")],
    Discriminator(_shape),
]


def check_form(value: Any) -> Any:
    """Refuse what is neither a set's name nor a mapping of names.

    Raises:
        ValueError: in the words of a validator.
    """
    if isinstance(value, str | Mapping):
        return value
    words = value if isinstance(value, list) else []
    if len(words) == 1 and words[0] in ("auto", "none", *SETS):
        way = str(words[0])
    elif words and all(word in SETS for word in words):
        way = f"{{{', '.join(f'{word}: true' for word in dict.fromkeys(words))}}}"
    else:
        way = "auto`, or name your own, as in `probes: {medicine: {data: medicine.jsonl, metric: exact}}"
    raise ValueError(f"probes are one set or a mapping from names to probes, not {shown(value)}: write `probes: {way}`")


def check_names(value: Mapping[str, Any]) -> None:
    """Refuse names of probes that mean something else.

    Raises:
        ValueError: in the words of a validator.
    """
    if not value:
        raise ValueError("no probe is given: write `probes: none` to measure nothing")
    for name, one in value.items():
        if name in RESERVED:
            what = f"a probe cannot be called '{name}', which means {RESERVED[name]}"
            raise ValueError(f"{what}: choose another name")
        if isinstance(one, bool) and (name not in SETS or not one):
            raise ValueError(_no_set(name, one))
        if not re.fullmatch(r"\S(.*\S)?", name):
            raise ValueError("the name of a probe is empty, or begins or ends with a space: choose another name")


def _no_set(name: str, given: bool) -> str:
    if name in SETS:
        return f"'{name}' is false: write `{name}: true`, or leave it out"
    value = "true" if given else "false"
    what = f"the probe '{name}' is {value}, which only {' and '.join(SETS)} can be"
    return f"{what}: write `{name}: {{data: FILE, metric: exact}}`"
