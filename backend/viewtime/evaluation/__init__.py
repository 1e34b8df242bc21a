# SPDX-License-Identifier: Apache-2.0
"""Metrics, contact sheets and the summaries for people and programs.
Never trains and never serves."""
