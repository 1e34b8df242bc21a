# SPDX-License-Identifier: Apache-2.0
"""`blender -b FILE --command viewtime export ...` for a farm that has Blender as a Python module.
Opens the .blend in a process of its own, hands the rest of the line over; never saves the file."""

from __future__ import annotations

import os
import sys
from importlib import import_module

EXTENSION = "bl_ext.user_default.viewtime"


def main() -> int:
    import bpy

    if len(sys.argv) < 2:
        print("usage: farm_export.py FILE.blend --out DIR [--object NAME] [--frames A:B]")
        return 2
    bpy.ops.wm.open_mainfile(filepath=sys.argv[1])
    if EXTENSION not in bpy.context.preferences.addons:
        bpy.ops.preferences.addon_enable(module=EXTENSION)
    return import_module(f"{EXTENSION}.cli").export(sys.argv[2:])


def leave(status: int) -> None:
    """End the process now. Blender 4.5 as a module can wait for ever in its own exit handlers once
    it has opened a file (a condition variable is destroyed while its thread waits on it)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main())
