# SPDX-License-Identifier: Apache-2.0
"""Where weights come from: the small models that are bundled, each with a card.

It never downloads anything and never imports torch.
"""

from viewtime.models.bundled import ModelError, bundled_names, bundled_path, read_card

__all__ = ["ModelError", "bundled_names", "bundled_path", "read_card"]
