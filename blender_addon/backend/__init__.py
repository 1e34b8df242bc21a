# SPDX-License-Identifier: GPL-3.0-or-later
"""The add-on's side of the backend: find, install, spawn or attach to it, talk to it, watch a job.
Nothing in this package imports bpy, so that all of it may run off the main thread."""

# The integer both sides must agree on; the backend states its own in its ready line and /health.
PROTOCOL = 2

# What helps when the backend cannot be used; the panel has a button for each.
START, INSTALL, PREFERENCES, NOTHING = "START", "INSTALL", "PREFERENCES", "NOTHING"


class BackendError(Exception):
    """The backend cannot do what was asked. The message is one line for the person at the panel,
    remedy the button that belongs below it."""

    def __init__(self, message: str, remedy: str = NOTHING) -> None:
        super().__init__(message)
        self.remedy = remedy


class BackendUnreachable(BackendError):
    """Nobody answers where the backend should be; whether it is gone, its handle knows."""

    def __init__(self, message: str, remedy: str = START) -> None:
        super().__init__(message, remedy)


class BackendBusy(BackendError):
    """Another backend holds the data folder: attach to it, or take another folder."""


class BackendRefused(BackendError):
    """The backend answered with an error; status is the HTTP code."""

    def __init__(self, message: str, status: int, remedy: str = NOTHING) -> None:
        super().__init__(message, remedy)
        self.status = status
