"""Draws a small data set in VOC's own folder layout, to try the whole suite without a download.

    python tools/make_sample_dataset.py --output_dir data/sample

Every picture is a scene (meadow, coast, street, room, snow, autumn) with one to four objects of the 20 VOC classes.
Scenes and objects are lists of parts in sample_drawings.json. A part is an outline and a paint. Outlines are in units
of a hundredth of the object: x to the right, y down, 100 is the ground.

The layout and the void border follow the PASCAL VOC 2012 development kit, sections 4 and 6 (segmentation).
"""
import colorsys
import json
import os
import sys
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from datasets.classes import IGNORE_LABEL, VOC
from utils import ArgumentParser, UserError, non_negative_int, positive_int, run_program, save_image, save_labels

# How difficult the data set is.
COLOUR_JITTER = (7, 7, 7)  # standard deviation between objects: degrees of hue, percent of saturation and of value
SCENE_JITTER = (14, 9, 7)  # the same for scenes; more, so that the ground can have the colours of objects
STRAY_SCENES = 0.3  # share of pictures whose scene is drawn from all scenes, not from the main object's homes
MAIN_SIZE = (0.50, 0.70)  # length of the main object over sqrt(height * width) of the picture
COMPANION_SIZE = (0.36, 0.52)  # the same for the objects behind it
OBJECT_COUNT_ODDS = (0.2, 0.35, 0.3, 0.15)  # of one, two, three and four objects
TILT = 7  # standard deviation in degrees; twice that in the air
WOBBLE = 1.6  # units by which outlines are bent, so that no two cats are alike
NOISE = 6.0  # standard deviation of the pixel noise in grey levels
BLUR = (0.3, 0.7)  # range of the standard deviation of the lens blur in pixels
LIGHT = 0.16  # how much darker one side of the picture may be than its centre

LONG_SIDE, SHORT_SIDE = (160, 201), (120, 161)  # pixels, half-open; sizes differ as they do in VOC
SUPERSAMPLING = 3  # odd, so that one drawn pixel is at the centre of each final pixel
SPLITS = ('train', 'val')


class Paint(NamedTuple):
    """Two colours, each (hue in degrees, saturation and value in percent), and the texture that mixes them."""
    colour: list
    texture: list = ('plain',)  # the name of a function below, and its arguments
    second: list = None  # by default a darker first colour
    vary: float = 1.0  # scales the jitter of the hue: 4 gives nearly any hue


class Part(NamedTuple):
    """An outline and its paint; filled if the width is 0, otherwise a stroke."""
    points: np.ndarray  # float64 [N, 2] in units
    closed: bool
    width: float
    paint: Paint


class Thing(NamedTuple):
    """An object of a class."""
    homes: list  # names of the scenes it is found in
    flies: bool
    parts: list  # of Part, back to front


# A texture is a function of u, v (float32 [H, W], positions in units), a random generator, and arguments in units and
# degrees. It returns the share of the paint's second colour, [H, W], float32 in 0..1 or bool.


def ripples(u, v, rng, across, along):
    """Smooth random field of unit variance: random sines, wavelengths about `across` units in u and `along` in v."""
    total = np.zeros_like(u)
    for angle, phase in rng.uniform(0, 2 * np.pi, (6, 2)):
        speed = 2 * np.pi * rng.uniform(0.6, 1.4)
        total += np.sin(u * np.float32(speed * np.cos(angle) / across) + v * np.float32(speed * np.sin(angle) / along)
                        + np.float32(phase))
    return total / np.float32(np.sqrt(3))


def stripes(u, v, rng, period, angle=0, share=0.5, wave=0.0):
    """Bands that alternate in the direction `angle` (0: along x), bent by `wave` units."""
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    bend = wave * ripples(u, v, rng, 30, 30) if wave else 0
    return ((u * cos + v * sin + bend) / period % 1 < share).astype(np.float32)


def quilt(u, v, rng, period):
    seams = np.minimum(np.abs((u + v) / period % 1 - 0.5), np.abs((u - v) / period % 1 - 0.5))
    return np.clip(1 - seams * 6, 0, 1)


def cells(u, v, period, below=0.0):
    """Distance from the centres, or from `below` them, of cells that are laid like bricks, `period` wide and high."""
    row = np.floor(v / period)
    return np.hypot((u / period + row % 2 / 2) % 1 - 0.5, v / period - row - 0.5 + below)


