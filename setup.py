"""The parts of the build that pyproject.toml cannot say: the C++ extensions and the mapped `kernels/` folder."""

from glob import glob

from pybind11.setup_helpers import Pybind11Extension
from setuptools import find_packages, setup

KERNELS = "megatron_lite.kernels"

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
    ],
)
