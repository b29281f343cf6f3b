"""Which share of a stage's update each layer gets, and which methods have one at all. No torch.

`flat`: the same share everywhere (WiSE-FT, Wortsman et al. 2021, arXiv 2109.01903). `lines`: a share that grows with
depth (LiNeS, Wang et al. 2024, arXiv 2410.17146), since early layers hold what is general.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from align.parameterization import chain
from align.parameterization.chain import Layer
from align.run_folder.interpolation import Shape

GRID = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)  # below its last the policy that came in is as good

Place = tuple[str, int]
"""A layer: what its name begins with, and its number."""


def refusal(came_in: Sequence[Layer], own: Layer) -> str | None:
    """Why there is no share of what a stage trains, as a sentence without its end; None where there is.

    Args:
        came_in: the adapters of the policy that the stage starts from.
    """
    linear, method = own.traits.linear, own.keys.method
    if isinstance(linear, str):
        return f"no share can be taken of the {method} of stage '{own.stage}': {linear}"
    if linear.further is None and chain.continues(came_in, own):
        what = f"no share can be taken of the {method} that stage '{own.stage}' trains further from stage "
        return what + f"'{came_in[-1].stage}': between two adapters of this method lies none"
    return None


def place_of(name: str) -> Place | None:
    """The layer that a parameter or module belongs to, by its name; None of what lies outside all layers."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return None if at is None else (".".join(parts[:at]), int(parts[at]))


def depths(names: Iterable[str]) -> dict[str, int]:
    """How many layers each stack of layers has, by what their names begin with."""
    found: dict[str, int] = {}
    for name in names:
        if (place := place_of(name)) is not None:
            found[place[0]] = max(found.get(place[0], 0), place[1] + 1)
    return found


def of(name: str, share: float, shape: Shape, layers: Mapping[str, int]) -> float:
    """The share that one parameter gets, from 0, as it came in, to 1, as trained.

    Args:
        share: the mean over the layers. With `lines`, a share s of at least 1/2 grows linearly from 2s - 1 in the first
            layer, which is LiNeS with alpha = 2s - 1, to 1 in the last; a smaller one from 0 to 2s. What lies outside
            the layers (embeddings, head, last normalisation) gets that of the first, as in the paper's program.
        layers: of `depths`.
    """
    if shape == "flat":
        return share
    first, last = (2 * share - 1, 1.0) if share >= 0.5 else (0.0, 2 * share)
    place = place_of(name)
    if place is None:
        return first
    count = layers[place[0]]
    return share if count == 1 else first + (last - first) * place[1] / (count - 1)
