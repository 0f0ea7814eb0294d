"""Occlusions that are not masks: sunglasses, hands, strokes, rectangles, and the three of the IAMGAN paper."""

from __future__ import annotations

import cv2
import numpy as np

from deocc.occlude.masks import cast_shadow
from deocc.occlude.paint import (
    F32,
    F64,
    Box,
    Draw,
    Layer,
    bounds,
    cover,
    curve,
    disc,
    over,
    ribbon,
    sample,
    soften,
    to_bytes,
    trace,
)
from deocc.occlude.pose import RADIUS, Face


def _pixels(box: Box) -> tuple[F32, F32]:
    """Columns (1, w) and rows (h, 1) of a box, from its own corner."""
    height, width = box.shape
    return np.arange(width, dtype=np.float32)[None, :], np.arange(height, dtype=np.float32)[:, None]


def texture(draw: Draw, box: Box, unit: float) -> F32:
    """Something to fill a box with, float (h, w, 3): one colour, a gradient, clouds, white noise, stripes."""
    style = draw.pick("fill", ("plain", "gradient", "clouds", "noise", "stripes"), (5, 2, 3, 1, 1))
    first, second = (np.array(draw.any_colour(name), np.float32) for name in ("fill_colour", "fill_colour_2"))
    columns, rows = _pixels(box)
    height, width = box.shape
    offset = draw.integer("fill_x", 0, 255), draw.integer("fill_y", 0, 255)
    scale = np.float32(draw.uniform("fill_scale", 20, 120) / unit)
    weight = np.zeros((height, width), np.float32)
    if style == "gradient":
        weight = weight + (
            columns / np.float32(width) if draw.chance("fill_across", 0.5) else rows / np.float32(height)
        )
    elif style == "clouds":
        tile = draw.pick("fill_noise", ("smooth", "blobs", "crease"))
        weight = 0.5 + np.float32(0.5) * sample(tile, columns * scale, rows * scale, offset)
    elif style == "noise":
        weight = 0.5 + np.float32(0.5) * sample("grain", columns, rows, offset)
        second = (
            np.stack([sample("grain", columns, rows, (17, 3)), sample("grain", columns, rows, (3, 91)), weight], -1)
            * 128
            + 128
        )
    elif style == "stripes":
        phase = columns * scale * np.float32(0.1) + rows * scale * np.float32(0.07)
        weight = (phase - np.floor(phase) > 0.5).astype(np.float32)
    return np.asarray(first + (second - first) * weight[..., None], np.float32)


def rectangle(face: Face, draw: Draw) -> Layer:
    """One filled rectangle, upright or turned, somewhere on the face."""
    x, y = draw.uniform("x", -0.8, 0.8), draw.uniform("y", -0.5, 1.7)
    half_x, half_y = draw.uniform("half_x", 0.25, 1.1), draw.uniform("half_y", 0.2, 0.9)
    turn = draw.uniform("turn", -0.6, 0.6) if draw.chance("turned", 0.5) else 0.0
    across, down = (half_x, half_x * turn), (-half_y * turn, half_y)
    corners = [
        (x + a * across[0] + b * down[0], y + a * across[1] + b * down[1])
        for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]
    polygon = face.place(np.array(corners))
    box = bounds([polygon], face.image.shape[:2], 2)
    alpha = np.zeros(box.shape, np.uint8)
    cover(alpha, box, polygon)
    return Layer(box.top, box.left, to_bytes(texture(draw, box, face.unit)), alpha)


def strokes(face: Face, draw: Draw) -> Layer:
    """Free-form brush strokes."""
    paths = []
    for number in range(draw.integer("strokes", 1, 5)):
        x, y = draw.uniform(f"x_{number}", -0.9, 0.9), draw.uniform(f"y_{number}", -0.6, 1.8)
        points = [(x, y)]
        for bend in range(draw.integer(f"bends_{number}", 2, 6)):
            x = min(1.3, max(-1.3, x + draw.uniform(f"x_{number}_{bend}", -0.6, 0.6)))
            y = min(2.0, max(-1.0, y + draw.uniform(f"y_{number}_{bend}", -0.6, 0.6)))
            points.append((x, y))
        width = max(1, int(draw.uniform(f"width_{number}", 0.15, 0.5) * face.unit))
        paths.append((face.place(curve(points, 5)), width))
    box = bounds([path for path, _ in paths], face.image.shape[:2], 0.25 * face.unit + 3)
    alpha = np.zeros(box.shape, np.uint8)
    for path, width in paths:
        trace(alpha, box, path, width)
    return Layer(box.top, box.left, to_bytes(texture(draw, box, face.unit)), alpha)


