# SPDX-License-Identifier: Apache-2.0
"""Training recipes of the small models; each resumes by itself. Never imported by the pipeline."""
