# SPDX-License-Identifier: GPL-3.0-or-later
"""Placeholder until the capture operators land; registers nothing and does nothing."""

CLASSES: tuple = ()
