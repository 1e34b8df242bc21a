# SPDX-License-Identifier: GPL-3.0-or-later
"""The add-on's side of the backend: spawn or attach to it, talk to it over HTTP, watch a job.
Nothing in this package imports bpy, so that all of it may run off the main thread."""

# The integer both sides must agree on; the backend states its own in its ready line and /health.
PROTOCOL = 2


class BackendError(Exception):
    """The backend cannot do what was asked. The message is one line for the person at the panel."""


class BackendUnreachable(BackendError):
    """Nobody answers where the backend should be; whether it is gone, its handle knows."""


class BackendRefused(BackendError):
    """The backend answered with an error; status is the HTTP code."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
