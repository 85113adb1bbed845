"""Images of digits and of clothes as IDX files, for where MNIST and Fashion-MNIST are not at hand.

    python3 make.py FOLDER [--train 2000] [--test 500] [--size 28] [--seed 0]

makes FOLDER/digits and FOLDER/clothes, each with the four files of MNIST, packed. The shapes are
drawn: strokes of digits, outlines of clothes, each image moved, scaled, slanted and shaded anew.
The same arguments give the same bytes. Python's standard library is all it needs.
"""

import argparse
import gzip
import math
import pathlib
import random
import struct


def arc(x, y, width, height, start, end, steps=10):
    """Points of an ellipse around (x, y); angles in degrees, 0 to the right, 90 downwards."""
    angles = [math.radians(start + (end - start) * k / steps) for k in range(steps + 1)]
    return [(x + width * math.cos(a), y + height * math.sin(a)) for a in angles]


# Lines through points; x to the right and y downwards, both between -1 and 1.
DIGITS = [
    [arc(0, 0, 0.6, 0.9, 0, 360, 20)],
    [[(-0.35, -0.5), (0.1, -0.9), (0.1, 0.9)]],
    [arc(0, -0.4, 0.55, 0.5, 180, 390) + [(-0.6, 0.9), (0.6, 0.9)]],
    [arc(-0.05, -0.45, 0.55, 0.45, 200, 450), arc(-0.05, 0.45, 0.6, 0.45, 270, 520)],
    [[(0.25, 0.9), (0.25, -0.9), (-0.6, 0.3), (0.6, 0.3)]],
    [[(0.5, -0.9), (-0.4, -0.9), (-0.45, -0.1)] + arc(-0.05, 0.35, 0.55, 0.52, 225, 500)],
    [[(0.35, -0.9), (-0.4, 0.0)] + arc(0, 0.4, 0.5, 0.48, 180, 540, 16)],
    [[(-0.6, -0.9), (0.6, -0.9), (-0.15, 0.9)]],
    [arc(0, -0.45, 0.45, 0.43, 90, 450, 16), arc(0, 0.45, 0.55, 0.45, 270, 630, 16)],
    [arc(0, -0.4, 0.5, 0.48, 0, 360, 16), [(0.5, -0.4), (0.35, 0.9)]],
]

# Outlines, filled.
CLOTHES = [
    # shirt with short sleeves, trousers, pullover, dress, coat
    [[(-0.3, -0.8), (0.3, -0.8), (0.9, -0.4), (0.7, -0.1), (0.45, -0.3), (0.45, 0.8), (-0.45, 0.8), (-0.45, -0.3), (-0.7, -0.1), (-0.9, -0.4)]],
    [[(-0.45, -0.9), (0.45, -0.9), (0.55, 0.9), (0.15, 0.9), (0, -0.3), (-0.15, 0.9), (-0.55, 0.9)]],
    [[(-0.3, -0.8), (0.3, -0.8), (0.65, -0.6), (0.95, 0.7), (0.65, 0.75), (0.5, 0), (0.5, 0.8), (-0.5, 0.8), (-0.5, 0), (-0.65, 0.75), (-0.95, 0.7), (-0.65, -0.6)]],
    [[(-0.25, -0.9), (0.25, -0.9), (0.3, -0.2), (0.65, 0.9), (-0.65, 0.9), (-0.3, -0.2)]],
    [[(-0.3, -0.9), (-0.05, -0.7), (-0.05, 0.9), (-0.6, 0.9), (-0.55, 0), (-0.9, 0.7), (-0.95, 0.5), (-0.6, -0.7)], [(0.3, -0.9), (0.05, -0.7), (0.05, 0.9), (0.6, 0.9), (0.55, 0), (0.9, 0.7), (0.95, 0.5), (0.6, -0.7)]],
    # sandal, shirt with a collar, sneaker, bag, boot
    [[(-0.9, 0.3), (0.9, 0.1), (0.9, 0.3), (-0.9, 0.5)], [(-0.6, 0.3), (-0.1, -0.3), (0.1, -0.3), (-0.3, 0.3)], [(0.3, 0.2), (0.6, -0.3), (0.8, -0.3), (0.6, 0.2)]],
    [[(-0.35, -0.9), (0, -0.5), (0.35, -0.9), (0.8, -0.2), (0.6, 0), (0.4, -0.3), (0.4, 0.85), (-0.4, 0.85), (-0.4, -0.3), (-0.6, 0), (-0.8, -0.2)]],
    [[(-0.9, -0.2), (-0.5, -0.3), (-0.1, 0.0), (0.9, 0.15), (0.9, 0.45), (-0.9, 0.45)]],
    [[(-0.8, -0.2), (0.8, -0.2), (0.9, 0.7), (-0.9, 0.7)], [(-0.45, -0.2), (-0.3, -0.7), (0.3, -0.7), (0.45, -0.2), (0.3, -0.2), (0.2, -0.5), (-0.2, -0.5), (-0.3, -0.2)]],
    [[(-0.5, -0.9), (0.1, -0.9), (0.15, 0.1), (0.85, 0.4), (0.85, 0.8), (-0.5, 0.8)]],
]


