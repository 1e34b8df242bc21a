# SPDX-License-Identifier: GPL-3.0-or-later
"""The GLSL that draws splats: EWA projection of each Gaussian to an ellipse of pixels.
It holds no state: makes shaders and fills their uniform blocks, and draws nothing itself.

The maths is that of the backend's rasteriser: the covariance of the Gaussian goes through the
Jacobian of the projection at its centre (held inside a guard band 30 % beyond the frame), a small
dilation is added, and the ellipse ends where its alpha falls below 1/255.
"""

from __future__ import annotations

import gpu
import numpy as np

from .cloud_data import WIDTH
from .harmonics import SH_C0, glsl

# Clipping planes that a view can have (Alt B gives six).
MAX_PLANES = 6
DILATION = 0.01  # pixels squared, as the backend's rasteriser
_BLOCK = (
    ("camera_from_object", (4, 4)),
    ("projection", (4, 4)),
    ("crop_from_object", (4, 4)),
    ("eye", (4,)),  # in the object's space: a place (w 1) or a direction of view (w 0)
    ("frame", (4,)),  # width, height, dilation, factor on every scale
    ("limits", (4,)),  # opacity from, size up to, pixels of a dot (0: Gaussians)
    ("choice", (4,)),  # coefficients beyond degree 0, splats, linear output, planes
    ("planes", (MAX_PLANES, 4)),  # in the object's space
)

_TYPEDEF = f"""
struct ViewtimeBlock {{
  mat4 camera_from_object;
  mat4 projection;
  mat4 crop_from_object;
  vec4 eye;
  vec4 frame;
  vec4 limits;
  vec4 choice;
  vec4 planes[{MAX_PLANES}];
}};
"""

