"""A scan as it stands in spectrum.json and in what `align spectrum --json` writes. No torch."""

from __future__ import annotations

from align.run_folder.records import Record


class SpectrumModule(Record):
    """One weight matrix of a scan: its signal-to-noise ratio, and the threshold that parts the two."""

    name: str
    type: str
    shape: tuple[int, ...] = ()
    snr: float
    threshold: float | None = None
    degenerate: bool = False


class Spectrum(Record):
    """The signal-to-noise ratios of the layers; of a stage also which of them it trained, and by which threshold."""

    estimator: str
    modules: tuple[SpectrumModule, ...] = ()
    chosen: tuple[str, ...] = ()
    snr_threshold: float | None = None
