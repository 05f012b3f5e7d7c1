"""The native core, as cffi builds it from cgear.c; cffi_build/cgear.cdef is the whole border.

`lib.cgear_cut` and its like cut one buffer, and run without the GIL. Their contract is the comment at the head of
cgear.c.
"""

from types import TracebackType
from typing import Any, Protocol, Self, type_check_only

from typing_extensions import Buffer

@type_check_only
class Array(Protocol):
    """C memory, seen as an array."""

    def __len__(self) -> int: ...
    def __getitem__(self, at: int) -> int: ...
    def __setitem__(self, at: int, value: int) -> None: ...
    def __add__(self, values: int) -> Array: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

@type_check_only
class _FFI(Protocol):
    def new(self, cdecl: str, init: Any = ...) -> Array: ...
    def from_buffer(self, cdecl: str, buffer: Buffer) -> Array: ...
    def unpack(self, array: Array, length: int) -> list[int]: ...

@type_check_only
class Cut(Protocol):
    """What the kernels have in common."""

    def __call__(
        self,
        gear: Array,
        min_bytes: int,
        mask_bits: int,
        max_bytes: int,
        hash: Array,  # noqa: A002
        length: Array,
        data: Array,
        n: int,
        cuts: Array,
        capacity: int,
        /,
    ) -> int: ...

@type_check_only
class _Lib(Protocol):
    cgear_cut: Cut
    cgear_cut_avx2: Cut
    cgear_cut_plain: Cut
    def cgear_has_avx2(self) -> int: ...

ffi: _FFI
lib: _Lib
