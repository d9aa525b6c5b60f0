"""Configurations and manifests are installed as parts of the package; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["medsam3*"]), "medsam3.configs", "medsam3.data_manifests"])
