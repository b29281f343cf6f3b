"""Finds the packages of a wheel: `align`, and inside it the stages, pipelines and recipes that stand beside it here."""

from setuptools import find_namespace_packages, find_packages, setup

BESIDE = find_namespace_packages(include=["stages*", "pipelines*", "recipes*"])

setup(packages=[*find_packages(include=["align", "align.*"]), *(f"align.{name}" for name in BESIDE)])