_VERTEX = f"""
#define VT_PLACE(i) ivec2((i) % {WIDTH}, (i) / {WIDTH})
#define VT_NUMBER(t, i) texelFetch(t, VT_PLACE(i), 0).r
#define VT_VECTOR(t, i) vec3(VT_NUMBER(t, i), VT_NUMBER(t, (i) + 1), VT_NUMBER(t, (i) + 2))

vec3 vt_rest(int splat, int k)
{{
  int i = 3 * (k * int(vt.choice.y) + splat);
  return VT_VECTOR(rest, i);
}}

{{harmonics}}

vec3 vt_linear(vec3 c)
{{
  vec3 high = pow((c + 0.055) / 1.055, vec3(2.4));
  return mix(high, c / 12.92, vec3(lessThanEqual(c, vec3(0.04045))));
}}

void main()
{{
  gl_Position = vec4(2.0, 2.0, 2.0, 1.0); /* Outside: drawn by nobody. */
  sigmas = vec2(0.0);
  tint = vec4(0.0);
  reach = vec2(0.0);
  int place = gl_InstanceID;
  int splat = int(VT_NUMBER(order, place));
  vec3 centre = VT_VECTOR(position, 3 * splat);
  vec3 shape = VT_VECTOR(scale, 3 * splat);
  vec4 q = texelFetch(rotation, VT_PLACE(splat), 0);
  vec4 colour = texelFetch(base, VT_PLACE(splat), 0);
  float opacity = colour.a;
  bool dots = vt.limits.z > 0.0;
  vec3 boxed = (vt.crop_from_object * vec4(centre, 1.0)).xyz;
  if (!(opacity >= vt.limits.x) || max(shape.x, max(shape.y, shape.z)) > vt.limits.y ||
      any(greaterThan(abs(boxed), vec3(1.0))))
  {{
    return;
  }}
  for (int i = 0; i < int(vt.choice.w); i++) {{
    if (dot(vt.planes[i], vec4(centre, 1.0)) < 0.0) {{
      return;
    }}
  }}
  vec3 p = (vt.camera_from_object * vec4(centre, 1.0)).xyz;
  vec4 clip = vt.projection * vec4(p, 1.0);
  bool perspective = vt.projection[2][3] != 0.0;
  if (perspective && p.z > -1e-6) {{
    return;
  }}
  float depth = -p.z;
  vec2 focal = 0.5 * vt.frame.xy * vec2(vt.projection[0][0], vt.projection[1][1]);
  vec2 major, minor;
  if (dots) {{
    major = vec2(0.5 * vt.limits.z, 0.0);
    minor = major.yx;
    reach.x = 0.0;
    sigmas = corner;
  }}
  else {{
    mat3 turn = mat3(
      1.0 - 2.0 * (q.z * q.z + q.w * q.w), 2.0 * (q.y * q.z + q.x * q.w),
      2.0 * (q.y * q.w - q.x * q.z), 2.0 * (q.y * q.z - q.x * q.w),
      1.0 - 2.0 * (q.y * q.y + q.w * q.w), 2.0 * (q.z * q.w + q.x * q.y),
      2.0 * (q.y * q.w + q.x * q.z), 2.0 * (q.z * q.w - q.x * q.y),
      1.0 - 2.0 * (q.y * q.y + q.z * q.z));
    mat3 axes = mat3(vt.camera_from_object) * turn;
    /* Where the line of sight is believed: 1.3 times the frame, as in INRIA's rasteriser. */
    vec2 slope = vec2(0.0);
    vec2 pixels = focal;
    if (perspective) {{
      vec2 shift = vec2(vt.projection[2][0], vt.projection[2][1]);
      vec2 unit = vec2(vt.projection[0][0], vt.projection[1][1]);
      slope = clamp(p.xy / depth, (shift - 1.3) / unit, (shift + 1.3) / unit);
      pixels = focal / depth;
    }}
    vec3 cov = vec3(vt.frame.z, 0.0, vt.frame.z);
    for (int k = 0; k < 3; k++) {{
      vec3 axis = axes[k] * (shape[k] * vt.frame.w);
      vec2 seen = pixels * (axis.xy + slope * axis.z);
      cov += vec3(seen.x * seen.x, seen.x * seen.y, seen.y * seen.y);
    }}
    float half_difference = 0.5 * (cov.x - cov.z);
    float spread = length(vec2(half_difference, cov.y));
    float large = 0.5 * (cov.x + cov.z) + spread;
    float small = max((cov.x * cov.z - cov.y * cov.y) / large, 1e-12);
    float angle = spread > 0.0 ? 0.5 * atan(cov.y, half_difference) : 0.0;
    vec2 along = vec2(cos(angle), sin(angle));
    reach.x = log(opacity * 255.0);
    float radius = sqrt(2.0 * reach.x);
    sigmas = corner * radius;
    major = along * (sqrt(large) * radius);
    minor = vec2(-along.y, along.x) * (sqrt(small) * radius);
  }}
  vec3 seen_from = vt.eye.w > 0.5 ? centre - vt.eye.xyz : vt.eye.xyz;
  vec3 display = max(
    vec3(0.0), 0.5 + {SH_C0} * colour.rgb +
      vt_harmonics(int(vt.choice.x), splat, normalize(seen_from)));
  tint = vec4(vt.choice.z > 0.5 ? vt_linear(display) : display, opacity);
  reach.y = depth;
  vec2 offset = corner.x * major + corner.y * minor;
  gl_Position = vec4(clip.xy + 2.0 * offset / vt.frame.xy * clip.w, clip.zw);
}}
"""

_FRAGMENT = """
void main()
{
  float power = 0.5 * dot(sigmas, sigmas);
  if (vt.limits.z > 0.0) {
    if (power > 0.5) {
      discard;
    }
    colour_out = vec4(tint.rgb, 1.0);
    return;
  }
  if (power > reach.x) {
    discard;
  }
  float alpha = min(tint.a * exp(-power), 0.999);
  colour_out = vec4(tint.rgb * alpha, alpha);
#ifdef WITH_DEPTH
  depth_out = vec4(reach.y * alpha, 0.0, 0.0, alpha);
#endif
}
"""