def sunglasses(face: Face, draw: Draw) -> Layer:
    """Two lenses, a bridge, a frame and temples."""
    half_x, half_y = draw.uniform("lens_x", 0.34, 0.5), draw.uniform("lens_y", 0.24, 0.42)
    apart, drop = max(half_x + 0.04, draw.uniform("apart", 0.46, 0.56)), draw.uniform("drop", -0.04, 0.14)
    square = draw.uniform("square", 0.0, 1.0)
    slant = draw.uniform("slant", -0.06, 0.1)
    taper = draw.uniform("taper", 0.0, 0.25)
    lift = 0.12
    ring = disc((0.0, 0.0), 1.0, 1.0, 32)
    # Towards a square: push the ellipse out to where the larger coordinate is 1.
    reach = np.maximum(np.abs(ring[:, 0]), np.abs(ring[:, 1]))[:, None]
    ring = ring * (1 + 0.75 * square * (1 / reach - 1))
    lenses = []
    for side in (-1.0, 1.0):
        x = ring[:, 0] * half_x * (1 - taper * np.maximum(ring[:, 1], 0))
        y = ring[:, 1] * half_y - slant * ring[:, 0] * side
        lenses.append(face.project(np.stack([x + side * apart, y + drop], axis=1), lift))
    frame = draw.uniform("frame", 0.0, 0.1) * face.unit
    thin = max(0.8, draw.uniform("wire", 0.02, 0.08) * face.unit)
    bridge = ribbon(
        face.project(curve([(-apart + half_x, drop - 0.05), (0, drop - 0.12), (apart - half_x, drop - 0.05)], 4), lift),
        thin,
    )
    temples = [
        ribbon(
            face.project(
                np.array([(side * (apart + 0.9 * half_x), drop - 0.08), (side * RADIUS * 0.99, drop - 0.02)]), 0.0
            ),
            thin,
        )
        for side in (-1.0, 1.0)
        if -side * face.sin_yaw > -0.5
    ]
    box = bounds([*lenses, bridge, *temples], face.image.shape[:2], frame + 4)
    glass, rims = np.zeros(box.shape, np.uint8), np.zeros(box.shape, np.uint8)
    for lens in lenses:
        cover(glass, box, lens)
        if frame >= 0.6:
            cover(rims, box, ribbon(np.concatenate([lens, lens[:2]]), frame))
    for part in (bridge, *temples):
        cover(rims, box, part)
    level = np.float32(face.light.level)
    dark = draw.colour(
        "glass",
        draw.pick(
            "glass_base", ((14, 14, 16), (40, 26, 16), (20, 34, 24), (30, 40, 70), (110, 120, 130)), (6, 2, 1, 1, 0.6)
        ),
        10,
    )
    columns, rows = _pixels(box)
    height, width = box.shape
    fill = np.empty((height, width, 3), np.float32)
    fill[:] = dark
    fade = draw.uniform("fade", 0.0, 0.5) * (rows / np.float32(height))
    sky = np.array(draw.colour("reflection", (150, 165, 185), 60), np.float32)
    shine = np.clip(
        sample(
            "smooth",
            columns * np.float32(50 / face.unit),
            rows * np.float32(50 / face.unit),
            (draw.integer("shine_x", 0, 255), draw.integer("shine_y", 0, 255)),
        ),
        0,
        1,
    )
    strength = np.float32(draw.uniform("shine", 0.0, 0.7))
    fill += (sky - fill) * np.clip(shine * strength + np.float32(0.4) * fade, 0, 1)[..., None]
    fill *= level
    frame_colour = (
        draw.any_colour("frame_colour")
        if draw.chance("frame_coloured", 0.4)
        else draw.colour("frame_colour", (18, 16, 16), 14)
    )
    over(fill, np.array(frame_colour, np.float32) * level, rims)
    opacity = draw.uniform("opacity", 0.8, 1.0) if draw.chance("see_through", 0.35) else 1.0
    alpha = np.maximum((glass * np.float32(opacity)).astype(np.uint8), rims)
    sigma = face.blur * draw.uniform("softness", 0.7, 1.1)
    paint, alpha = cast_shadow(face, draw, soften(to_bytes(fill), sigma), soften(alpha, 0.6 * sigma))
    return Layer(box.top, box.left, paint, alpha)


