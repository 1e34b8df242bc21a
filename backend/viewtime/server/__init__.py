# SPDX-License-Identifier: Apache-2.0
"""The backend service: durable jobs over loopback HTTP, run by one warm worker per device.
Never imports torch, numba or a model in the server process itself."""

PROTOCOL = 2
"""The one integer that client and server compare for equality before anything else."""
