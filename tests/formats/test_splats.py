# SPDX-License-Identifier: Apache-2.0
"""SplatSequence: scrubbing while it grows, and what broken step files get. Needs no Blender."""

from __future__ import annotations

import json
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viewtime_formats import (
    RigError,
    SequenceError,
    SequenceWriter,
    ViewtimeError,
    read_sequence,
    write_json,
)
from viewtime_formats.safetensors_io import map_tensors, write_tensors

NAMES = ("means", "scales", "rotations", "opacities", "sh")


def write(folder, make, times=3, written=(0, 1, 2), counts=(5, 0, 7), **more):
    arguments = {"fps": 12.5, "frame_start": 10, "frame_step": 2, **more}
    with SequenceWriter(folder, times=times, **arguments) as writer:
        for t in written:
            writer.write_step(t, make(counts[t], 1, seed=t))
    return read_sequence(folder)


def once(folder, make, name, **more):
    """One sequence for all examples of a test, with the bytes of one of its files as written."""
    keep = folder / f"{name}.kept"
    if not keep.exists():
        write(folder, make, **more)
        keep.write_bytes((folder / name).read_bytes())
    (folder / name).write_bytes(keep.read_bytes())
    return read_sequence(folder), keep.read_bytes()


def test_what_is_written_is_read(tmp_path, make_gaussians, make_rig):
    made = {"by": "test", "seeds": [1, 2]}
    sequence = write(
        tmp_path, make_gaussians, rig=make_rig(2), background=(0.1, 0.2, 0.3), provenance=made
    )
    assert sequence.complete and sequence.times == 3 and sequence.sh_degree == 1
    assert (sequence.fps, sequence.frame_start, sequence.frame_step) == (12.5, 10, 2)
    assert sequence.provenance == made and len(sequence.rig.cameras) == 2
    assert [s.count for s in sequence.steps] == [5, 0, 7] and sequence.steps[1].bounds is None
    np.testing.assert_allclose(sequence.background, (0.1, 0.2, 0.3))
    clouds = [make_gaussians(5, 1, 0), make_gaussians(7, 1, 2)]
    every = np.concatenate([cloud.means for cloud in clouds])
    np.testing.assert_array_equal(sequence.bounds, [every.min(axis=0), every.max(axis=0)])
    for name in NAMES:
        step = sequence.step(2, verify=True)
        np.testing.assert_array_equal(getattr(step, name), getattr(clouds[1], name))
    assert len(sequence.step(1, verify=True)) == 0


def test_the_official_library_reads_a_step(tmp_path, make_gaussians):
    library = pytest.importorskip("safetensors.numpy")
    write(tmp_path, make_gaussians)
    tensors = library.load_file(tmp_path / "step.0002.safetensors")
    for name in NAMES:
        np.testing.assert_array_equal(tensors[name], getattr(make_gaussians(7, 1, 2), name))
    library.save_file(tensors, tmp_path / "theirs.safetensors")
    np.testing.assert_array_equal(map_tensors(tmp_path / "theirs.safetensors")["sh"], tensors["sh"])


def test_a_growing_sequence_can_be_scrubbed(tmp_path, make_gaussians):
    with SequenceWriter(tmp_path, times=3, fps=24, frame_start=1, frame_step=1) as writer:
        assert not read_sequence(tmp_path).steps
        writer.write_step(2, make_gaussians(4))
        growing = read_sequence(tmp_path)
        assert [growing.has_step(t) for t in range(3)] == [False, False, True]
        assert not growing.complete and len(growing.step(2)) == 4
        with pytest.raises(SequenceError, match="timestep 0 is not written"):
            growing.step(0)
    assert not read_sequence(tmp_path).complete


def test_an_exception_leaves_an_incomplete_but_readable_sequence(tmp_path, make_gaussians):
    with pytest.raises(KeyError):
        with SequenceWriter(tmp_path, times=1, fps=24, frame_start=1, frame_step=1) as writer:
            writer.write_step(0, make_gaussians(4))
            raise KeyError
    sequence = read_sequence(tmp_path)
    assert not sequence.complete and sequence.has_step(0)


