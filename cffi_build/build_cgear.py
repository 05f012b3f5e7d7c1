"""Builds `chunkd.chunkers._cgear` from cgear.c and cgear.cdef, and `_crules` from crules.c and crules.cdef, in cffi's
API mode. setup.py runs it in its folder.

The C file, the names of the cdef, its declarations and cffi's wrappers are compiled as one unit: a symbol that the C
file lacks, or declares with another type, is a compiler's error.
"""

from __future__ import annotations

import re
from pathlib import Path

from cffi import FFI


def builder(name: str) -> FFI:
    """What compiles NAME.c, in the folder above, as `chunkd.chunkers._NAME`."""
    cdef = Path(__file__).with_name(f"{name}.cdef").read_text(encoding="ascii")
    names_exist = "".join(f"    (void){symbol};\n" for symbol in re.findall(rf"\b({name}_\w+)\(", cdef))
    functions = re.sub(r"typedef struct \{.*?\} \w+;\n", "", cdef, flags=re.DOTALL)
    ffi = FFI()
    ffi.cdef(cdef)
    ffi.set_source(
        f"chunkd.chunkers._{name}",
        f'#include "{name}.c"\n\nstatic inline void names_exist(void)\n{{\n{names_exist}}}\n\n{functions}',
        include_dirs=["."],
        depends=[f"{name}.c", f"cffi_build/{name}.cdef"],
        # No -march: a wheel runs on other machines than the one that built it.
        extra_compile_args=["-O3"],
    )
    return ffi


ffibuilder = builder("cgear")
rules_builder = builder("crules")
