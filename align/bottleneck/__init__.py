"""Bottleneck adapters as a PEFT method: Linear(d, r), a non-linearity, Linear(r, d), added to a block's output.

Houlsby et al. 2019 (arXiv 1902.00751) put two into each layer, Pfeiffer et al. 2020 (arXiv 2005.00052) one. The
up-projection starts at zero, so a new adapter changes nothing. PEFT knows the method once this package is imported:

    import align.bottleneck

    model = PeftModel.from_pretrained(base, folder)

and over LoRA, whose layers stay active and frozen beneath:

    model = PeftModel.from_pretrained(base, lora_folder, adapter_name="sft")
    model = PeftModel.from_pretrained(model.get_base_model(), folder)

It imports torch and peft.
"""

from align.bottleneck.config import BottleneckConfig
from align.bottleneck.model import BottleneckModel

__all__ = ["BottleneckConfig", "BottleneckModel"]
