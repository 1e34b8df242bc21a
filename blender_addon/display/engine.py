# SPDX-License-Identifier: GPL-3.0-or-later
"""A render engine that draws splats exactly: sorted, blended as they were trained, hidden by the
scene's meshes, with a depth pass without holes. It never shades anything but splats."""

from __future__ import annotations

import traceback
from dataclasses import replace

import bpy
import gpu
import numpy as np
from mathutils import Matrix

from . import merge, scene_depth
from .cloud_data import Splats, read
from .draw import Painter, Uploaded, View, eye_in, forward_in, upload_order
from .order import far_to_near
from .settings import Look, holds_splats, look_of

# What Cycles writes where nothing is seen.
NOTHING = 1e10


class ViewtimeSplatsEngine(bpy.types.RenderEngine):
    """Splats alone, sorted and blended as they were trained. Meshes only hide what is behind them:
    composite this over a render of the meshes by Cycles or EEVEE"""

    bl_idname = "VIEWTIME_SPLATS"
    bl_label = "Viewtime Splats"
    bl_use_gpu_context = True
    bl_use_postprocess = True
    bl_use_eevee_viewport = True
    bl_use_shading_nodes_custom = False

    def update_render_passes(self, scene: bpy.types.Scene, layer: bpy.types.ViewLayer) -> None:
        """What the compositor finds on the Render Layers node."""
        self.register_pass(scene, layer, "Combined", 4, "RGBA", "COLOR")
        if layer.use_pass_z:
            self.register_pass(scene, layer, "Depth", 1, "Z", "VALUE")

    def render(self, depsgraph: bpy.types.Depsgraph) -> None:
        """One view layer, as seen by the scene's camera, into Combined and Depth."""
        if depsgraph.scene.camera is None:
            self.error_set("The scene has no camera")
            return
        try:
            self._render(depsgraph)
        except Exception as error:
            # Out of here, the traceback would keep textures alive beyond their GPU context, and
            # Blender would crash.
            traceback.print_exc()
            self.error_set(f"Splats could not be drawn: {error}")

    def _render(self, depsgraph: bpy.types.Depsgraph) -> None:
        scene, layer = depsgraph.scene, depsgraph.view_layer_eval
        view = camera_view(self, depsgraph)
        color, depth = picture(depsgraph, view, layer.pass_alpha_threshold)
        if not scene.render.film_transparent:
            behind = np.array([*world_color(scene), 1.0], np.float32)
            color = color + (1.0 - color[..., 3:]) * behind
        if layer.use_pass_z:
            self.add_pass("Depth", 1, "Z", layer=layer.name)
        result = self.begin_result(
            0, 0, view.width, view.height, layer=layer.name, view=self.active_view_get()
        )
        try:
            passes = result.layers[0].passes
            passes["Combined"].rect.foreach_set(_flat(scene_linear(color)))
            if "Depth" in passes:
                passes["Depth"].rect.foreach_set(_flat(depth))
        finally:
            self.end_result(result)


def camera_view(engine: bpy.types.RenderEngine, depsgraph: bpy.types.Depsgraph) -> View:
    """What the scene's camera sees within the render border, for the present eye of a pair."""
    scene, render = depsgraph.scene, depsgraph.scene.render
    camera = scene.camera.evaluated_get(depsgraph)
    full = np.array([engine.resolution_x, engine.resolution_y])
    projection = camera.calc_matrix_camera(
        depsgraph,
        x=int(full[0]),
        y=int(full[1]),
        scale_x=render.pixel_aspect_x,
        scale_y=render.pixel_aspect_y,
    )
    low, high = np.array([0, 0]), full
    if render.use_border:
        low = np.array([render.border_min_x, render.border_min_y], np.float32) * full
        high = np.array([render.border_max_x, render.border_max_y], np.float32) * full
        low, high = low.astype(int), high.astype(int)
    # The picture is the border alone: stretch it over the whole of the projection.
    window = np.eye(4)
    window[[0, 1], [0, 1]] = full / (high - low)
    window[:2, 3] = (full - low - high) / (high - low)
    world_from_camera = _rigid(engine.camera_model_matrix(camera))
    return View(
        np.linalg.inv(world_from_camera),
        window @ np.array(projection, np.float64),
        int(high[0] - low[0]),
        int(high[1] - low[1]),
    )


def _rigid(matrix: Matrix | tuple[float, ...]) -> np.ndarray:
    """(4, 4) camera matrix without its scale, which renders ignore."""
    values = np.array(matrix, np.float64)
    values = values.reshape(4, 4).T if values.ndim == 1 else values.copy()
    values[:3, :3] /= np.linalg.norm(values[:3, :3], axis=0)
    return values


