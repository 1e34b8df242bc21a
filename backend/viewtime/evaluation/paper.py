# SPDX-License-Identifier: Apache-2.0
"""The paper's figures beside ours: 4Real-Video-V2's tables of generators, and whether what was
measured here at small scale puts the variants in the same order. It never measures anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np


@dataclass(frozen=True)
class Published:
    """A column of one of the paper's tables. source: which. stands_for: our held-out sets that are
    compared with it. values: by the name that the variant has in our table. note: what a reader
    must know to compare them."""

    source: str
    stands_for: tuple[str, ...]
    values: Mapping[str, float]
    higher_is_better: bool = True
    note: str = ""


def _two(table: str, objaverse: Sequence[float], nvidia: Sequence[float], names: Sequence[str]
         ) -> tuple[Published, Published]:  # fmt: skip
    """Of a table with PSNRs for both of the paper's test sets."""
    return (
        Published(f"{table}, Objaverse, PSNR in dB", ("objects",), dict(zip(names, objaverse))),
        Published(f"{table}, NVIDIA Dynamic, PSNR in dB", ("physics",), dict(zip(names, nvidia))),
    )


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "2": _two(
        "Table 2", (5.935, 21.40, 22.49), (22.74, 22.92, 23.15),
        ("Sequential (interleaved)", "Parallel (linear synchronisation)",
         "Fused view-time attention"),
    ),
    "S1": _two(
        "Table S1", (19.50, 22.49), (23.45, 23.15),
        ("Learnable view embedding", "(v T_max + t, x, y)"),
    ),
    "5": _two(
        "Table 5", (23.30, 17.99, 19.52, 22.38, 22.09), (22.77, 21.95, 23.02, 22.74, 23.38),
        ("objects", "physics", "homography", "objects + physics", "all"),
    ),
    "S2": (
        Published(
            "Table S2, generated videos, MEt3R", ("objects", "physics"),
            {"4 steps": 0.187, "8 steps": 0.184, "16 steps": 0.183, "40 steps": 0.173},
            higher_is_better=False,
            note="The paper judges steps by consistency across views, where lower is better, and "
            "has no PSNR for them.",
        ),
    ),
}  # fmt: skip
"""By our table's name. The paper's Objaverse assets are single objects before white, as our set
"objects" is; its NVIDIA scenes have a ground and surroundings, as "physics" has."""


@dataclass(frozen=True)
class Agreement:
    """How far two orders are alike.

    pairs: of variants of which both have a value. alike: pairs in which the same one is better.
    clear: pairs that differ here by more than the standard deviation, over the seeds, of their
    difference (a seed draws the same data for all variants); clear_alike: those of them that are
    alike. against: (better in the paper, worse in the paper, how much it is worse here, clear).
    """

    pairs: int
    alike: int
    clear: int
    clear_alike: int
    against: tuple[tuple[str, str, float, bool], ...]


def agreement(
    ours: Mapping[str, Sequence[float]], paper: Mapping[str, float], higher_is_better: bool = True
) -> Agreement:
    """Compare the order of the variants, pair by pair.

    ours: the values of each seed, higher is better; paper: one value each. A pair counts as alike
    when the means over the seeds differ in the paper's direction, however little; whether that is
    more than chance is what `clear` says, and a single seed is never clear. Variants that only one
    side has, and pairs that are equal in the paper, do not count.
    """
    alike, clear, clear_alike, pairs = 0, 0, 0, 0
    against: list[tuple[str, str, float, bool]] = []
    sign = 1 if higher_is_better else -1
    for a, b in combinations([name for name in ours if name in paper], 2):
        if paper[a] == paper[b]:
            continue
        better, worse = (a, b) if sign * (paper[a] - paper[b]) > 0 else (b, a)
        more = np.asarray(ours[better], float) - np.asarray(ours[worse], float)
        is_clear = len(more) > 1 and bool(abs(more.mean()) > more.std(ddof=1))
        pairs += 1
        clear += is_clear
        if more.mean() > 0:
            alike += 1
            clear_alike += is_clear
        else:
            against.append((better, worse, float(-more.mean()), is_clear))
    return Agreement(pairs, alike, clear, clear_alike, tuple(against))


def beside_the_paper(table: str, rows: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """The paper's values beside ours, and whether the order is the same, as Markdown.

    table: our name of it. rows: by variant, a dict of scores for each seed, with "SET_psnr".
    """
    if table not in PUBLISHED:
        return "The paper has no such table."
    lines: list[str] = []
    for published in PUBLISHED[table]:
        for test in published.stands_for:
            ours = {name: [seed[f"{test}_psnr"] for seed in seeds] for name, seeds in rows.items()}
            found = agreement(ours, published.values, published.higher_is_better)
            lines += [
                f"| | paper: {published.source} | here: {test}, PSNR in dB |", "|---|---|---|",
                *(
                    f"| {name} | {value:g} | {np.mean(ours[name]):.2f} ± {spread(ours[name])} |"
                    for name, value in published.values.items() if name in ours
                ),
                "", _in_words(found), *([published.note] if published.note else []), "",
            ]  # fmt: skip
    return "\n".join(lines).rstrip()


def spread(values: Sequence[float]) -> str:
    """The standard deviation over seeds, as a sample of more; "?" of a single one."""
    return f"{np.std(values, ddof=1):.2f}" if len(values) > 1 else "?"


def _in_words(found: Agreement) -> str:
    verdict = "The order agrees" if found.alike == found.pairs else "The order does not agree"
    text = (
        f"{verdict}: {found.alike} of {found.pairs} pairs are ordered as in the paper; "
        f"{found.clear} pairs differ by more than the seeds' standard deviation, and "
        f"{found.clear_alike} of these are."
    )
    for better, worse, less, is_clear in found.against:
        text += (
            f" Here {worse} is {less:.2f} dB above {better}, "
            f"{'clearly' if is_clear else 'within the seeds'}."
        )
    return text
