# SPDX-License-Identifier: GPL-3.0-or-later
"""Draws splats in 3D viewports where Blender cannot: a handler after each view is drawn.
It never waits for a sort, never uploads what has not changed, and never raises into Blender.

Splats are drawn into a picture of their own, against a copy of the view's depth, blended in
display values as they were trained, and then laid over the view as linear light.
"""

from __future__ import annotations

import traceback
from collections.abc import Hashable
from dataclasses import dataclass

import bpy
import gpu
import numpy as np
from bpy.app.handlers import persistent

from . import shader
from .cloud_data import Staging, read, stable_subset
from .draw import Painter, Uploaded, View, forward_in, quad_batch, texture, upload_order
from .order import Sorter, far_to_near_fast, fitted
from .settings import Look, holds_splats, look_of

# Which step a cloud holds, as playback notes it: a change means new splats.
STEP = "viewtime_step"
# Looking for a finished sort, in seconds.
_WATCH = 0.01
# Splats that take a few milliseconds to sort: a view's first picture does not wait for more.
_AT_ONCE = 200_000


@dataclass
class _Held:
    """One cloud's splats on the GPU, and what the sort needs of them."""

    stamp: Hashable
    uploaded: Uploaded
    position: np.ndarray
    share: float


class Viewport:
    """Everything that is kept from one redraw to the next. Belongs to the window's GPU context."""

    def __init__(self) -> None:
        self.sorter = Sorter()
        self.problem = ""
        self._seen = 0
        self._generation: dict[int, int] = {}
        self._held: dict[Hashable, _Held] = {}
        self._orders: dict[Hashable, tuple[Hashable, gpu.types.GPUTexture]] = {}
        self._staging: Staging = {}
        self._painter: Painter | None = None
        self._over: gpu.types.GPUShader | None = None
        self._copy: gpu.types.GPUShader | None = None
        self._quad: gpu.types.GPUBatch | None = None
        self._frames: dict[tuple[int, int], tuple[gpu.types.GPUTexture, ...]] = {}

    # ---- what is drawn ----

    def draw(self, context: bpy.types.Context) -> None:
        """One view; called by Blender after it has drawn the scene and its overlays."""
        found = visible(context)
        if not found or self.problem:
            return
        _, _, width, height = gpu.state.viewport_get()
        view = View(
            np.array(gpu.matrix.get_model_view_matrix(), np.float64),
            np.array(gpu.matrix.get_projection_matrix(), np.float64),
            width,
            height,
            _planes(context.region_data),
        )
        playing = any(w.screen.is_animation_playing for w in context.window_manager.windows)
        # A view's objects are drawn one after the other, the farthest first.
        found.sort(key=lambda pair: -_distance(pair[0], view))
        jobs = [self._job(context, ob, look, view, playing) for ob, look in found]
        self._paint(view, [job for job in jobs if job is not None])

    def _job(
        self,
        context: bpy.types.Context,
        ob: bpy.types.Object,
        look: Look,
        view: View,
        playing: bool,
    ) -> tuple | None:
        density = look.density if playing else 1.0
        held = self._splats(ob.data, look.view_dependent, density)
        if held is None:
            return None
        world = np.array(ob.matrix_world, np.float64)
        order = self._order(context.region.as_pointer(), ob, held, view.camera_from_world @ world)
        if order is None:
            return None
        growth = 1.0 / np.sqrt(density)
        return held.uploaded, order, held.uploaded.count, world, look, growth

    def _splats(
        self, cloud: bpy.types.PointCloud, view_dependent: bool, density: float
    ) -> _Held | None:
        """The cloud's splats as they are now, uploaded when they have changed."""
        uid = cloud.session_uid
        key = (uid, view_dependent, density)
        count = cloud.attributes.domain_size("POINT")
        stamp = (*key, cloud.get(STEP, ""), count, self._generation.get(uid, 0))
        held = self._held.get(key)
        if held is not None and held.stamp == stamp:
            return held
        # A render may be filling the cloud from its own thread at this moment.
        if bpy.app.is_job_running("RENDER"):
            return held
        splats = read(cloud, view_dependent)
        if density < 1.0:
            splats = splats.take(stable_subset(len(splats), density))
        held = _Held(stamp, Uploaded(splats, self._staging), splats.position, density)
        there = {cloud.session_uid for cloud in bpy.data.pointclouds}
        # One density and one kind of colour for a cloud: the others would only fill memory.
        self._held = {k: v for k, v in self._held.items() if k[0] in there and k[0] != uid}
        self._held[key] = held
        return held

    def _order(
        self, region: int, ob: bpy.types.Object, held: _Held, camera_from_object: np.ndarray
    ) -> gpu.types.GPUTexture | None:
        """The view's order of the splats: the last finished one until the new one is there.

        None before there has been any, for clouds too large to be sorted at once.
        """
        forward = forward_in(camera_from_object)
        forward = forward / max(float(np.linalg.norm(forward)), 1e-30)
        # Another share of the splats has other indices: its orders are of no use.
        key = (region, ob.session_uid, held.share)
        self.sorter.ask(key, (held.stamp, *np.round(forward, 3)), held.position, forward)
        if not bpy.app.timers.is_registered(_watch):
            bpy.app.timers.register(_watch, first_interval=_WATCH)
        done = self.sorter.order(key)
        if done is None:
            # The first picture of this view. Wrong colours would be worse than none.
            if held.uploaded.count > _AT_ONCE:
                return None
            done = (None, far_to_near_fast(held.position, forward))
        stamp, order = done
        wanted = (stamp, held.uploaded.count)
        drawn = self._orders.get(key)
        if drawn is None or drawn[0] != wanted:
            drawn = (wanted, upload_order(fitted(order, held.uploaded.count)))
            self._orders.pop(key, None)
            self._orders[key] = drawn
            while len(self._orders) > 24:
                del self._orders[next(iter(self._orders))]
        return drawn[1]

    # ---- how ----

    def _paint(self, view: View, jobs: list[tuple]) -> None:
        if self._painter is None:
            self._painter, self._quad = Painter(), quad_batch()
            self._over, self._copy = shader.over_shader(), shader.copied_depth_shader()
        depth = _depth_of_view()
        if depth is None:
            # Without the view's depth as a picture: straight into the view, in linear light.
            for uploaded, order, count, world, look, growth in jobs:
                self._painter.draw(
                    uploaded, order, count, world, view, look, linear=True, growth=growth
                )
            return
        color, frame = self._frame(view.width, view.height)
        with frame.bind():
            frame.clear(color=(0.0, 0.0, 0.0, 0.0), depth=1.0)
            gpu.state.viewport_set(0, 0, view.width, view.height)
            self._fill(self._copy, depth, blend="NONE", depth_test="ALWAYS")
            for uploaded, order, count, world, look, growth in jobs:
                self._painter.draw(
                    uploaded, order, count, world, view, look, linear=False, growth=growth
                )
        x, y, _, _ = gpu.state.viewport_get()
        self._over.bind()
        self._over.uniform_float("origin", (float(x), float(y)))
        self._fill(self._over, color, blend="ALPHA_PREMULT", depth_test="NONE")

    def _fill(
        self,
        program: gpu.types.GPUShader,
        source: gpu.types.GPUTexture,
        blend: str,
        depth_test: str,
    ) -> None:
        """Draw the whole frame with a shader that reads a picture."""
        gpu.state.blend_set(blend)
        gpu.state.depth_test_set(depth_test)
        gpu.state.depth_mask_set(depth_test != "NONE")
        program.bind()
        program.uniform_sampler("picture", source)
        self._quad.draw(program)
        gpu.state.depth_mask_set(False)
        gpu.state.depth_test_set("NONE")
        gpu.state.blend_set("NONE")

    def _frame(self, width: int, height: int) -> tuple:
        if (width, height) not in self._frames:
            if len(self._frames) > 3:
                self._frames.clear()
            color = gpu.types.GPUTexture((width, height), format="RGBA16F")
            depth = gpu.types.GPUTexture((width, height), format="DEPTH_COMPONENT32F")
            frame = gpu.types.GPUFrameBuffer(depth_slot=depth, color_slots=(color,))
            # The framebuffer does not keep its textures alive.
            self._frames[width, height] = (color, frame, depth)
        return self._frames[width, height][:2]

    # ---- what happens elsewhere ----

    def changed(self, depsgraph: bpy.types.Depsgraph) -> None:
        """Note clouds whose points changed without a new step."""
        for update in depsgraph.updates:
            if update.is_updated_geometry and isinstance(update.id, bpy.types.PointCloud):
                uid = update.id.original.session_uid
                self._generation[uid] = self._generation.get(uid, 0) + 1

    def forget(self) -> None:
        """Another file is open: nothing of the old one is of use."""
        self.sorter.forget()
        self._held.clear()
        self._orders.clear()
        self._generation.clear()
        self._staging.clear()
        self.problem = ""

    def redraw_when_sorted(self) -> float | None:
        """Redraw the views when an order is finished; the timer's next time, None at the end."""
        busy = self.sorter.busy
        if self.sorter.finished != self._seen:
            self._seen = self.sorter.finished
            tag_redraw()
        return _WATCH if busy else None


