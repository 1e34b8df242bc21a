# SPDX-License-Identifier: Apache-2.0
"""What the generator refuses, in one line that names the value and what would be right.

It never wraps errors of other rooms.
"""

from viewtime_formats.errors import ViewtimeError


class GeneratorError(ViewtimeError):
    """A model folder, a grid or a setting that the generator cannot work with."""
