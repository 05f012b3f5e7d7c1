"""Builds `chunkd.chunkers._cgear` from cgear.c and cgear.cdef, in cffi's API mode. setup.py runs it in its folder.

cgear.c, the names of cgear.cdef, its declarations and cffi's wrappers are compiled as one unit: a symbol that cgear.c
lacks, or declares with another type, is a compiler's error.
"""

from __future__ import annotations

import re
from pathlib import Path

from cffi import FFI

CDEF = Path(__file__).with_name("cgear.cdef").read_text(encoding="ascii")
NAMES_EXIST = "".join(f"    (void){name};\n" for name in re.findall(r"\b(cgear_\w+)\(", CDEF))

ffibuilder = FFI()
ffibuilder.cdef(CDEF)
ffibuilder.set_source(
    "chunkd.chunkers._cgear",
    f'#include "cgear.c"\n\nstatic inline void names_exist(void)\n{{\n{NAMES_EXIST}}}\n\n{CDEF}',
    include_dirs=["."],
    depends=["cgear.c", "cffi_build/cgear.cdef"],
    # No -march: a wheel runs on other machines than the one that built it.
    extra_compile_args=["-O3"],
)