def grain(u, v, rng, period):
    """Wooden boards along x."""
    rings = np.sin((v + 2 * ripples(u, v, rng, 60, 25)) * (4 * np.pi / period)) * 0.3 + 0.35
    return np.where(v / period % 1 < 0.12, 1, rings)


TEXTURES = {
    'stripes': stripes, 'quilt': quilt, 'grain': grain,
    'plain': lambda u, v, rng: np.zeros_like(u),  # the first colour alone
    # Gingham: half the tone where there is one band, the full tone where two cross.
    'checks': lambda u, v, rng, period: (stripes(u, v, rng, period) + stripes(u, v, rng, period, 90)) / 2,
    'dots': lambda u, v, rng, period: cells(u, v, period) < 0.3,
    # Rows of scallops, of which the rims are drawn: feathers, wool.
    'scales': lambda u, v, rng, period: np.abs(cells(u, v, period, 0.5) - 0.75) < 0.11,
    # A grid of windows; `frame` is the share of the wall between them.
    'panes': lambda u, v, rng, width, height, frame=0.3: (u / width % 1 > frame) & (v / height % 1 > frame),
    # Large patches with sharp edges; the higher `cover`, the fewer.
    'blotches': lambda u, v, rng, size, cover=0.0: ripples(u, v, rng, size, size) > cover,
    # Soft strokes of `across` and `along` units in x and y: fur, grass, waves, cloth.
    'fur': lambda u, v, rng, across, along: np.clip(0.5 + 0.35 * ripples(u, v, rng, across, along), 0, 1),
    # From the first colour at height `top` to the second at `bottom`; `mottle` adds uneven patches.
    'fade': lambda u, v, rng, top, bottom, mottle=0.0: np.clip(
        (v - top) / (bottom - top) + mottle * ripples(u, v, rng, 40, 15), 0, 1),
}

# An outline is a function of what sample_drawings.json has, where a part is [kind of outline, outline, paint, width of
# the stroke]; it returns points, float64 [N, 2] in units.


def spline(text, closed):
    """The Catmull-Rom curve through the points in a text, with eight steps from point to point."""
    points = knots(text)
    before, after = (points[-1:], points[:2]) if closed else (points[:1], points[-1:])
    p = np.concatenate([before, points, after])
    a, b, c, d = p[:-3], p[1:-2], p[2:-1], p[3:]
    t = np.linspace(0, 1, 8, endpoint=False)[:, np.newaxis, np.newaxis]
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return np.concatenate([curve.transpose(1, 0, 2).reshape(-1, 2), p[-2:-1]])


def knots(text):
    return np.array([pair.split(',') for pair in text.split()], np.float64)


def oval(numbers):
    x, y, radius_x, radius_y = numbers
    angle = np.radians(np.arange(0, 360, 10))
    return np.stack([x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)], 1)


def leaf(numbers):
    """A pointed leaf that grows from (50, 64) in the direction `angle` (degrees, 0: up)."""
    angle, length = numbers
    turn = np.exp(1j * np.radians(angle - 90))
    tip = turn * length * np.array([0, 0.3 - 0.17j, 0.65 - 0.16j, 1, 0.65 + 0.16j, 0.3 + 0.17j])
    return np.stack([50 + tip.real, 64 + tip.imag], 1)


OUTLINES = {'shape': knots, 'line': knots, 'blob': lambda text: spline(text, closed=True),
            'curve': lambda text: spline(text, closed=False), 'oval': oval, 'leaf': leaf}


def read_drawings():
    """The objects, dict of names of VOC's classes to Things, and the scenes, dict of names to lists of Parts."""
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'sample_drawings.json')) as file:
        drawings = json.load(file)

    def build_parts(parts):
        return [Part(OUTLINES[kind](outline), kind not in ('line', 'curve'), width[0] if width else 0,
                     Paint(**drawings['paints'][paint])) for kind, outline, paint, *width in parts]

    objects = {name: Thing(thing['homes'], thing['flies'], build_parts(thing['parts']))
               for name, thing in drawings['objects'].items()}
    return objects, {name: build_parts(parts) for name, parts in drawings['scenes'].items()}


