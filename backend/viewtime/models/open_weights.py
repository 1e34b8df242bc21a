# SPDX-License-Identifier: Apache-2.0
"""What is known of other people's weights that Viewtime can load: where, whose terms, how big.

Facts only: nothing here downloads, and no weights of these models are part of Viewtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from viewtime.models.bundled import ModelError
from viewtime.models.pins import PINS, Pin


@dataclass(frozen=True)
class OpenWeights:
    """A card. commercial: whether its terms allow commercial use. gated: one must accept terms on
    its page, signed in, before it can be downloaded. size: longer side of frames, pixels. height:
    lines that a generator makes when nothing is said. pin: the commit and the checksums, as far as
    they are known."""

    name: str
    repo: str
    what: str
    parameters: int
    licence: str
    commercial: bool
    gated: bool
    size: int
    note: str
    pin: Pin = field(default_factory=Pin)
    height: int = 0

    @property
    def url(self) -> str:
        return f"https://huggingface.co/{self.repo}"

    @property
    def revision(self) -> str | None:
        """The commit to download, or None: the newest, remembered from then on."""
        return self.pin.commit

    @property
    def sha256(self) -> Mapping[str, str]:
        """Checksums that files must have, by path; those of other files are not known."""
        return self.pin.sha256


RECONSTRUCTORS = (
    OpenWeights(
        name="VGGT-1B",
        repo="facebook/VGGT-1B",
        what="cameras, depth, points and tracks of many views at once; no Gaussian head",
        parameters=1_256_537_516,
        licence="CC BY-NC 4.0",
        commercial=False,
        gated=False,
        size=518,
        note="Research and other non-commercial use only.",
        pin=PINS["VGGT-1B"],
    ),
    OpenWeights(
        name="VGGT-1B-Commercial",
        repo="facebook/VGGT-1B-Commercial",
        what="the same architecture as VGGT-1B, with weights that may be used commercially",
        parameters=1_256_537_516,
        licence="VGGT License v1 with an acceptable use policy (no military use)",
        commercial=True,
        gated=True,
        size=518,
        note="Loads as VGGT-1B does: the same names and shapes of tensors.",
        pin=PINS["VGGT-1B-Commercial"],
    ),
    OpenWeights(
        name="AnySplat",
        repo="lhjiang/anysplat",
        what="a VGGT trunk, camera and depth heads with a Gaussian head of its own",
        parameters=1_190_736_456,
        licence="MIT by its card; built from VGGT-1B, which is CC BY-NC",
        commercial=False,
        gated=False,
        size=448,
        note="Non-commercial in effect, as it derives from VGGT-1B. Copies of VGGT that its "
        "training compared with are left out when loading.",
        pin=PINS["AnySplat"],
    ),
)


_STOCK_WAN = (
    "A video model that was not fine-tuned for grids: without references expect views that drift "
    "apart. With both references and depth, pixels are kept where they were reprojected, and "
    "imagined in the holes alone."
)
GENERATORS = (
    OpenWeights(
        name="Wan2.1-T2V-1.3B",
        repo="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        what="text to video, 81 frames at 480 x 832",
        parameters=1_418_996_800,
        licence="Apache-2.0",
        commercial=True,
        gated=False,
        size=832,
        note=_STOCK_WAN,
        pin=PINS["Wan2.1-T2V-1.3B"],
        height=480,
    ),
    OpenWeights(
        name="Wan2.1-T2V-14B",
        repo="Wan-AI/Wan2.1-T2V-14B-Diffusers",
        what="text to video, 81 frames at up to 720 x 1280",
        parameters=14_288_491_584,
        licence="Apache-2.0",
        commercial=True,
        gated=False,
        size=1280,
        note=_STOCK_WAN,
        pin=PINS["Wan2.1-T2V-14B"],
        height=480,
    ),
    OpenWeights(
        name="Wan2.2-TI2V-5B",
        repo="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        what="text or image to video, 121 frames at 704 x 1280; a timestep per token",
        parameters=5_000_000_000,
        licence="Apache-2.0",
        commercial=True,
        gated=False,
        size=1280,
        note=_STOCK_WAN + " References can be clean tokens: --references clean.",
        pin=PINS["Wan2.2-TI2V-5B"],
        height=704,
    ),
)
CARDS = (*GENERATORS, *RECONSTRUCTORS)


def find(name: str) -> OpenWeights | None:
    """The card of a name or hub id, whatever its case, or None."""
    wanted = name.lower()
    return next((c for c in CARDS if wanted in (c.name.lower(), c.repo.lower())), None)


def card(name: str) -> OpenWeights:
    """The card of a name or hub id. Raises ModelError naming those that there are."""
    found = find(name)
    if found is None:
        known = ", ".join(c.name for c in CARDS)
        raise ModelError(f"{name!r} is no model to download; there are {known}")
    return found


def card_as_text(weights: OpenWeights) -> str:
    """The card for a person, one fact a line, checksums last."""
    size = f"{weights.parameters / 1e9:.2f} billion parameters"
    if weights.pin.gigabytes:
        size += f", about {weights.pin.gigabytes:g} GB to download"
    terms = "commercial use allowed" if weights.commercial else "non-commercial use only"
    lines = [
        f"{weights.name}: {weights.what}",
        f"  from     {weights.url}",
        f"  commit   {weights.revision or 'pinned at first download: the newest one then'}",
        f"  size     {size}",
        f"  licence  {weights.licence} ({terms})",
        f"  note     {weights.note}",
    ]
    if weights.gated:
        lines.append(
            "  gated    accept the terms on its page and log in with `hf auth login` first"
        )
    if not weights.sha256:
        lines.append("  sha256   pinned at first download: kept beside the files, checked later")
    for name, value in weights.sha256.items():
        lines.append(f"  sha256   {value} {name}")
    return "\n".join(lines)


def pinned_as_text(weights: OpenWeights) -> str:
    """How firmly a download is pinned, in a few words."""
    if weights.revision is None:
        return "pinned at first download"
    checked = f"{len(weights.sha256)} sha256" if weights.sha256 else "sha256 from first download"
    return f"commit {weights.revision[:8]}, {checked}"
