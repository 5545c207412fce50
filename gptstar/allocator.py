"""How a CPU process gets its memory. Imports no torch: it has to be asked before torch allocates."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys


def keep_freed_memory() -> None:
    """Lets a CPU process reuse the memory of freed tensors instead of giving it back to the kernel.

    By default glibc returns every large block at once, and the next tensor page-faults its way through fresh zeroed
    memory: benchmarks/train_step.py runs transformers with and without this setting and shows what it costs.
    Huge pages make the rest cheaper. Call it before the first large tensor; does nothing where there is no glibc.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks for huge pages
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    mallopt(m_mmap_max, 0)  # no block of its own for a large tensor
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 64 << 20)


def give_back_memory() -> None:
    """Returns to the kernel what has been freed, for those who count."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
