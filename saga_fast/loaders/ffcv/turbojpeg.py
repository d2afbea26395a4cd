"""libturbojpeg for compiled code: the library that FFCV was built with, called with the exact DCT.

FFCV's ``imdecode`` uses the fast DCT, whose pixels differ by some levels from those of other JPEG readers, and so
from the folder engine's. The functions below are known to LLVM by name, not by address, so that Numba can cache
compiled code for the next process.
"""

from __future__ import annotations

import ctypes
from typing import Any

import ffcv._libffcv
import llvmlite.binding
from llvmlite import ir
from numba.core import types

from saga_fast.kernels._jit import intrinsic

RGB = 0  # TJPF_RGB
YUV420 = 2  # TJSAMP_420
WILL_NEED = 3  # MADV_WILLNEED
_BYTES: Any = types.CPointer(types.uint8)  # type: ignore[no-untyped-call]


def _function(name: str, result: Any, *arguments: Any) -> Any:
    """The C function of FFCV's extension, or of a library that it is linked with."""
    address = ctypes.cast(getattr(LIBRARY, name), ctypes.c_void_p).value
    llvmlite.binding.add_symbol(f"saga_fast_{name}", address)
    return types.ExternalFunction(f"saga_fast_{name}", result(*arguments))


LIBRARY = ctypes.CDLL(ffcv._libffcv.__file__)
"""The library, for interpreted code."""
for _name in ("tjInitDecompress", "tjInitCompress"):
    getattr(LIBRARY, _name).restype = ctypes.c_void_p

init_decompress = _function("tjInitDecompress", types.intp)
"""() -> handle, for one thread at a time."""

destroy = _function("tjDestroy", types.int32, types.intp)
"""(handle) -> 0."""

decompress = _function(
    "tjDecompress2",
    types.int32,
    types.intp,
    types.intp,
    types.uint64,
    types.intp,
    types.int32,
    types.int32,
    types.int32,
    types.int32,
    types.int32,
)
"""(handle, source, bytes, target, width, bytes per row, height, pixel format, flags) -> 0, or -1 for what libjpeg
refuses or warns of. Flags 0: the accurate DCT and smooth chroma, as simplejpeg and Pillow decode."""

read_header = _function(
    "tjDecompressHeader3",
    types.int32,
    types.intp,
    types.intp,
    types.uint64,
    types.intp,
    types.intp,
    types.intp,
    types.intp,
)
"""(handle, source, bytes, addresses of four int32: width, height, subsampling, colours) -> 0, or -1."""

error_text = _function("tjGetErrorStr2", types.intp, types.intp)
"""(handle) -> address of what the last call complained of first, text that ends in a zero."""

find_text = _function("strstr", types.intp, types.intp, types.intp)
"""(address of a text, address of another) -> where in it the other begins, or 0."""

advise = _function("madvise", types.int32, types.intp, types.uint64, types.int32)
"""(address of a page, bytes, advice) -> 0 or -1."""


@intrinsic
def pointer(_context: Any, _address: Any) -> Any:
    """The bytes at an address, for ``numba.carray``. Whoever owns them must outlive the use."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return _BYTES(types.intp), generate
