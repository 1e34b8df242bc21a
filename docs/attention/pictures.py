# SPDX-License-Identifier: Apache-2.0
"""Draws the pictures of docs/attention.md from the schedules that the kernels run, and counts
the work that the schedules waste.

    python docs/attention/pictures.py

Never measures anything: the timeline of the Hopper kernel is a sketch, and says so.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from viewtime_kernels import view_time_mask
from viewtime_kernels.hopper import configs, schedule
from viewtime_kernels.triton_kernels import launch, tiles

HERE = Path(__file__).parent
ROW, COLUMN, OWN, TAIL, NONE, INK = "#4c78a8", "#f2a541", "#b23a48", "#8fc0a9", "#f4f4f2", "#333333"
VIEWS, TIMES = 3, 4


def box(axes: Axes, x: float, y: float, w: float, h: float, colour: str, **more) -> None:
    axes.add_patch(Rectangle((x, y), w, h, facecolor=colour, edgecolor="white", lw=0.8, **more))


def bare(axes: Axes, width: float, height: float, title: str = "") -> None:
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.set_axis_off()
    axes.set_title(title, fontsize=10, color=INK)


def kind(query: int, key: int) -> str:
    """Which part of the softmax a pair of frames belongs to."""
    if query == key:
        return OWN
    if query // TIMES == key // TIMES:
        return ROW
    return COLUMN if query % TIMES == key % TIMES else NONE


def save(figure, name: str) -> None:
    figure.savefig(HERE / name, dpi=130, bbox_inches="tight", facecolor="white")
    plt.close(figure)


def mask() -> None:
    """The grid with one frame's row and column, and the same as a mask of frames."""
    frames = VIEWS * TIMES
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), width_ratios=(1, 1.15))
    chosen = 1 * TIMES + 2
    for frame in range(frames):
        view, time = divmod(frame, TIMES)
        box(left, time, view, 1, 1, kind(chosen, frame))
        light = kind(chosen, frame) in (NONE, COLUMN)
        left.text(time + 0.5, view + 0.5, f"view {view}\ntime {time}", ha="center", va="center",
                  fontsize=7, color=INK if light else "white")  # fmt: skip
    bare(left, TIMES, VIEWS, "What a token of view 1, time 2 attends to")
    coarse = view_time_mask(VIEWS, TIMES, 1)
    for query in range(frames):
        for key in range(frames):
            assert (kind(query, key) != NONE) == bool(coarse[query, key])
            box(right, key, query, 1, 1, kind(query, key))
    bare(right, frames, frames, "All pairs of frames (3 views, 4 times)")
    right.text(-0.3, frames / 2, "queries", rotation=90, ha="right", va="center", fontsize=8)
    right.text(frames / 2, frames + 0.3, "keys", ha="center", va="top", fontsize=8)
    names = {ROW: "own view (row)", COLUMN: "own time (column)", OWN: "own frame: in both",
             NONE: "weight 0"}  # fmt: skip
    handles = [Patch(facecolor=c, edgecolor="#999999", label=label) for c, label in names.items()]
    figure.legend(handles=handles, ncols=4, loc="lower center", fontsize=8, frameon=False)
    save(figure, "mask.png")


