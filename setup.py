"""The native engine as an optional extension: without a C++ compiler the package installs all the same."""

import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("fl_core", "training", "native", "src")


class BuildKernels(build_ext):
    """Builds a library that is loaded with ctypes, not imported."""

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """None: there is no PyInit function to export."""
        return []


kernels = Extension(
    "fl_core.training.native._kernels",
    sources=sorted(str(path) for path in SOURCES.glob("*.cpp")),
    depends=sorted(str(path) for path in SOURCES.glob("*.hpp")),
    language="c++",
    # No -march=native: the kernels for each instruction set ask for it themselves and are chosen at run time.
    # No -ffast-math: NaN and infinities mean here what they mean in PyTorch, and its start-up code would flush
    # subnormals to zero in the whole process. Errno and floating-point traps are all that is given up. Python's own
    # flags have -fwrapv, which its C code needs and the kernels do not: addresses of 32-bit indices would cost a fifth.
    extra_compile_args=[
        "-std=c++17",
        "-O3",
        "-fno-wrapv",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=fast",
        "-fvisibility=hidden",
        "-pthread",
    ],
    extra_link_args=["-pthread"],
    # Where the kernels are what is asked for, a build that fails must not pass.
    optional=not os.environ.get("OPTIGRAD_REQUIRE_NATIVE"),
)

setup(ext_modules=[kernels], cmdclass={"build_ext": BuildKernels})
