# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading ahead: what is read, how much is kept, that the thread ends, that Blender is fed fast.
The ring is tested without bpy; the rest through the timeline."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import bpy
import numpy as np
import pytest
from splats import gaussians, import_sequence, positions, write_sequence

THREAD = "viewtime prefetch"


@pytest.fixture
def playback(viewtime):
    """A module of blender_addon/playback by name."""
    return lambda name: importlib.import_module(f"{viewtime}.playback.{name}")


@pytest.fixture
def ring(playback):
    made = playback("prefetch").Prefetch()
    yield made
    made.stop()


@pytest.fixture
def sequence(formats, tmp_path):
    """Six steps of 1000 splats: 56,000 bytes each in memory."""
    return formats.read_sequence(write_sequence(formats, tmp_path / "s", [1000] * 6))


@pytest.fixture
def steps(playback, sequence):
    wanted = playback("prefetch").Wanted
    return lambda *numbers: [wanted(sequence, number) for number in numbers]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def kept(ring) -> set[int]:
    return {key[2] for key in ring._ready}


def test_the_nearest_steps_are_kept_as_far_as_the_budget_goes(ring, steps, sequence):
    ring.want("a", steps(1, 2, 3, 4), 3 * 56_000)
    assert ring.settle(20) and kept(ring) == {1, 2, 3} and ring.held() == 3 * 56_000
    ring.want("a", steps(2, 3, 4), 3 * 56_000)
    assert ring.settle(20) and kept(ring) == {2, 3, 4}, "what nobody wants goes first"
    ring.want("b", steps(0, 5), 3 * 56_000)
    assert ring.settle(20) and kept(ring) == {2, 0, 3}, "owners take turns"
    ring.want("a", steps(2), 56_000)
    assert ring.settle(20) and kept(ring) == {2} and ring.held() == 56_000
    ring.want("a", steps(2), 0)
    assert ring.held() == 0


def test_the_ring_gives_what_the_file_holds_off_the_memory_map(ring, steps, sequence, playback):
    ring.want("a", steps(3), 1 << 30)
    assert ring.settle(20)
    taken, read = ring.take(sequence, 3), playback("reader").read_step(sequence, 3)
    for name in ("position", "scale", "rotation", "base"):
        ahead = getattr(taken, name)
        assert np.array_equal(ahead, getattr(read, name))
        assert ahead.flags.owndata or ahead.base.flags.owndata
    assert ring.take(sequence, 5).position.shape == (1000, 3), "what is not there is read"


def test_every_buffer_takes_the_fast_path_of_foreach_set(formats, playback, sequence, ring, steps):
    """A view of format '<f' or float64 makes foreach_set up to 250 times slower."""
    ring.want("a", steps(1), 1 << 30)
    ring.settle(20)
    reader = playback("reader")
    strided = gaussians(formats, 9, 0, 4)
    strided.means = np.asfortranarray(strided.means)
    for arrays in (
        ring.take(sequence, 1),
        reader.read_step(sequence, 2),
        reader.cloud_arrays(strided),
    ):
        for array in (arrays.position, arrays.scale, arrays.rotation, arrays.base, *arrays.rest):
            view = memoryview(array.reshape(-1))
            assert (view.format, view.itemsize, view.contiguous) == ("f", 4, True)
            assert array.flags.c_contiguous and array.reshape(-1).base is not None


def test_a_broken_step_is_left_to_the_main_thread(ring, steps, sequence, formats):
    (sequence.folder / "step.0002.safetensors").write_bytes(b"nothing")
    ring.want("a", steps(2, 3), 1 << 30)
    assert ring.settle(20) and kept(ring) == {3}
    with pytest.raises(formats.SequenceError, match=r"step\.0002"):
        ring.take(sequence, 2)


def test_a_step_being_read_is_waited_for_and_read_once(playback, sequence, steps):
    begun, go, read, others = threading.Event(), threading.Event(), [], threads()

    def slowly(sequence, step, *, copy=False):
        read.append(step)
        begun.set()
        assert go.wait(20)
        return playback("reader").read_step(sequence, step, copy=copy)

    ring = playback("prefetch").Prefetch(slowly)
    ring.want("a", steps(4), 1 << 30)
    assert begun.wait(20)
    threading.Timer(0.05, go.set).start()
    assert len(ring.take(sequence, 4)) == 1000
    assert read == [4]
    assert len(threads()) == len(others) + 1
    ring.stop()
    assert threads() == others


