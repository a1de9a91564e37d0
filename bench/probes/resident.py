"""A process' memory as the kernel and the C library see it: resident bytes, the heap's free part, mapped files."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

_STATUS = Path("/proc/self/status")
_MAPS = Path("/proc/self/maps")
_CLEAR = Path("/proc/self/clear_refs")
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33 and later; all in bytes or counts."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    ]


def process_status() -> dict[str, int]:
    """This process' resident bytes: now, highest since the reset, anonymous and file-backed. Empty off Linux."""
    names = {"VmRSS": "now", "VmHWM": "peak", "RssAnon": "anonymous", "RssFile": "file"}
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return {}
    fields = (line.partition(":") for line in lines)
    return {names[key]: int(value.split()[0]) * 1024 for key, _, value in fields if key in names}


def at_rest() -> dict[str, int]:
    """`process_status()`, and what is `allocated()`, once garbage is gone and free pages are given back."""
    gc.collect()
    give_back()
    return {**process_status(), "allocated": allocated()}


def reset_high_water() -> str:
    """Forget the highest resident bytes so far; returns why that was not possible, or ''."""
    try:
        _CLEAR.write_text("5")
    except OSError as error:
        return f"the high-water mark cannot be reset here ({error.strerror})"
    return ""


def give_back() -> None:
    """Return free pages of the heap to the kernel: reading weights leaves as many behind as the weights have.

    glibc keeps them for later (malloc_trim(3)); elsewhere nothing happens.
    """
    if _libc is not None and hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def free_in_heap() -> int | None:
    """Resident bytes of the main heap that no allocation uses: fragments, and what is kept for later [B].

    Its resident pages (mincore(2)) less the bytes in use (mallinfo2(3)). Bytes in use that were never touched make it
    too small. None where the C library does not say.
    """
    if _libc is None or not hasattr(_libc, "mallinfo2"):
        return None
    begin = _heap_begin()
    if begin is None:
        return None
    _libc.sbrk.restype = ctypes.c_size_t
    length = _libc.sbrk(ctypes.c_ssize_t(0)) - begin
    pages = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
    if _libc.mincore(ctypes.c_void_p(begin), ctypes.c_size_t(length), pages) != 0:
        return None
    _libc.mallinfo2.restype = _MallInfo
    used = int(_libc.mallinfo2().uordblks)
    return max(pages.raw.count(b"\x01") * mmap.PAGESIZE - used, 0)


def allocated() -> int:
    """Bytes in use that were asked of the C library, tensors and all else [B]; 0 where it does not say."""
    if _libc is None or not hasattr(_libc, "mallinfo2"):
        return 0
    _libc.mallinfo2.restype = _MallInfo
    info = _libc.mallinfo2()
    return int(info.uordblks + info.hblkhd)


def in_files(holdings: Mapping[str, Iterable[Tensor]]) -> dict[str, list[Tensor]]:
    """The tensors that lie in mapped files, as weights do that were read without a copy."""
    ranges = [
        (begin, end) for begin, end, path in _mappings() if path.startswith("/") and not path.startswith("/dev/shm")
    ]
    found: dict[str, list[Tensor]] = {}
    for component, tensors in holdings.items():
        for tensor in tensors:
            place = tensor.untyped_storage().data_ptr() if tensor.device.type == "cpu" else 0
            if any(begin <= place < end for begin, end in ranges):
                found.setdefault(component, []).append(tensor)
    return found


def _mappings() -> list[tuple[int, int, str]]:
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        place, _, _, _, _, *path = line.split(maxsplit=5)
        begin, _, end = place.partition("-")
        found.append((int(begin, 16), int(end, 16), path[0] if path else ""))
    return found


_known_begin: list[int] = []


def _heap_begin() -> int | None:
    """Where the heap begins; it never moves."""
    if not _known_begin:
        _known_begin.extend(begin for begin, _, path in _mappings() if path == "[heap]")
    return _known_begin[0] if _known_begin else None