OBJECTS, SCENES = read_drawings()


class Pose:
    """Where a thing is: `origin`, in units, is drawn at `base`, (x, y) in drawn pixels; `scale` is in pixels per unit,
    `turn` in degrees. `rng` draws x over y, the stretch, mirrors half of the things, and bends their outlines."""

    def __init__(self, rng, base, scale, stretches, turn=0.0, origin=(50, 100)):
        stretch = rng.uniform(*stretches) * (-1 if rng.random() < 0.5 else 1)
        cos, sin = scale * np.cos(np.radians(turn)), scale * np.sin(np.radians(turn))
        self.matrix = np.array([[cos, -sin], [sin, cos]]) @ np.diag([stretch, 1 / abs(stretch)])
        self.base, self.scale, self.origin = np.array(base), scale, np.array(origin)
        self.phases = rng.uniform(0, 2 * np.pi, 2)

    def to_pixels(self, points):
        """Units float64 [N, 2] to drawn pixels int32 [N, 2]."""
        bent = points + WOBBLE * np.sin(points[:, ::-1] * (2 * np.pi / 85) + self.phases)
        return np.rint((bent - self.origin) @ self.matrix.T + self.base).astype(np.int32)

    def to_units(self, x, y, width, height):
        """The positions u, v in units, float32 [height, width], of a window of pixels, without the bends."""
        rows, columns = np.mgrid[y:y + height, x:x + width]
        uv = (np.stack([columns, rows], axis=-1) - self.base) @ np.linalg.inv(self.matrix).T + self.origin
        return np.float32(uv[:, :, 0]), np.float32(uv[:, :, 1])


def mix_colour(colour, shift):
    """(hue, saturation, value) plus a shift of these three, as RGB, float32 [3] in 0..255."""
    hue, saturation, value = (np.array(colour) + shift) / (360, 100, 100)
    return 255 * np.float32(colorsys.hsv_to_rgb(hue % 1, np.clip(saturation, 0, 1), np.clip(value, 0.05, 1)))


def part_mask(part, pose, size):
    """The drawn pixels of one part: uint8 [H, W] in {0, 1}, size = (H, W)."""
    mask = np.zeros(size, np.uint8)
    points = pose.to_pixels(part.points)
    if part.width:
        return cv2.polylines(mask, [points], part.closed, 1, max(1, round(part.width * pose.scale)))
    return cv2.fillPoly(mask, [points], 1)


def relief(mask, reach):
    """Brightness around 1, float32 [H, W], that makes a flat mask look round and lit from the upper left."""
    window = (2 * reach + 1, 2 * reach + 1)
    soft = mask.astype(np.float32)
    for _ in range(2):
        soft = cv2.blur(soft, window, borderType=cv2.BORDER_CONSTANT)
    slope = cv2.Sobel(soft, -1, 1, 0) * 0.5 + cv2.Sobel(soft, -1, 0, 1)
    return 1 + np.clip(slope * (0.09 * reach), -0.3, 0.22)


def draw_parts(canvas, parts, pose, shift, rng, round_off):
    """Paints parts onto the canvas, float32 RGB [H, W, 3]; returns their silhouette, bool [H, W]. `shift` is added to
    hue, saturation and value; `round_off` is the units over which edges are shaded, 0 for none."""
    silhouette = np.zeros(canvas.shape[:2], bool)
    for part in parts:
        mask = part_mask(part, pose, canvas.shape[:2])
        silhouette |= mask.astype(bool)
        x, y, width, height = cv2.boundingRect(mask)
        if not width:
            continue
        window, inside = np.s_[y:y + height, x:x + width], mask[y:y + height, x:x + width]
        texture, *arguments = part.paint.texture
        share = TEXTURES[texture](*pose.to_units(x, y, width, height), rng, *arguments)[:, :, np.newaxis]
        hue, saturation, value = part.paint.colour
        first, second = (mix_colour(colour, shift * (part.paint.vary, 1, 1))
                         for colour in (part.paint.colour, part.paint.second or (hue, saturation, 0.7 * value)))
        colour = first + (second - first) * np.float32(share)
        if round_off:
            colour *= relief(inside, round(round_off * pose.scale))[:, :, np.newaxis]
        np.copyto(canvas[window], colour, where=inside[:, :, np.newaxis] > 0)
    return silhouette


