"""The rules of other products, as cffi builds them from crules.c; cffi_build/crules.cdef is the whole border.

The functions cut one piece of a file, and run without the GIL. Their contract is the comment at the head of crules.c.
"""

from collections.abc import Iterable
from typing import Protocol, type_check_only

from typing_extensions import Buffer

@type_check_only
class Array(Protocol):
    """C memory, seen as an array."""

@type_check_only
class Piece(Protocol):
    """`crules_piece`. It keeps no Python object alive that its pointers are from."""

    data: Array
    n: int
    settled: int
    last: int
    cuts: Array
    capacity: int
    open: int
    hash: int
    hole: int

@type_check_only
class _FFI(Protocol):
    def new(self, cdecl: str, init: Iterable[int] | int = ...) -> Array: ...
    def from_buffer(self, cdecl: str, buffer: Buffer) -> Array: ...
    def unpack(self, array: Array, length: int) -> list[int]: ...

@type_check_only
class _Lib(Protocol):
    def crules_buzhash(
        self,
        table: Array,
        window: int,
        min_bytes: int,
        max_bytes: int,
        divisor: int,
        remainder: int,
        piece: Piece,
        /,
    ) -> int: ...
    def crules_buzhash_ahead(
        self,
        table: Array,
        window: int,
        min_bytes: int,
        max_bytes: int,
        divisor: int,
        remainder: int,
        piece: Piece,
        /,
    ) -> int: ...
    def crules_gear(self, table: Array, mask: int, min_bytes: int, max_bytes: int, piece: Piece, /) -> int: ...
    def crules_rabin(
        self, out: Array, mod: Array, shift: int, mask: int, min_bytes: int, max_bytes: int, piece: Piece, /
    ) -> int: ...
    def crules_fastcdc(
        self,
        table: Array,
        mask_small: int,
        mask_large: int,
        min_bytes: int,
        mean_bytes: int,
        max_bytes: int,
        piece: Piece,
        /,
    ) -> int: ...
    def crules_rolling_sum(self, bits: int, threshold: int, piece: Piece, /) -> int: ...

ffi: _FFI
lib: _Lib
