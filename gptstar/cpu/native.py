"""Operators of our own in C++, compiled for the processor at hand the first time they are needed and kept on disk.

There are few of them, and nothing depends on them: where there is no compiler, torch does the same more slowly.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from gptstar.files import cache_folder

FLAGS = ("-O3", "-march=native", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-std=c++20", "-shared", "-fPIC")


def load_operators(source: Path) -> bool:
    """Registers with torch what a C++ file defines, seconds after the first call on a machine; whether that worked.

    The library is kept in `$XDG_CACHE_HOME/gptstar`, ~/.cache/gptstar by default, under a name that covers the text,
    the compiler, torch's version and the processor. What g++ compiles calls the OpenMP library that torch has loaded,
    so there is one set of threads.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return False
    try:
        folder = cache_folder()
        command = [*compiler.split(), *FLAGS, *_wide(), str(source), *_with_torch()]
        made_of = [source.read_text(), FLAGS, torch.__version__, _version(compiler), *_processor()]
        target = folder / f"{source.stem}-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}.so"
        if target.exists():
            try:
                torch.ops.load_library(str(target))
                return True
            except OSError:  # damaged, by a power cut say: made again
                target.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as apart:  # two processes may compile at the same time
            output = Path(apart) / "library.so"
            subprocess.run([*command, "-o", str(output)], check=True, capture_output=True, timeout=120)
            os.replace(output, target)
        torch.ops.load_library(str(target))
    # A compiler that knows no OpenMP, a folder that cannot be written, no home.
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return False
    return True


def _with_torch() -> list[str]:
    """Its headers and libraries."""
    root = Path(torch.__file__).parent
    includes = [f"-isystem{root / 'include' / part}" for part in ("", "torch/csrc/api/include")]
    return [*includes, f"-L{root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]


@cache
def _processor() -> tuple[str, ...]:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return (platform.machine(), platform.processor())
    return tuple(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))


@cache
def _version(compiler: str) -> str:
    return subprocess.run(
        [*compiler.split(), "--version"], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def _wide() -> tuple[str, ...]:
    """gcc uses half of a 512-bit register unless it is told otherwise."""
    return ("-mprefer-vector-width=512",) if any("avx512f" in line for line in _processor()) else ()