def splat_shader(with_depth: bool = False) -> gpu.types.GPUShader:
    """Draws quads (corner in -1 to 1) by instance. with_depth: a second output of depth * alpha.

    Colours leave premultiplied, in display sRGB or in linear light as the block says.
    """
    info = gpu.types.GPUShaderCreateInfo()
    info.typedef_source(_TYPEDEF)
    info.uniform_buf(0, "ViewtimeBlock", "vt")
    for slot, name in enumerate(("position", "scale", "rotation", "base", "rest", "order")):
        info.sampler(slot, "FLOAT_2D", name)
    info.vertex_in(0, "VEC2", "corner")
    stage = gpu.types.GPUStageInterfaceInfo("viewtime_splat")
    stage.smooth("VEC2", "sigmas")
    stage.flat("VEC4", "tint")
    stage.flat("VEC2", "reach")
    info.vertex_out(stage)
    info.fragment_out(0, "VEC4", "colour_out")
    if with_depth:
        info.define("WITH_DEPTH")
        info.fragment_out(1, "VEC4", "depth_out")
    info.vertex_source(_VERTEX.replace("{harmonics}", glsl()))
    info.fragment_source(_FRAGMENT)
    return gpu.shader.create_from_info(info)


def block(**values: object) -> gpu.types.GPUUniformBuf:
    """The shader's uniform block; matrices as rows, of the names in _BLOCK, all of them."""
    parts = []
    for name, shape in _BLOCK:
        value = np.zeros(shape, np.float32)
        given = np.asarray(values.pop(name), np.float32)
        value[tuple(slice(size) for size in given.shape)] = given
        # std140 keeps matrices column by column.
        parts.append((value.T if shape == (4, 4) else value).reshape(-1))
    assert not values, f"no such names in the block: {sorted(values)}"
    data = np.concatenate(parts)
    return gpu.types.GPUUniformBuf(gpu.types.Buffer("FLOAT", len(data), data))


# ---- a picture laid over the viewport ----

_OVER_VERTEX = """
void main()
{
  gl_Position = vec4(corner, 0.0, 1.0);
}
"""

_OVER_FRAGMENT = """
vec3 vt_linear(vec3 c)
{
  vec3 high = pow((c + 0.055) / 1.055, vec3(2.4));
  return mix(high, c / 12.92, vec3(lessThanEqual(c, vec3(0.04045))));
}

void main()
{
  vec4 seen = texelFetch(picture, ivec2(gl_FragCoord.xy - origin), 0);
  if (seen.a <= 0.0) {
    discard;
  }
  colour_out = vec4(vt_linear(seen.rgb / seen.a) * seen.a, seen.a);
}
"""


def over_shader() -> gpu.types.GPUShader:
    """Lays a premultiplied display sRGB picture over a framebuffer that takes linear light."""
    info = gpu.types.GPUShaderCreateInfo()
    info.sampler(0, "FLOAT_2D", "picture")
    info.push_constant("VEC2", "origin")
    info.vertex_in(0, "VEC2", "corner")
    info.fragment_out(0, "VEC4", "colour_out")
    info.vertex_source(_OVER_VERTEX)
    info.fragment_source(_OVER_FRAGMENT)
    return gpu.shader.create_from_info(info)


# ---- depth ----


def depth_shader() -> gpu.types.GPUShader:
    """Draws triangles into the depth buffer alone."""
    info = gpu.types.GPUShaderCreateInfo()
    info.push_constant("MAT4", "clip_from_object")
    info.vertex_in(0, "VEC3", "position")
    stage = gpu.types.GPUStageInterfaceInfo("viewtime_depth")
    stage.smooth("FLOAT", "distance")
    info.vertex_out(stage)
    info.fragment_out(0, "VEC4", "colour_out")
    info.vertex_source("void main() { gl_Position = clip_from_object * vec4(position, 1.0); }")
    info.fragment_source("void main() { colour_out = vec4(0.0); }")
    return gpu.shader.create_from_info(info)


def copied_depth_shader() -> gpu.types.GPUShader:
    """Writes a depth picture into the depth buffer."""
    info = gpu.types.GPUShaderCreateInfo()
    info.sampler(0, "FLOAT_2D", "picture")
    info.vertex_in(0, "VEC2", "corner")
    info.depth_write("ANY")
    info.fragment_out(0, "VEC4", "colour_out")
    info.vertex_source(_OVER_VERTEX)
    info.fragment_source(
        "void main() {"
        " gl_FragDepth = texelFetch(picture, ivec2(gl_FragCoord.xy), 0).r;"
        " colour_out = vec4(0.0); }"
    )
    return gpu.shader.create_from_info(info)