def picture(
    depsgraph: bpy.types.Depsgraph, view: View, alpha_threshold: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 4) premultiplied display sRGB and (H, W) planar depth, bottom row first.

    Depth is the mean over a pixel's splats, weighted as their colours are, wherever their alpha
    reaches the threshold; elsewhere that of the mesh behind, or NOTHING. Needs a GPU context.
    """
    size = (view.width, view.height)
    color = gpu.types.GPUTexture(size, format="RGBA32F")
    weighted = gpu.types.GPUTexture(size, format="RGBA32F")
    solid = gpu.types.GPUTexture(size, format="DEPTH_COMPONENT32F")
    frame = gpu.types.GPUFrameBuffer(depth_slot=solid, color_slots=(color, weighted))
    with frame.bind():
        frame.clear(color=(0.0, 0.0, 0.0, 0.0), depth=1.0)
        scene_depth.draw(depsgraph, (view.projection @ view.camera_from_world).astype(np.float32))
        _draw_splats(depsgraph, view)
    rgba = _pixels(color, 4)
    sums = _pixels(weighted, 4)
    behind = _planar(_pixels(solid, 1)[..., 0], view.projection)
    alpha = rgba[..., 3]
    seen = (alpha >= alpha_threshold) & (alpha > 0.0)
    depth = np.where(seen, sums[..., 0] / np.maximum(sums[..., 3], 1e-30), behind)
    return rgba, depth.astype(np.float32)


def _draw_splats(depsgraph: bpy.types.Depsgraph, view: View) -> None:
    found = [
        (read(ob.data, look.view_dependent), look, world)
        for ob, look, world in visible_splats(depsgraph)
    ]
    if not found:
        return
    if len(found) == 1:
        splats, look, world = found[0]
    else:
        parts: list[Splats] = []
        for splats, look, world in found:
            eye = eye_in(view.camera_from_world @ world, view.perspective)
            chosen = merge.kept(splats, look.crop, look.min_opacity, look.max_size)
            parts.append(merge.in_world(splats.take(chosen), world, eye))
        splats, world = merge.joined(parts), np.eye(4)
        look = Look("SPLATS", False, 0.0, float("inf"), 1.0, 1, np.zeros((4, 4), np.float32))
    order = far_to_near(splats.position, forward_in(view.camera_from_world @ world))
    Painter(with_depth=True).draw(
        Uploaded(splats), upload_order(order), len(splats), world, view, look, linear=False
    )


def visible_splats(
    depsgraph: bpy.types.Depsgraph,
) -> list[tuple[bpy.types.Object, Look, np.ndarray]]:
    """Original object, look as a render needs it, and world matrix of every instance of splats."""
    found = {}
    for instance in depsgraph.object_instances:
        ob = instance.object.original
        if not holds_splats(ob) or ob.hide_render or not instance.show_self:
            continue
        world = instance.matrix_world.copy()
        look = replace(look_of(ob, world, depsgraph), mode="SPLATS")
        # An object whose geometry is of two kinds comes twice, at one place.
        place = (ob.name_full, *(value for row in world for value in row))
        found[place] = (ob, look, np.array(world, np.float64))
    return list(found.values())


def _planar(depth: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """Planar z of a depth buffer's values; NOTHING at the far plane."""
    ndc = depth.astype(np.float64) * 2.0 - 1.0
    a, b = projection[2, 2], projection[2, 3]
    z = b / (ndc + a) if projection[3, 2] else (b - ndc) / a
    return np.where(depth < 1.0, np.abs(z) if projection[3, 2] else -z, NOTHING)


def _pixels(source: gpu.types.GPUTexture, channels: int) -> np.ndarray:
    values = source.read()
    values.dimensions = source.width * source.height * channels
    return np.array(values, np.float32).reshape(source.height, source.width, channels)


def scene_linear(color: np.ndarray) -> np.ndarray:
    """Premultiplied display sRGB (..., 4) as premultiplied linear light."""
    alpha = color[..., 3:]
    straight = color[..., :3] / np.maximum(alpha, 1e-6)
    high = ((np.maximum(straight, 0.0) + 0.055) / 1.055) ** 2.4
    linear = np.where(straight <= 0.04045, straight / 12.92, high)
    return np.concatenate([linear * alpha, alpha], axis=-1).astype(np.float32)


def world_color(scene: bpy.types.Scene) -> tuple[float, float, float]:
    """The plain colour of the scene's world as display sRGB; black where there is none."""
    world = scene.world
    if world is None:
        return (0.0, 0.0, 0.0)
    rgb = np.array(world.color[:3])
    # From Blender 5 on every world has nodes, and asking is deprecated.
    if world.node_tree is not None and (bpy.app.version >= (5, 0, 0) or world.use_nodes):
        background = next((n for n in world.node_tree.nodes if n.type == "BACKGROUND"), None)
        if background is not None and not background.inputs["Color"].is_linked:
            strength = background.inputs["Strength"].default_value
            rgb = np.array(background.inputs["Color"].default_value[:3]) * strength
    encoded = np.where(
        rgb <= 0.0031308, rgb * 12.92, 1.055 * np.maximum(rgb, 0.0) ** (1 / 2.4) - 0.055
    )
    return tuple(encoded)


def _flat(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32).reshape(-1)


def _panels() -> list[type]:
    """Blender's own panels that an engine which only draws pictures can use."""
    return [
        panel
        for panel in bpy.types.Panel.__subclasses__()
        if "BLENDER_RENDER" in getattr(panel, "COMPAT_ENGINES", ())
        and not panel.__name__.startswith(("MATERIAL_", "TEXTURE_", "WORLD_"))
    ]


def register() -> None:
    """Show output, colour management and view layer settings while the engine is chosen."""
    for panel in _panels():
        panel.COMPAT_ENGINES.add(ViewtimeSplatsEngine.bl_idname)


def unregister() -> None:
    for panel in _panels():
        panel.COMPAT_ENGINES.discard(ViewtimeSplatsEngine.bl_idname)


CLASSES = (ViewtimeSplatsEngine,)
