"""Spectrum (Hartford et al. 2024, arXiv 2406.06623): layers ranked within their type by signal-to-noise ratio.

noise.py      one matrix: eigenvalues, threshold, ratio
scan.py       all matrices of a model's files, or of a loaded model, with a cache
choose.py     what a module is, and which ones are trained
analyzer.py   the same on a loaded model, and freezing the others
table.py      a scan for the terminal and as JSON
"""

from __future__ import annotations

from align.spectrum.choose import Choice, Matrix, Record, by_layers, by_threshold

__all__ = ["Choice", "Matrix", "Record", "by_layers", "by_threshold"]
