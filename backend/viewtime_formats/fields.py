# SPDX-License-Identifier: Apache-2.0
"""Reading JSON that somebody else wrote: each field is checked once, here, and named in the error.

Never trusts a count, a type or a path, and never raises anything but the caller's ViewtimeError.
"""

from __future__ import annotations

import json
import math
from pathlib import Path, PureWindowsPath
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from .errors import ViewtimeError

MAX_JSON_BYTES = 64 << 20


class Fields:
    """One JSON object with the words for its errors.

    where: file and place, as it shall stand at the beginning of a message.
    error: the ViewtimeError subclass to raise.
    """

    def __init__(self, obj: Any, where: str, error: type[ViewtimeError]) -> None:
        self.where = where
        self.error = error
        if not isinstance(obj, dict):
            raise error(f"{where}: is {_shown(obj)}; a JSON object is needed")
        self.obj: dict[str, Any] = obj

    def fail(self, key: str, need: str) -> NoReturn:
        has = _shown(self.obj[key]) if key in self.obj else "missing"
        raise self.error(f"{self.where}: {key} is {has}; {need}")

    def integer(self, key: str, low: int, high: int) -> int:
        value = self.obj.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fail(key, f"a whole number from {low} to {high} is needed")
        return value

    def optional_integer(self, key: str, low: int, high: int) -> int | None:
        return None if self.obj.get(key) is None else self.integer(key, low, high)

    def number(self, key: str, low: float, high: float) -> float:
        value: Any = self.obj.get(key)
        if not _is_number(value) or not low <= value <= high:
            self.fail(key, f"a number from {low:g} to {high:g} is needed")
        return float(value)

    def text(self, key: str, default: str | None = None, limit: int = 100_000) -> str:
        value = self.obj.get(key, default)
        if not isinstance(value, str) or len(value) > limit:
            self.fail(key, f"a text of at most {limit} characters is needed")
        return value

    def boolean(self, key: str) -> bool:
        value = self.obj.get(key)
        if not isinstance(value, bool):
            self.fail(key, "true or false is needed")
        return value

    def sequence(self, key: str, limit: int) -> list[Any]:
        value = self.obj.get(key)
        if not isinstance(value, list) or len(value) > limit:
            self.fail(key, f"a list of at most {limit} entries is needed")
        return value

    def array(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """A nested list of finite numbers with exactly `shape`, as float64."""
        value = self.obj.get(key)
        if not _has_shape(value, shape):
            size = " x ".join(str(n) for n in shape)
            self.fail(key, f"{size} finite numbers as nested lists are needed")
        return np.array(value, np.float64)

    def optional_array(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
        return None if self.obj.get(key) is None else self.array(key, shape)


def read_json(
    path: Path, error: type[ViewtimeError], *, format_name: str, version: int = 1
) -> Fields:
    """The object in `path`, whose "format" and "version" are the ones asked for.

    Raises `error` for a missing, oversized, non-UTF-8 or non-JSON file and for another format.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        raise error(f"{path}: there is no such file; a {format_name} file is needed") from None
    except (OSError, ValueError) as problem:
        raise error(f"{path}: cannot be read ({problem})") from None
    if len(raw) > MAX_JSON_BYTES:
        raise error(f"{path}: is larger than {MAX_JSON_BYTES >> 20} MiB; it is no {format_name}")
    try:
        obj = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as problem:
        reason = " ".join(str(problem).split())[:160]
        raise error(f"{path}: is not valid JSON ({reason})") from None
    fields = Fields(obj, str(path), error)
    if fields.obj.get("format") != format_name:
        fields.fail("format", f'"{format_name}" is needed')
    if isinstance(fields.obj.get("version"), bool) or fields.obj.get("version") != version:
        fields.fail("version", f"this Viewtime reads version {version}; update the older side")
    return fields


def inside(folder: Path, relative: Any, where: str, error: type[ViewtimeError]) -> Path:
    """The file that `relative` (forward slashes) names inside `folder`, which it may not leave.

    Absolute paths, drive letters, backslashes, ``..`` and symbolic links that lead out are
    refused on every system alike, because captures travel between systems.
    """
    need = "a relative path with forward slashes inside the folder is needed"
    if not isinstance(relative, str) or not 0 < len(relative) <= 1024 or "\\" in relative:
        raise error(f"{where} is {_shown(relative)}; {need}")
    windows = PureWindowsPath(relative)
    if windows.drive or windows.root or ".." in windows.parts or not relative.isprintable():
        raise error(f"{where} is {_shown(relative)}; {need}")
    path = folder / relative
    try:
        real, root = path.resolve(), folder.resolve()
    except (OSError, RuntimeError, ValueError):
        raise error(f"{where} is {_shown(relative)}, which cannot be followed; {need}") from None
    if not real.is_relative_to(root) or real == root:
        raise error(f"{where} is {_shown(relative)}, which leads out of {folder}; {need}")
    return path


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
    if not shape:
        return _is_number(value)
    if not isinstance(value, (list, tuple)) or len(value) != shape[0]:
        return False
    return all(_has_shape(item, shape[1:]) for item in value)


def _shown(value: Any) -> str:
    """The value as a message can carry it: one short line whatever it is."""
    if isinstance(value, dict):
        return f"an object with {len(value)} fields"
    if isinstance(value, list) and len(value) > 8:
        return f"a list of {len(value)}"
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python prints
        return "a huge number"
    return text if len(text) <= 80 else text[:77] + "..."