def three_calls() -> None:
    """The three dense calls: rows, columns, own frames."""
    frames = VIEWS * TIMES
    figure, all_axes = plt.subplots(1, 3, figsize=(9, 3.3))
    for axes, title, colour, sees in (
        (all_axes[0], "rows: V calls of T S tokens", ROW, lambda q, k: q // TIMES == k // TIMES),
        (
            all_axes[1],
            "columns: T calls of V S tokens",
            COLUMN,
            lambda q, k: q % TIMES == k % TIMES,
        ),
        (all_axes[2], "own frames: V T calls of S tokens", OWN, lambda q, k: q == k),
    ):
        for query in range(frames):
            for key in range(frames):
                box(axes, key, query, 1, 1, colour if sees(query, key) else NONE)
        bare(axes, frames, frames, title)
    figure.text(0.365, 0.5, "+", fontsize=22, ha="center", va="center", color=INK)
    figure.text(0.645, 0.5, "−", fontsize=22, ha="center", va="center", color=INK)
    save(figure, "three_calls.png")


def tiles_visited() -> None:
    """What each home tile of one view visits, walked by the kernels' own iterator."""
    times, space, block, tail, view = 3, 40, 16, 8, 1
    row, tokens = times * space, VIEWS * times * space
    figure, axes = plt.subplots(figsize=(10, 4.4))
    home_tiles = -(-row // block)
    for program in range(home_tiles):
        _, at, first, time, touched = tiles.home_tile.fn(
            program + view * home_tiles, VIEWS, times, space, block
        )
        assert at == view
        counts = tiles.full_tiles.fn(touched, VIEWS, times, space, block, 0)
        rest = tiles.tail_tiles.fn(touched, VIEWS, times, space, block, tail, 0)
        for (in_row, in_frame, count), row_skip, frame_skip, size, colour in (
            (counts, 0, 0, block, ROW),
            (rest, row // block * block, space // block * block, tail, TAIL),
        ):
            for i in range(count):
                start, end, seen = tiles.visited_tile.fn(
                    i, in_row, in_frame, row_skip, frame_skip, view, time, VIEWS, times, space,
                    size, True, 0,
                )  # fmt: skip
                begin, stop = first, min(first + block, row)
                shade = COLUMN if colour == ROW and seen >= 0 else colour
                box(axes, start, begin, min(size, end - start), stop - begin, shade, alpha=0.25)
                if seen >= 0:  # rows of another time ignore the tile
                    begin, stop = max(begin, seen * space), min(stop, (seen + 1) * space)
                box(axes, start, begin, min(size, end - start), stop - begin, shade)
    for edge in range(0, tokens + 1, space):
        heavy = edge % row == 0
        axes.axvline(edge, color=INK, lw=1.4 if heavy else 0.5)
        if edge < tokens:
            v, t = divmod(edge // space, times)
            axes.text(edge + space / 2, -3, f"view {v}, time {t}", ha="center", fontsize=6.5)
    for edge in range(0, row + 1, space):
        axes.axhline(edge, color=INK, lw=0.5)
    axes.set(xlim=(0, tokens), ylim=(row, 0), aspect="equal", xticks=[])
    axes.set_yticks([i * space + space / 2 for i in range(times)],
                    [f"view 1\ntime {t}" for t in range(times)], fontsize=7)  # fmt: skip
    axes.set_xlabel("keys", fontsize=8)
    axes.set_ylabel("queries of view 1", fontsize=8)
    axes.tick_params(length=0)
    names = {ROW: "full tile of the row", COLUMN: "full tile of a column frame",
             TAIL: "tail tile"}  # fmt: skip
    handles = [Patch(facecolor=c, label=label) for c, label in names.items()]
    handles.append(Patch(facecolor=COLUMN, alpha=0.25, label="computed, ignored by these queries"))
    axes.legend(handles=handles, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.08),
                fontsize=8, frameon=False)  # fmt: skip
    save(figure, "tiles.png")


def timeline() -> None:
    """Producer and consumers of the Hopper kernel, as a sketch."""
    figure, axes = plt.subplots(figsize=(10, 3.3))
    product, soften, load = 1.0, 2.0, 0.9
    lanes = ["producer warp\n(TMA)", "consumer 0", "consumer 1", "consumer 2", "tensor cores"]

    def bar(lane: int, start: float, width: float, colour: str, text: str) -> None:
        box(axes, start, lane + 0.12, width, 0.76, colour)
        axes.text(start + width / 2, lane + 0.5, text, ha="center", va="center", fontsize=7,
                  color="white" if colour in (ROW, OWN) else INK)  # fmt: skip

    bar(0, 0, load, "#cfcfcf", "Q")
    period = 6 * product
    for tile in range(2):
        bar(0, load * (1 + 2 * tile), load, "#dcd6f7", f"K{tile}")
        bar(0, load * (2 + 2 * tile), load, "#e8dff5", f"V{tile}")
    for tile in range(2, 4):  # two stages: a tile's place is free when the last group has read it
        free = 2 * load + period * (tile - 2)
        bar(0, free + 3 * product, load, "#dcd6f7", f"K{tile}")
        bar(0, free + period, load, "#e8dff5", f"V{tile}")
    for who in range(3):
        for tile in range(2):
            start = 2 * load + who * product + tile * period
            after = start + product + soften
            bar(who + 1, start, product, ROW, f"Q K{tile}ᵀ")
            bar(who + 1, start + product, soften, COLUMN, "softmax")
            bar(who + 1, after, product, OWN, f"P V{tile}")
            bar(4, start, product, ROW, f"{who}")
            bar(4, after, product, OWN, f"{who}")
    axes.set(xlim=(0, 15.2), ylim=(5, 0), xticks=[])
    axes.set_yticks([lane + 0.5 for lane in range(5)], lanes, fontsize=8)
    axes.tick_params(length=0)
    axes.set_xlabel("time (a sketch: the lengths are not measured)", fontsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    save(figure, "hopper.png")


def waste() -> None:
    """Print the table of executed over allowed pairs, 8 views and 16 times, head dim 128."""
    views, times, block = 8, 16, 128
    print("| S | `triton` | `hopper` |\n|---|---|---|")
    for space in (144, 576, 1350, 2304):
        row, cells = times * space, []
        tail = launch.tail_block(block, "view_time", times, space)
        hopper = configs.choose(128, "view_time", times, space)
        for name, home in (("triton", 128), ("hopper", hopper.block_m)):
            executed = 0
            for program in range(-(-row // home)):
                *_, touched = tiles.home_tile.fn(program, views, times, space, home)
                grid = touched, views, times, space
                if name == "hopper":
                    keys = schedule.ring_tiles.fn(*grid, hopper.block_n, 0)[2] * hopper.block_n
                else:
                    keys = tiles.full_tiles.fn(*grid, block, 0)[2] * block
                    keys += tiles.tail_tiles.fn(*grid, block, tail, 0)[2] * tail if tail else 0
                executed += home * keys
            cells.append(f"{executed / (row * (views + times - 1) * space):.3f}")
        print(f"| {space} | {' | '.join(cells)} |")


if __name__ == "__main__":
    for draw in (mask, three_calls, tiles_visited, timeline, waste):
        draw()
