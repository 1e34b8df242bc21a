# SPDX-License-Identifier: Apache-2.0
"""Frames to Gaussians: from captured depth, or predicted. Never renders Blender, never serves."""
