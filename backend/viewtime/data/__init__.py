# SPDX-License-Identifier: Apache-2.0
"""Training and test data: procedural 4D scenes and warped videos. Never downloads anything."""
