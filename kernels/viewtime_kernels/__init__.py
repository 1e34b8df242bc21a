# SPDX-License-Identifier: Apache-2.0
"""View-time attention for any device that torch knows: tensors in, tensors out.

This package never imports anything but torch, and Triton where it is installed and a GPU asks for
it; it never knows of models, files or videos.

    out = view_time_attention(q, k, v, views=8, times=16)  # q, k, v: (B, 8 * 16 * S, H, D)
    print(explain_backend(q, k, v, views=8, times=16))  # what "auto" takes here, and why
"""

from viewtime_kernels.attention import time_attention, view_attention, view_time_attention
from viewtime_kernels.backends import Choice, explain_backend
from viewtime_kernels.reference import reference_attention, view_time_mask

__version__ = "0.1.0"

__all__ = [
    "Choice",
    "explain_backend",
    "reference_attention",
    "time_attention",
    "view_attention",
    "view_time_attention",
    "view_time_mask",
]
