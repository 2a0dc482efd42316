"""The parts of the build that pyproject.toml cannot say: the C++ extensions and the mapped `kernels/` folder."""

import sys
from glob import glob

from pybind11.setup_helpers import Pybind11Extension
from setuptools import find_packages, setup

KERNELS = "megatron_lite.kernels"
# PyTorch's threads are GNU's OpenMP on Linux, and these then share them; elsewhere there is but one.
OPENMP = ["-fopenmp"] if sys.platform == "linux" else ["-Wno-unknown-pragmas"]

setup(
    packages=[
        *find_packages(include=["megatron_lite", "megatron_lite.*"]),
        KERNELS,
        *(f"{KERNELS}.{name}" for name in find_packages("kernels")),
    ],
    package_dir={KERNELS: "kernels"},
    ext_modules=[
        Pybind11Extension(
            "megatron_lite.data._helpers",
            [f"megatron_lite/data/csrc/{name}.cpp" for name in ("helpers", "index", "megatron", "order", "tokens")],
            depends=["megatron_lite/data/csrc/arrays.h"],
            cxx_std=17,
            # Without contraction a blend rounds alike on every processor, fused multiply-add or not.
            extra_compile_args=["-O3", "-Wall", "-Wextra", "-ffp-contract=off"],
        ),
        Pybind11Extension(
            "megatron_lite.data._bpe",
            ["megatron_lite/data/csrc/bpe.cpp"],
            cxx_std=17,
            extra_compile_args=["-O3", "-Wall", "-Wextra"],
        ),
        Pybind11Extension(
            "megatron_lite.curation._text",
            ["megatron_lite/curation/csrc/text.cpp"],
            depends=glob("megatron_lite/curation/csrc/*.h"),
            cxx_std=17,
            extra_compile_args=["-O3", "-Wall", "-Wextra", "-ffp-contract=off"],
        ),
        Pybind11Extension(
            "megatron_lite.curation._dedup",
            ["megatron_lite/curation/csrc/dedup.cpp"],
            depends=glob("megatron_lite/curation/csrc/*.h"),
            cxx_std=17,
            extra_compile_args=["-O3", "-Wall", "-Wextra"],
        ),
        Pybind11Extension(
            "megatron_lite.curation._lists",
            ["megatron_lite/curation/csrc/lists.cpp"],
            depends=glob("megatron_lite/curation/csrc/*.h"),
            cxx_std=17,
            extra_compile_args=["-O3", "-Wall", "-Wextra", "-ffp-contract=off"],
        ),
        Pybind11Extension(
            "megatron_lite.inference._paged",
            ["megatron_lite/inference/csrc/paged_attention.cpp"],
            cxx_std=17,
            extra_compile_args=[
                *("-O3", "-Wall", "-Wextra"),
                # What a compiler needs to know to sum in vectors; not -ffast-math, which changes the whole process.
                *("-fno-math-errno", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"),
                *OPENMP,
            ],
            extra_link_args=[flag for flag in OPENMP if flag == "-fopenmp"],
        ),
    ],
)