def hand(face: Face, draw: Draw) -> Layer:
    """A hand before the face: a palm and four or five fingers, in the skin's colour."""
    x, y = draw.uniform("x", -0.6, 0.6), draw.uniform("y", 0.9, 1.7)
    aim_x, aim_y = draw.uniform("aim_x", -1.0, 1.0), draw.uniform("aim_y", -1.0, -0.2)
    size = draw.uniform("size", 0.75, 1.1)
    length = float(np.sqrt(aim_x * aim_x + aim_y * aim_y))
    up, across = (aim_x / length * size, aim_y / length * size), (-aim_y / length * size, aim_x / length * size)

    def at(a: float, b: float) -> tuple[float, float]:
        return x + a * across[0] + b * up[0], y + a * across[1] + b * up[1]

    unit = face.unit
    palm = [
        at(a, b)
        for a, b in (
            (-0.42, 0.1),
            (-0.3, 0.3),
            (0.0, 0.36),
            (0.3, 0.3),
            (0.42, 0.05),
            (0.38, -0.4),
            (0.3, -0.75),
            (0.32, -3.4),
            (-0.32, -3.4),
            (-0.3, -0.75),
            (-0.42, -0.35),
            (-0.42, 0.1),
        )
    ]
    polygons = [face.place(curve(palm, 4))]
    fingers: list[F64] = []
    bend = draw.uniform("bend", -0.25, 0.25)
    spread = draw.uniform("spread", 0.0, 0.3)
    thumb = draw.pick("thumb", (-1, 1))
    for finger in range(4):
        root = (finger - 1.5) * 0.22
        reach = (0.62, 0.78, 0.72, 0.55)[finger if thumb < 0 else 3 - finger] * draw.uniform(
            f"finger_{finger}", 0.55, 1.1
        )
        tip = root + (finger - 1.5) * spread * 0.5 + bend * reach
        line = curve(
            [
                at(root * 0.9, 0.0),
                at(root, 0.3),
                at(0.5 * (root + tip) + 0.1 * bend, 0.3 + 0.5 * reach),
                at(tip, 0.3 + reach),
            ],
            5,
        )
        fingers.append(face.place(line))
    fingers.append(
        face.place(
            curve(
                [
                    at(0.25 * thumb, -0.5),
                    at(0.5 * thumb, -0.15),
                    at(0.62 * thumb, 0.2),
                    at(0.58 * thumb, draw.uniform("thumb_reach", 0.25, 0.55)),
                ],
                5,
            )
        )
    )
    thick = draw.uniform("thick", 0.19, 0.25) * size * unit
    for path in fingers:
        polygons.append(ribbon(path, thick * (1 - 0.25 * np.arange(len(path)) / len(path))))
        polygons.append(disc((float(path[-1, 0]), float(path[-1, 1])), 0.38 * thick, 0.38 * thick, 16))
    box = bounds(polygons, face.image.shape[:2], 0.1 * unit + 3)
    alpha = np.zeros(box.shape, np.uint8)
    skin = [0.5 * (a + b) for a, b in zip(face.skin_left, face.skin_right, strict=True)]
    vary = draw.uniform("skin_level", 0.75, 1.2)
    colour = draw.colour("skin", [min(255, int(channel * vary)) for channel in skin], 14)
    shade = np.ones(box.shape, np.float32)
    contrast = np.float32(draw.uniform("contrast", 0.2, 0.5))
    for polygon in polygons:  # each finger is rounded: darker to its sides, and over what lies under it
        plane = np.zeros(box.shape, np.uint8)
        cover(plane, box, polygon)
        inner = soften(plane, 0.07 * unit)
        round_ = 1 - contrast + contrast * np.clip((inner.astype(np.float32) - 90) / np.float32(140), 0, 1)
        shade += (round_ - shade) * (plane * np.float32(1 / 255))
        alpha = np.maximum(alpha, plane)
    columns, rows = _pixels(box)
    scale = np.float32(60 / unit)
    shade *= 1 + np.float32(0.12) * sample(
        "smooth", columns * scale, rows * scale, (draw.integer("tone_x", 0, 255), draw.integer("tone_y", 0, 255))
    )
    fill = shade[..., None] * np.array(colour, np.float32)
    fill[..., 0] += (1 - shade) * 18  # skin turns redder in the shade
    fill += (sample("grain", columns, rows, (5, 9)) * np.float32(draw.uniform("grain", 0, 4)))[..., None]
    sigma = face.blur * draw.uniform("softness", 0.7, 1.2)
    paint, alpha = cast_shadow(face, draw, soften(to_bytes(fill), sigma), soften(alpha, 0.6 * sigma))
    return Layer(box.top, box.left, paint, alpha)


def erase_lower(face: Face, draw: Draw) -> Layer:
    """Direct erasing of the IAMGAN paper: the lower 40 % of the image becomes 0."""
    height, width = face.image.shape[:2]
    rows = max(1, (height * 2 + 2) // 5)
    return Layer(height - rows, 0, np.zeros((rows, width, 3), np.uint8), np.full((rows, width), 255, np.uint8))


def _lower_face(face: Face) -> list[F64]:
    """Key points of the lower face: nose, mouth corners, and the jaw where five landmarks put it."""
    half = [(0.0, 1.92), (0.36, 1.82), (0.72, 1.5), (0.95, 1.1), (1.02, 0.62)]
    jaw = [*half, (0.0, 0.3), *[(-x, y) for x, y in half]]
    return [face.project(np.array(jaw), 0.2), face.landmarks[2:]]


def keypoint_hull(face: Face, draw: Draw) -> Layer:
    """KP-CVX of the IAMGAN paper: the convex hull of the lower face's key points becomes 0."""
    points = np.rint(np.concatenate(_lower_face(face)) * 16).astype(np.int32)
    hull = cv2.convexHull(points).reshape(-1, 2).astype(np.float64) / 16.0
    box = bounds([hull], face.image.shape[:2], 2)
    alpha = np.zeros(box.shape, np.uint8)
    cover(alpha, box, hull)
    return Layer(box.top, box.left, np.zeros((*box.shape, 3), np.uint8), alpha)