def visible(context: bpy.types.Context) -> list[tuple[bpy.types.Object, Look]]:
    """The objects that the handler draws in the view: shown there, and in one of its modes."""
    space = context.space_data
    if not len(bpy.data.pointclouds) or not space.show_object_viewport_pointcloud:
        return []
    found = []
    for ob in context.view_layer.objects:
        if ob.type != "POINTCLOUD" or not holds_splats(ob):
            continue
        look = look_of(ob)
        if look.mode in ("SPLATS", "POINTS") and ob.visible_get(
            view_layer=context.view_layer, viewport=space
        ):
            found.append((ob, look))
    return found


def _distance(ob: bpy.types.Object, view: View) -> float:
    """Depth of the middle of the object's box."""
    corners = np.array([tuple(corner) for corner in ob.bound_box], np.float64)
    middle = np.append(corners.mean(axis=0), 1.0)
    return -float((view.camera_from_world @ np.array(ob.matrix_world) @ middle)[2])


def _planes(region: bpy.types.RegionView3D) -> np.ndarray | None:
    if not region.use_clip_planes:
        return None
    planes = np.array([tuple(plane) for plane in region.clip_planes], np.float64)
    return planes[np.abs(planes[:, :3]).sum(axis=1) > 0]


def _depth_of_view() -> gpu.types.GPUTexture | None:
    """A copy of the depth that the view was drawn with; None where it cannot be read."""
    x, y, width, height = gpu.state.viewport_get()
    try:
        values = gpu.state.active_framebuffer_get().read_depth(x, y, width, height)
        values.dimensions = width * height
    except (RuntimeError, ValueError, AttributeError):
        return None
    return texture(np.array(values, np.float32).reshape(height, width), "R32F")


