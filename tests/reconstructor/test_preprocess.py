# SPDX-License-Identifier: Apache-2.0
"""Pictures to frames, by upstream's rules: sizes, white behind and around, and refusals."""

import numpy as np
import pytest
import torch
from PIL import Image

from viewtime.reconstructor.preprocess import load_images
from viewtime_formats.errors import ViewtimeError


@pytest.fixture
def picture(tmp_path):
    def make(width: int, height: int, mode: str = "RGB"):
        path = tmp_path / f"{width}x{height}.png"
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, len(mode)), np.uint8)
        Image.fromarray(pixels, mode).save(path)
        return path

    return make


@pytest.mark.parametrize(
    "size, mode, frame",
    [
        ((640, 480), "crop", (392, 518)),  # 388.5 rounds to 27.75, so to 28 patches
        ((300, 900), "crop", (518, 518)),  # the middle of 1554 rows
        ((1000, 301), "crop", (154, 518)),
        ((1000, 301), "pad", (518, 518)),
        ((300, 900), "pad", (518, 518)),
    ],
)
def test_sides_are_multiples_of_a_patch(picture, size, mode, frame):
    frames = load_images([picture(*size)], mode)
    assert frames.shape == (1, 3, *frame)
    assert 0.0 <= frames.min() and frames.max() <= 1.0


def test_a_tall_picture_keeps_its_middle_or_gets_white_sides(picture):
    path = picture(300, 900)
    whole = Image.open(path).resize((518, 1554), Image.Resampling.BICUBIC)
    wanted = torch.from_numpy(np.array(whole)[518:1036]).permute(2, 0, 1) / 255.0
    torch.testing.assert_close(load_images([path])[0], wanted)
    padded = load_images([path], "pad")[0]
    narrow = Image.open(path).resize((168, 518), Image.Resampling.BICUBIC)  # 172.7 px: 12 patches
    wanted = torch.from_numpy(np.array(narrow)).permute(2, 0, 1) / 255.0
    torch.testing.assert_close(padded[:, :, 175:343], wanted)
    assert (padded[:, :, :175] == 1.0).all() and (padded[:, :, 343:] == 1.0).all()


def test_transparent_pixels_are_white(tmp_path):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, 32:, 3] = 255  # black, opaque on the right only
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    frame = load_images([tmp_path / "a.png"])[0]
    assert (frame[:, :, :200] == 1.0).all() and (frame[:, :, 300:] == 0.0).all()


def test_pictures_of_mixed_sizes_are_padded_with_white_to_the_largest(picture):
    frames = load_images([picture(640, 480), picture(1000, 301)])
    assert frames.shape == (2, 3, 392, 518)
    assert (frames[1, :, :119] == 1.0).all() and (frames[1, :, 273:] == 1.0).all()
    torch.testing.assert_close(frames[1, :, 119:273], load_images([picture(1000, 301)])[0])


def test_other_sizes_and_patches_can_be_asked_for(picture):
    assert load_images([picture(64, 48)], size=96, patch=8).shape == (1, 3, 72, 96)


def test_what_is_no_picture_is_named(picture, tmp_path):
    with pytest.raises(ViewtimeError, match="no files"):
        load_images([])
    with pytest.raises(ViewtimeError, match="mode is 'fit'"):
        load_images([picture(64, 64)], "fit")
    (tmp_path / "b.png").write_bytes(b"not a picture")
    with pytest.raises(ViewtimeError, match="b.png: not a picture"):
        load_images([tmp_path / "b.png"])
    with pytest.raises(ViewtimeError, match="1000x8 is too narrow"):
        load_images([picture(1000, 8)])