def cast_shadow(canvas, thing, pose):
    """Darkens the ground beside a thing by its silhouette, laid flat and blurred. Labels have no shadows."""
    size = canvas.shape[:2]
    silhouette = sum(part_mask(part, pose, size) for part in thing.parts) > 0
    foot = pose.base[1]
    flat = np.array([[1, -0.35, 0.35 * foot], [0, 0.22, 0.78 * foot]])
    shadow = cv2.warpAffine(silhouette.astype(np.float32), flat, size[::-1])
    canvas *= 1 - 0.45 * cv2.GaussianBlur(shadow, (0, 0), 2 * SUPERSAMPLING)[:, :, np.newaxis]


def draw_classes(seed, split, index):
    """Classes of one picture, the main object first: list of 1 to 4 int. Every twenty pictures share four shuffled
    lists, so that each class is once the main object in them, and a companion about as often as any other."""
    classes = np.arange(1, len(VOC.names))
    block, place = divmod(index, len(classes))
    lists = random_stream(seed, split, block, 'classes').permuted(np.tile(classes, (len(OBJECT_COUNT_ODDS), 1)), axis=1)
    count = 1 + random_stream(seed, split, index, 'count').choice(len(OBJECT_COUNT_ODDS), p=OBJECT_COUNT_ODDS)
    return [int(c) for c in lists[:count, place]]


def random_stream(seed, split, index, purpose):
    """A separate numpy Generator for each purpose, so that no draw in one picture can change another picture."""
    # Counted from 1, because numpy treats a seed that ends in 0 like one without that 0.
    purpose_number = 1 + ('classes', 'count', 'scene').index(purpose)
    return np.random.default_rng([seed, SPLITS.index(split), index, purpose_number])


def draw_picture(seed, split, index, height=None, width=None):
    """Draws one picture, uint8 RGB [H, W, 3], and its labels, uint8 [H, W], which depend on the arguments alone."""
    rng = random_stream(seed, split, index, 'scene')
    sides = rng.integers(*LONG_SIDE), rng.integers(*SHORT_SIDE)
    drawn_height, drawn_width = sides if rng.random() < 0.3 else sides[::-1]
    size = height or drawn_height, width or drawn_width
    classes = draw_classes(seed, split, index)
    canvas = draw_scene(OBJECTS[VOC.names[classes[0]]].homes, size, rng)
    instances = draw_objects(canvas, classes, size, rng)
    image = expose(cv2.resize(canvas, size[::-1], interpolation=cv2.INTER_AREA), rng)
    return image, label_instances(instances, classes)


def draw_scene(homes, size, rng):
    height, width = (SUPERSAMPLING * side for side in size)
    name = rng.choice(list(SCENES) if rng.random() < STRAY_SCENES else homes)
    pose = Pose(rng, (width * rng.uniform(0.3, 0.7), height * rng.uniform(0.36, 0.5)), max(height, width) / 100,
                (0.9, 1.15), origin=(50, 55))
    canvas = np.zeros((height, width, 3), np.float32)
    draw_parts(canvas, SCENES[name], pose, rng.normal(0, SCENE_JITTER), rng, round_off=0)
    return canvas


def draw_objects(canvas, classes, size, rng):
    """Draws the objects from back to front onto the canvas, the first of the list, the main object, last.
    Returns instances, uint8 [H, W]: 0 or the position of the visible object in `classes`, counted from 1."""
    things = [OBJECTS[VOC.names[c]] for c in classes]
    places = place_objects([thing.flies for thing in things], size, rng)
    instances = np.zeros(canvas.shape[:2], np.uint8)
    for rank in sorted(range(len(things)), key=lambda rank: (rank == 0, places[rank][1])):
        thing = things[rank]
        length = rng.uniform(*(COMPANION_SIZE if rank else MAIN_SIZE)) * np.sqrt(size[0] * size[1])
        turn = rng.normal(0, 2 * TILT if thing.flies else TILT)
        pose = Pose(rng, SUPERSAMPLING * places[rank], SUPERSAMPLING * length / 100, (0.9, 1.12), turn)
        if not thing.flies:
            cast_shadow(canvas, thing, pose)
        silhouette = draw_parts(canvas, thing.parts, pose, rng.normal(0, COLOUR_JITTER), rng, round_off=3)
        instances[silhouette] = rank + 1
    centre = SUPERSAMPLING // 2
    return instances[centre::SUPERSAMPLING, centre::SUPERSAMPLING]