def test_writing_again_forgets_the_old_steps(tmp_path, make_gaussians, make_rig):
    first = write(tmp_path, make_gaussians, rig=make_rig(1))
    again = write(tmp_path, make_gaussians, written=(1,))
    assert again.id != first.id and again.rig is None
    assert [s.time for s in again.steps] == [1] and not again.complete
    assert not (tmp_path / "step.0002.safetensors").exists()


@pytest.mark.parametrize(
    ("frame", "step"), [(-9, 0), (10, 0), (11.9, 0), (12, 1), (15, 2), (99, 2)]
)
def test_a_frame_shows_the_step_that_it_holds(tmp_path, make_gaussians, frame, step):
    assert write(tmp_path, make_gaussians).step_for_frame(frame) == step


def test_mapped_arrays_are_plain_floats_and_take_no_memory(tmp_path, make_gaussians):
    sequence = write(tmp_path, make_gaussians, times=1, written=(0,), counts=(200_000,))
    tracemalloc.start()
    step = sequence.step(0)
    kept = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kept < 1 << 20
    for name in NAMES:
        view = memoryview(getattr(step, name))
        # Blender's foreach_set is 200 times slower with the format "<f" of a memory map.
        assert view.format == "f" and view.c_contiguous and view.readonly


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda g: g.scales.__setitem__(1, -1), "smallest scale"),
        (lambda g: g.opacities.__setitem__(1, 1.5), "no logits"),
        (lambda g: g.rotations.__setitem__(1, 2), "has length"),
        (lambda g: g.means.__setitem__(1, np.inf), r"means\[1\] is not finite"),
        (lambda g: setattr(g, "sh", g.sh[:, :0]), "coefficients"),
        (lambda g: setattr(g, "means", g.means.astype(float)), "float64"),
        (lambda g: setattr(g, "opacities", g.opacities[:2]), "shape"),
    ],
)
def test_gaussians_that_nobody_could_draw_are_refused(tmp_path, make_gaussians, change, reason):
    gaussians = make_gaussians(3)
    change(gaussians)
    with SequenceWriter(tmp_path, times=2, fps=24, frame_start=1, frame_step=1) as writer:
        with pytest.raises(SequenceError, match=reason):
            writer.write_step(0, gaussians)
    assert not read_sequence(tmp_path).steps and len(list(tmp_path.iterdir())) == 1


@given(keep=st.floats(0, 0.999))
def test_a_truncated_step_file_is_refused(folder, make_gaussians, keep):
    sequence, raw = once(folder / "cut", make_gaussians, "step.0000.safetensors")
    path = folder / "cut" / "step.0000.safetensors"
    path.write_bytes(raw[: int(keep * len(raw))])
    with pytest.raises(SequenceError, match="step.0000.safetensors"):
        sequence.step(0)


@given(data=st.data())
def test_a_damaged_step_file_is_read_or_refused(folder, make_gaussians, data):
    sequence, whole = once(folder / "damaged", make_gaussians, "step.0002.safetensors")
    path = folder / "damaged" / "step.0002.safetensors"
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, min(420, len(raw) - 1)))] = data.draw(st.integers(0, 255))
    if raw == whole:
        return
    path.write_bytes(raw)
    try:
        sequence.step(2).check_shapes("damaged")
    except SequenceError as error:
        assert "\n" not in str(error)
    with pytest.raises(SequenceError):
        sequence.step(2, verify=True)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1 << 40, 3], "data_offsets": [0, 12 << 40]},
        {"dtype": "F32", "shape": [1 << 40, 0], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]},
        {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
        [],
        None,
    ],
)
def test_a_lying_header_allocates_nothing(tmp_path, entry):
    text = json.dumps({"means": entry}).encode()
    (tmp_path / "lie").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    tracemalloc.start()
    with pytest.raises(SequenceError):
        map_tensors(tmp_path / "lie")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_an_endless_or_nested_header_is_refused(tmp_path):
    for text in (b"", b"[" * 900_000, b'{"a":1,"a":2}', b"\xff\xfe", b"9" * 9000):
        for length in (len(text), 1 << 62):
            (tmp_path / "x").write_bytes(struct.pack("<Q", length) + text)
            with pytest.raises(SequenceError):
                map_tensors(tmp_path / "x")


