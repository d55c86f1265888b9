"""Builds bertrt._cuda alone; everything else is in pyproject.toml beside this file.

It is built in the sources' own tree, of which it needs the rest: there are wheels of it, and no
sdist.
"""

import runpy
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "cuda"
BUILD.mkdir(parents=True, exist_ok=True)

build = runpy.run_path(str(ROOT / "setup.py"))
version = runpy.run_path(str(ROOT / "bertrt" / "version.py"))["__version__"]

setup(
    version=version,
    install_requires=[f"bertrt=={version}"],
    ext_modules=[build["CMakeExtension"]("bertrt._cuda")],
    setup_requires=build["nvcc_wheel"](),
    cmdclass={"build_ext": build["CMakeBuild"]},
    options={"build": {"build_base": str(BUILD)}, "egg_info": {"egg_base": str(BUILD)}},
)
