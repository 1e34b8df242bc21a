# SPDX-License-Identifier: Apache-2.0
"""What is known of other people's weights that Viewtime can load: where, whose terms, how big.

Facts only: nothing here downloads, and no weights of these models are part of Viewtime.
"""

from __future__ import annotations

from dataclasses import dataclass


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


def find(name: str) -> OpenWeights | None:
    """The card of a name or hub id, whatever its case, or None."""
    wanted = name.lower()
    return next((c for c in RECONSTRUCTORS if wanted in (c.name.lower(), c.repo.lower())), None)
