# SPDX-License-Identifier: Apache-2.0
"""The 4D video generator: from reference frames of a view x time grid to all of its frames.

Importing this package costs nothing; torch and diffusers are loaded by the first name that
needs them, never by `viewtime.generator.prior` or `viewtime.generator.baselines`.
"""

from typing import Any

__all__ = ["Cancelled", "Generator", "GeneratorError", "generate", "load_generator"]

_HOMES = {
    "Cancelled": "viewtime.generator.sampler",
    "Generator": "viewtime.generator.load",
    "GeneratorError": "viewtime.generator.errors",
    "generate": "viewtime.generator.generation",
    "load_generator": "viewtime.generator.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
