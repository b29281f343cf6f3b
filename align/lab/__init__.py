"""The lab: a tiny real base model, the synthetic world it was trained on, and the builder that made it.

Nothing here needs a network or a GPU. Only `tokenizer`, `pretrain` and `build` import torch or transformers; the rest
is pure Python, so that `align check` and `align plan` can look at lab data in milliseconds.
"""

from pathlib import Path
from typing import Final

MODEL_DIR: Final[Path] = Path(__file__).resolve().parent / "model"
"""Folder of the shipped base model, in the ordinary Hugging Face layout."""