def tag_redraw() -> None:
    """Draw every 3D viewport again."""
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            if area.type == "VIEW_3D":
                area.tag_redraw()


# The one state of the drawing and its handle; None while the add-on draws nothing.
_viewport: Viewport | None = None
_handle: object | None = None


def problem() -> str:
    """Why nothing is drawn, in one line; empty when all is well."""
    return _viewport.problem if _viewport is not None else ""


def _draw() -> None:
    if _viewport is None:
        return
    try:
        _viewport.draw(bpy.context)
    except Exception as error:  # a handler that raises is called again at every redraw
        traceback.print_exc()
        _viewport.problem = f"Splats cannot be drawn in the viewport: {error}"


def _watch() -> float | None:
    return _viewport.redraw_when_sorted() if _viewport is not None else None


@persistent
def _updated(_scene: bpy.types.Scene, depsgraph: bpy.types.Depsgraph) -> None:
    if _viewport is not None:
        _viewport.changed(depsgraph)


@persistent
def _loaded(_path: str = "", _more: object = None) -> None:
    if _viewport is not None:
        _viewport.forget()


def register() -> None:
    """Begin to draw; nothing happens in background mode, which has no viewports."""
    global _viewport, _handle
    if bpy.app.background:
        return
    _viewport = Viewport()
    _handle = bpy.types.SpaceView3D.draw_handler_add(_draw, (), "WINDOW", "POST_VIEW")
    bpy.app.handlers.depsgraph_update_post.append(_updated)
    bpy.app.handlers.load_post.append(_loaded)


def unregister() -> None:
    global _viewport, _handle
    if _handle is None:
        return
    bpy.types.SpaceView3D.draw_handler_remove(_handle, "WINDOW")
    bpy.app.handlers.depsgraph_update_post.remove(_updated)
    bpy.app.handlers.load_post.remove(_loaded)
    if bpy.app.timers.is_registered(_watch):
        bpy.app.timers.unregister(_watch)
    _viewport = _handle = None
