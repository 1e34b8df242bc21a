# SPDX-License-Identifier: Apache-2.0
"""Viewtime: Capture to 4D Gaussian splats. Importing this package never imports torch."""

__version__ = "0.1.0"
