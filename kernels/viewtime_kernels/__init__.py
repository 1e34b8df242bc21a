# SPDX-License-Identifier: Apache-2.0
"""View-time attention: tensors in, tensors out. Never imports the rest of Viewtime."""

__version__ = "0.1.0"
