"""What is drawn at random goes on as if nothing had been drawn in between."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def unmoved() -> Iterator[None]:
    """Within, random numbers are drawn that leave those drawn afterwards as they would have been."""
    numbers, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(numbers)
            np.random.set_state(arrays)
