"""Builds the optional C extension; everything else about the package is in pyproject.toml."""

import sys

from setuptools import Extension, setup

# Fused multiply-adds would round differently from pygame, which is built without them.
FLAGS = [] if sys.platform == "win32" else ["-O3", "-ffp-contract=off"]

setup(
    ext_modules=[
        Extension(
            "worldmodel.envs._raster",
            ["worldmodel/envs/_raster.c"],
            extra_compile_args=FLAGS,
            optional=True,  # without a compiler the same pictures are drawn by pygame, slower
        )
    ]
)
