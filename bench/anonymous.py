"""Records without who and where: a path in them is relative to the checkout or hashed.

So no home folder, no user's and no project's name leaves the machine with a result.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.manifest import ROOT

_PATH = re.compile(r"(?<![\w.~:/\\-])/[^\s/'\"`<>|:;,()\[\]{}=*?]+(?:/[^\s/'\"`<>|:;,()\[\]{}=*?]+)*/?")
_LIBRARY = re.compile(r".*/(lib/python3\.\d+/.*)")
_KERNEL = ("/proc/", "/sys/", "/dev/")


def anonymous(data: Any) -> Any:
    """What JSON holds, with the absolute paths in its texts replaced."""
    if isinstance(data, str):
        return _text(data)
    if isinstance(data, Mapping):
        return {_text(key): anonymous(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [anonymous(value) for value in data]
    return data


def _text(text: str) -> str:
    name, equals, value = text.partition("=")
    # a path as a whole may hold any character; one inside a sentence is taken to its first space or mark
    for before, whole in (("", text), (name + equals, value)):
        if whole.startswith("/") and os.path.exists(whole):
            return before + _path(whole)
    return _PATH.sub(lambda found: _path(found[0]) if _is_path(found[0]) else found[0], text)


def _is_path(text: str) -> bool:
    """One step from the root may be a unit (`/s`) or half of an alternative, unless something is there."""
    return text.count("/") > 1 or os.path.exists(text)


def _path(path: str) -> str:
    """Relative where it lies in the checkout or in a Python library, else its hash with its ending."""
    if path.startswith(_KERNEL):
        return path
    whole = Path(path)
    for root in (ROOT, ROOT.resolve()):
        if whole.is_relative_to(root):
            return str(whole.relative_to(root))
    library = _LIBRARY.match(path)
    if library:
        return library[1]
    return f"path:{hashlib.sha256(str(whole).encode()).hexdigest()[:12]}{whole.suffix}"