def distance(x, y, a, b):
    """From a point to the line between two others."""
    (ax, ay), (bx, by) = a, b
    dx, dy = bx - ax, by - ay
    square = dx * dx + dy * dy
    along = 0.0 if square == 0 else max(0.0, min(1.0, ((x - ax) * dx + (y - ay) * dy) / square))
    return math.hypot(x - ax - along * dx, y - ay - along * dy)


def is_inside(x, y, outline):
    inside = False
    for (ax, ay), (bx, by) in zip(outline, outline[1:] + outline[:1]):
        if (ay > y) != (by > y) and x < ax + (y - ay) * (bx - ax) / (by - ay):
            inside = not inside
    return inside


def moved(lines, rng):
    """Lines at another place, of another size and slant."""
    angle, slant = rng.gauss(0, 0.08), rng.gauss(0, 0.12)
    wide, high = rng.uniform(0.75, 0.95), rng.uniform(0.75, 0.95)
    right, down = rng.gauss(0, 0.05), rng.gauss(0, 0.05)
    cos, sin = math.cos(angle), math.sin(angle)

    def point(x, y):
        x, y = wide * (x - slant * y), high * y
        return cos * x - sin * y + right, sin * x + cos * y + down

    return [[point(x + rng.gauss(0, 0.02), y + rng.gauss(0, 0.02)) for x, y in line] for line in lines]


def digit(label, size, rng):
    lines, width = moved(DIGITS[label], rng), rng.uniform(0.09, 0.16)
    edge = 2.0 / size

    def light(x, y):
        nearest = min(distance(x, y, a, b) for line in lines for a, b in zip(line, line[1:]))
        return max(0.0, min(1.0, (width + edge / 2 - nearest) / edge))

    return light


def garment(label, size, rng):
    outlines, shade, stripes = moved(CLOTHES[label], rng), rng.uniform(0.45, 1.0), rng.uniform(0, 0.2)
    turn, wave, quarter = rng.uniform(0, math.pi), rng.uniform(6, 14), 0.5 / size

    def light(x, y):
        corners = [(x + a, y + b) for a in (-quarter, quarter) for b in (-quarter, quarter)]
        share = sum(any(is_inside(*corner, o) for o in outlines) for corner in corners) / 4
        along = math.cos(turn) * x + math.sin(turn) * y
        return share * max(0.0, min(1.0, shade * (1 + stripes * math.sin(wave * along))))

    return light


def image(draw, label, size, rng):
    light = draw(label, size, rng)
    middles = [(2 * k + 1) / size - 1 for k in range(size)]
    return bytes(round(255 * light(x, y)) for y in middles for x in middles)


def write(path, shape, values):
    header = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
    # Without a name and a time, so that the same images are the same file.
    path.write_bytes(gzip.compress(header + values, 9, mtime=0))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name, draw in [("digits", digit), ("clothes", garment)]:
        folder = args.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        for part, count in [("train", args.train), ("t10k", args.test)]:
            rng = random.Random(f"{name} {part} {args.seed}")
            labels = [k % 10 for k in range(count)]
            rng.shuffle(labels)
            images = b"".join(image(draw, label, args.size, rng) for label in labels)
            write(folder / f"{part}-images-idx3-ubyte.gz", [count, args.size, args.size], images)
            write(folder / f"{part}-labels-idx1-ubyte.gz", [count], bytes(labels))


main()
