# SPDX-License-Identifier: Apache-2.0
"""Picture metrics over frames of a view x time grid, through torchmetrics.
Never invents a metric of its own."""

from __future__ import annotations

import numpy as np
import torch
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)


def psnr(prediction: np.ndarray, truth: np.ndarray) -> float:
    """PSNR in dB of one picture.

    Args:
        prediction, truth: (3, H, W) or (H, W, 3), sRGB in [0, 1]; values outside are clipped.

    Returns:
        dB; infinity for equal pictures.

    Raises:
        ValueError: when the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"psnr: shapes {prediction.shape} and {truth.shape} differ")
    a, b = (torch.from_numpy(np.clip(x, 0.0, 1.0).astype(np.float32)) for x in (prediction, truth))
    return float(peak_signal_noise_ratio(a, b, data_range=1.0))


def ssim(prediction: np.ndarray, truth: np.ndarray) -> float:
    """SSIM (11 px Gaussian window) of one picture, (3, H, W), sRGB in [0, 1]."""
    if prediction.shape != truth.shape:
        raise ValueError(f"ssim: shapes {prediction.shape} and {truth.shape} differ")
    a, b = (
        torch.from_numpy(np.clip(x, 0.0, 1.0).astype(np.float32))[None] for x in (prediction, truth)
    )
    value = structural_similarity_index_measure(a, b, data_range=1.0)
    assert isinstance(value, torch.Tensor)  # a tuple only when the full image is asked for
    return float(value)


def mean_psnr(prediction: np.ndarray, truth: np.ndarray, cells: np.ndarray) -> float:
    """Mean over cells of each cell's own PSNR (not the PSNR of the mean error).

    Args:
        prediction, truth: (V, T, 3, H, W), sRGB in [0, 1].
        cells: (V, T) bool, the cells that count.

    Raises:
        ValueError: when no cell counts or a shape is off.
    """
    if prediction.shape != truth.shape or cells.shape != truth.shape[:2]:
        raise ValueError(
            f"mean_psnr: prediction {prediction.shape}, truth {truth.shape}, cells {cells.shape}"
        )
    if not cells.any():
        raise ValueError("mean_psnr: no cell is selected")
    return float(np.mean([psnr(prediction[v, t], truth[v, t]) for v, t in np.argwhere(cells)]))