def test_the_thread_has_ended_when_the_program_does(playback, sequence):
    """In a Python of its own: that of Blender's module never ends by itself here."""
    package = Path(playback("prefetch").__file__).parent
    formats = Path(importlib.import_module("viewtime_formats").__file__).parents[1]
    program = f"""
import atexit, importlib, sys, threading, types
atexit.register(lambda: print([t.name for t in threading.enumerate()]))
sys.path.insert(0, {str(formats)!r})
sys.modules["package"] = types.ModuleType("package")
sys.modules["package"].__path__ = [{str(package)!r}]
prefetch = importlib.import_module("package.prefetch")
import viewtime_formats
sequence = viewtime_formats.read_sequence({str(sequence.folder)!r})
ring = prefetch.Prefetch()
ring.want("a", [prefetch.Wanted(sequence, step) for step in range(6)], 1 << 30)
assert ring.settle(20) and "bpy" not in sys.modules
"""
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (answer.stdout.strip(), answer.stderr) == ("['MainThread']", "")


def test_the_thread_knows_nothing_of_blender(viewtime, playback):
    for name in ("prefetch", "reader", "frames"):
        source = Path(playback(name).__file__).read_text()
        names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
        assert "bpy" not in names and "import bpy" not in source


def test_playing_is_served_from_the_ring_and_ends_with_the_add_on(
    empty_scene, formats, tmp_path, playback, viewtime
):
    ob = import_sequence(write_sequence(formats, tmp_path / "s", [50] * 6))
    ring = playback("sequence_object").ahead
    empty_scene.frame_set(2)
    assert ring.settle(20) and {2, 3, 4, 5} <= kept(ring)
    assert len(threads()) == 1
    for frame in (3, 4, 5, 6):
        empty_scene.frame_set(frame)
        assert np.array_equal(positions(ob), gaussians(formats, 50, frame - 1).means)
    bpy.ops.preferences.addon_disable(module=viewtime)
    try:
        assert not threads()
    finally:
        bpy.ops.preferences.addon_enable(module=viewtime)


def test_no_memory_for_reading_ahead_means_none_is_read(
    empty_scene, formats, tmp_path, playback, viewtime
):
    preferences = bpy.context.preferences.addons[viewtime].preferences
    preferences.prefetch_megabytes = 0
    try:
        import_sequence(write_sequence(formats, tmp_path / "s", [50] * 6))
        empty_scene.frame_set(2)
        assert playback("sequence_object").ahead.held() == 0
    finally:
        bpy.context.preferences.addons[viewtime].preferences.prefetch_megabytes = 512


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read as Linux says it")
def test_a_thousand_changes_need_no_more_memory_than_the_first_hundred(
    empty_scene, formats, tmp_path, playback
):
    """Steps of 1.1 MB: keeping one of fifty would show as 20 MB."""
    ob = import_sequence(write_sequence(formats, tmp_path / "s", [20_000] * 8))
    ob.modifiers.clear()
    ring = playback("sequence_object").ahead

    def change(turns: int) -> None:
        for turn in range(turns):
            empty_scene.frame_set(1 + (turn * 3) % 8)

    change(100)
    before, clouds = resident(), len(bpy.data.pointclouds)
    change(1000)
    assert resident() - before < 16 << 20
    assert len(bpy.data.pointclouds) == clouds <= 2
    assert ring.held() <= 8 * 20_000 * 56


def test_large_clouds_alternate_and_show_the_right_splats(empty_scene, formats, tmp_path):
    """A spare cloud is filled while the other is shown; materials and properties go along."""
    ob = import_sequence(write_sequence(formats, tmp_path / "s", [20_000] * 3 + [21_000]))
    ob.data.materials.append(bpy.data.materials.new("mine"))
    ob.data["note"] = "kept"
    name, seen = ob.data.name, set()
    for turn in range(8):
        empty_scene.frame_set(1 + turn % 4)
        count = 21_000 if turn % 4 == 3 else 20_000
        wanted = gaussians(formats, count, turn % 4)
        assert np.array_equal(positions(ob), wanted.means)
        depsgraph = bpy.context.evaluated_depsgraph_get()
        modifier = ob.modifiers[0]
        modifier.show_viewport = False
        bpy.context.view_layer.update()
        evaluated = ob.evaluated_get(depsgraph).data
        assert np.array_equal(positions_of(evaluated), wanted.means)
        assert ob.data.name == name and ob.data["note"] == "kept"
        assert [m.name for m in ob.data.materials] == ["mine"]
        seen.add(ob.data.session_uid)
    assert len(seen) >= 2 and len(bpy.data.pointclouds) <= 2
    blend = tmp_path / "x.blend"
    bpy.ops.wm.save_as_mainfile(filepath=str(blend))
    assert blend.stat().st_size < 1_500_000, "neither of the two is in the file"
    bpy.ops.wm.open_mainfile(filepath=str(blend))
    assert [cloud.name for cloud in bpy.data.pointclouds] == [name]


def positions_of(cloud: bpy.types.PointCloud) -> np.ndarray:
    values = np.empty(len(cloud.points) * 3, np.float32)
    cloud.attributes["position"].data.foreach_get("vector", values)
    return values.reshape(-1, 3)
