# SPDX-License-Identifier: Apache-2.0
"""Lets the tests of this folder import `suite`, the sweep that all backends share.
Never holds a fixture of its own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
