# SPDX-License-Identifier: GPL-3.0-or-later
"""Lands within the hour; registers nothing yet."""

CLASSES: tuple = ()
