# SPDX-License-Identifier: GPL-3.0-or-later
"""The add-on's side of the backend: spawn or attach to it, talk to it over HTTP, watch a job.
Nothing in this package imports bpy, so that all of it may run off the main thread."""