def change_somewhere(obj, data, junk):
    """Replace one place of a JSON value, drawn by hypothesis, with junk."""
    keys = sorted(obj) if isinstance(obj, dict) else list(range(len(obj)))
    key = data.draw(st.sampled_from(keys))
    if isinstance(obj[key], (dict, list)) and obj[key] and data.draw(st.booleans()):
        change_somewhere(obj[key], data, junk)
    elif isinstance(obj, dict) and data.draw(st.booleans()):
        del obj[key]
    else:
        obj[key] = data.draw(junk)


junk_values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(allow_nan=False),
    st.text(max_size=5), st.just([]), st.just({}), st.just("../x"), st.just([[0] * 3] * 2),
    st.just("a\x00b"), st.just("step.0000.safetensors"),
)  # fmt: skip


@given(data=st.data())
@pytest.mark.parametrize("name", ["sequence.json", "rig.json"])
def test_damaged_json_is_read_or_refused(folder, make_gaussians, make_rig, name, data):
    where = folder / name.replace(".", "_")
    obj = json.loads(once(where, make_gaussians, name, rig=make_rig(2))[1])
    change_somewhere(obj, data, junk_values)
    (where / name).write_text(json.dumps(obj))
    try:
        sequence = read_sequence(where)
        for step in sequence.steps:
            sequence.step(step.time, verify=True)
    except (SequenceError, RigError) as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "NaN", "[" * 100_000, '{"format":"viewtime.splats","version":2}']
)
def test_what_is_no_sequence_gets_one_line(tmp_path, text):
    (tmp_path / "sequence.json").write_text(text)
    with pytest.raises(SequenceError, match=r"sequence\.json: "):
        read_sequence(tmp_path)


@pytest.mark.parametrize("path", ["/etc/passwd", "../a", "x/../../a", "C:/a", "a\\b", "out/a", ""])
def test_a_step_path_that_leaves_the_folder_is_refused(tmp_path, make_gaussians, path):
    folder = tmp_path / "s"
    write(folder, make_gaussians)
    (tmp_path / "a").write_text("secret")
    (folder / "out").symlink_to(tmp_path)
    obj = json.loads((folder / "sequence.json").read_text())
    obj["steps"][0]["file"] = path
    (folder / "sequence.json").write_text(json.dumps(obj))
    with pytest.raises(SequenceError, match=r"steps\[0\]\.file"):
        read_sequence(folder)


def test_a_full_disk_leaves_the_sequence_as_it_was(tmp_path, make_gaussians):
    writer = SequenceWriter(tmp_path, times=2, fps=24, frame_start=1, frame_step=1)
    writer.write_step(0, make_gaussians(4))
    before = sorted(p.name for p in tmp_path.iterdir())
    for name in ("step.0001.safetensors.part", "sequence.json.part"):
        (tmp_path / name).symlink_to("/dev/full")
        with pytest.raises(ViewtimeError, match="disk is full"):
            writer.write_step(1, make_gaussians(5000))
    sequence = read_sequence(tmp_path)
    assert sequence.has_step(0) and not sequence.has_step(1) and not sequence.complete
    assert {p.name for p in tmp_path.iterdir()} - {*before} <= {"step.0001.safetensors"}
    assert len(sequence.step(0, verify=True)) == 4


def test_write_json_refuses_what_is_no_json_and_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    for bad in (float("nan"), object()):
        with pytest.raises((ValueError, TypeError)):
            write_json(tmp_path / "a.json", bad)
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    with pytest.raises(SequenceError, match="provenance"):
        SequenceWriter(
            tmp_path / "s", times=1, fps=1, frame_start=1, frame_step=1, provenance={"x": bad}
        )


@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_tensors_of_any_shape_come_back(folder, shape, seed):
    tensor = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    write_tensors(folder / "t", {"a": tensor, "é": tensor.T, "n": np.float32([seed])}, {"k": "v"})
    back = map_tensors(folder / "t")
    np.testing.assert_array_equal(back["a"], tensor)
    np.testing.assert_array_equal(back["é"], tensor.T)
