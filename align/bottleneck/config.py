"""What a bottleneck adapter is made of; saved as adapter_config.json with the peft_type BOTTLENECK."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from peft import PeftConfig, PeftType

NonLinearity = Literal["gelu", "relu", "silu", "tanh"]
Placement = Literal["pfeiffer", "houlsby"]


def _peft_type(name: str) -> PeftType:
    """The member of PeftType called `name`, added where PEFT does not have it.

    PEFT looks its methods up by this enum and offers no way to add to it. A member of the same class, entered into the
    enum's own tables, is equal to its string, hashes like it and pickles by value, and no code of PEFT is replaced.
    """
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_ = member._value_ = name
        member._sort_order_ = len(PeftType.__members__)
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
        type.__setattr__(PeftType, name, member)  # EnumType's own __setattr__ refuses members
    return PeftType.__members__[name]


PEFT_TYPE = _peft_type("BOTTLENECK")


@dataclass
class BottleneckConfig(PeftConfig):
    """The settings of one adapter. With d the width of the hidden state, each place has d*r + r + r*d + d weights.

    Raises:
        ValueError: a setting that cannot be, named with its value.
    """

    r: int = field(default=64, metadata={"help": "width of the bottleneck"})
    non_linearity: NonLinearity = field(default="gelu", metadata={"help": "between the two projections"})
    placement: Placement = field(
        default="pfeiffer", metadata={"help": "pfeiffer: after the MLP; houlsby: after the attention and the MLP"}
    )
    dropout: float = field(default=0.0, metadata={"help": "share of the adapter's inputs dropped in training"})
    target_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={"help": "blocks that an adapter follows, as for LoRA; None: found by placement in the model itself"},
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "indices of the layers that get an adapter; None: all"}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "modules that are trained in full and saved with the adapter"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if not isinstance(self.r, int) or self.r < 1:
            raise ValueError(f"r must be a whole number of at least 1, not {self.r!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout!r}")
        for name, choices in (("non_linearity", NonLinearity), ("placement", Placement)):
            value = getattr(self, name)
            if value not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, not {value!r}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; names in alphabetical order, so that equal adapters have equal files."""
        settings: dict[str, Any] = super().to_dict()
        return {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
