# SPDX-License-Identifier: Apache-2.0
"""View-time attention for any device that torch knows: tensors in, tensors out.

This package never imports anything but torch and never knows of models, files or videos.
"""

from viewtime_kernels.attention import time_attention, view_attention, view_time_attention
from viewtime_kernels.reference import reference_attention, view_time_mask

__version__ = "0.1.0"

__all__ = [
    "reference_attention",
    "time_attention",
    "view_attention",
    "view_time_attention",
    "view_time_mask",
]