def place_objects(flies, size, rng):
    """Foot points in pixels, float64 [N, 2] as (x, y). Each companion gets the one of six random places that is
    farthest from the others (best-candidate sampling), so that objects overlap but rarely hide one another."""
    height, width = size
    places = []
    for rank, in_the_air in enumerate(flies):
        left, right = (0.1, 0.9) if rank else (0.3, 0.7)
        top, bottom = (0.6, 0.95) if in_the_air else (0.66, 0.84) if rank else (0.86, 0.98)
        spots = rng.uniform((left, top), (right, bottom), (6, 2))
        distances = [min((abs(spot - place).sum() for place in places), default=0) for spot in spots]
        places.append(spots[np.argmax(distances)])
    return np.array(places) * (width, height)


def expose(image, rng):
    """Light, lens and sensor: turns float32 RGB [H, W, 3] of any range into uint8."""
    height, width = image.shape[:2]
    across, down = rng.uniform(-LIGHT, LIGHT, 2)
    light = 1 + across * np.linspace(-1, 1, width) + down * np.linspace(-1, 1, height)[:, np.newaxis]
    tint = rng.normal(1, 0.03, 3)
    image = cv2.GaussianBlur(image * np.float32(light[:, :, np.newaxis] * tint), (0, 0), rng.uniform(*BLUR))
    return np.clip(image + rng.normal(0, NOISE, image.shape), 0, 255).astype(np.uint8)


def label_instances(instances, classes):
    """Class labels, uint8 [H, W], with void on either side of every edge between two instances. VOC's border is 5
    pixels wide in pictures of 500; two here are the same share, and leave a chair's leg a core."""
    labels = np.array([0, *classes], np.uint8)[instances]
    edge = cv2.morphologyEx(instances, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    labels[edge] = IGNORE_LABEL
    return labels


def parse_args(argv=None):
    parser = ArgumentParser('Draws a small data set in the folder layout of PASCAL VOC.')
    parser.add_argument('--output_dir', required=True, help='folder to write; files of the same names are replaced')
    parser.add_argument('--num_train', type=positive_int, default=160, help='pictures to train on')
    parser.add_argument('--num_val', type=positive_int, default=40, help='pictures to validate on; 20 show every class')
    parser.add_argument('--height', type=positive_int, help='of every picture in pixels; random by default')
    parser.add_argument('--width', type=positive_int, help='of every picture in pixels; random by default')
    parser.add_argument('--seed', type=non_negative_int, default=0, help='another seed gives another data set')
    return parser.parse_args(argv)


def main(argv=None):
    """Writes the pictures, and their lists last, so that an interrupted run leaves no list."""
    args = parse_args(argv)
    images, masks, lists = (os.path.join(args.output_dir, folder)
                            for folder in ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'))
    paths = {split: os.path.join(lists, split + '.txt') for split in (*SPLITS, 'trainval')}
    for folder in (images, masks, lists):
        os.makedirs(folder, exist_ok=True)
    existing = [path for path in paths.values() if os.path.exists(path)]
    for path in existing:
        with open(path, encoding='utf-8', errors='replace') as file:
            if not all(line.startswith(SPLITS) for line in file):
                raise UserError(f'{path} is the list of another data set: give another --output_dir')
    for path in existing:
        os.remove(path)
    ids = {'trainval': []}
    for split, count in zip(SPLITS, (args.num_train, args.num_val)):
        ids[split] = [f'{split}_{index:06d}' for index in range(count)]
        for index, name in enumerate(tqdm(ids[split], desc=f'drawing {split}', unit='picture')):
            image, labels = draw_picture(args.seed, split, index, args.height, args.width)
            save_image(os.path.join(images, name + '.jpg'), image)
            save_labels(os.path.join(masks, name + '.png'), labels, VOC.palette)
        ids['trainval'] += ids[split]
    for split, path in paths.items():
        with open(path, 'w', encoding='utf-8') as file:
            file.writelines(name + '\n' for name in ids[split])


if __name__ == '__main__':
    run_program(main)
