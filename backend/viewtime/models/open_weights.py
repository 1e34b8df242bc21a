# SPDX-License-Identifier: Apache-2.0
"""What is known of other people's weights that Viewtime can load: where, whose terms, how big.

Facts only: nothing here downloads, and no weights of these models are part of Viewtime.
"""

from __future__ import annotations

from dataclasses import dataclass

from viewtime.models.bundled import ModelError


@dataclass(frozen=True)
class OpenWeights:
    """A card. commercial: whether its terms allow commercial use. gated: one must accept terms on
    its page, signed in, before it can be downloaded. size: longer side of frames, pixels."""

    name: str
    repo: str
    what: str
    parameters: int
    licence: str
    commercial: bool
    gated: bool
    size: int
    note: str

    @property
    def url(self) -> str:
        return f"https://huggingface.co/{self.repo}"


RECONSTRUCTORS = (
    OpenWeights(
        name="VGGT-1B",
        repo="facebook/VGGT-1B",
        what="cameras, depth, points and tracks of many views at once; no Gaussian head",
        parameters=1_256_537_516,
        licence="CC BY-NC",
        commercial=False,
        gated=False,
        size=518,
        note="Research and other non-commercial use only.",
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
        note="Comes as a PyTorch .pt file as far as is known: convert it to safetensors first.",
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
        parameters=1_419_000_000,
        licence="Apache-2.0",
        commercial=True,
        gated=False,
        size=832,
        note=_STOCK_WAN,
    ),
    OpenWeights(
        name="Wan2.1-T2V-14B",
        repo="Wan-AI/Wan2.1-T2V-14B-Diffusers",
        what="text to video, 81 frames at up to 720 x 1280",
        parameters=14_288_000_000,
        licence="Apache-2.0",
        commercial=True,
        gated=False,
        size=1280,
        note=_STOCK_WAN,
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
        note=_STOCK_WAN + ' References can be clean tokens: set references to "clean".',
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
    """The card for a person, one fact a line."""
    size = f"{weights.parameters / 1e9:.2f} billion parameters"
    terms = "commercial use allowed" if weights.commercial else "non-commercial use only"
    lines = [
        f"{weights.name}: {weights.what}",
        f"  from     {weights.url}",
        f"  size     {size}",
        f"  licence  {weights.licence} ({terms})",
        f"  note     {weights.note}",
    ]
    if weights.gated:
        lines.append(
            "  gated    accept the terms on its page and log in with `hf auth login` first"
        )
    return "\n".join(lines)
