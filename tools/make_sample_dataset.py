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

import utils
from datasets.classes import IGNORE_LABEL, VOC

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

LONG_SIDE, SHORT_SIDE = (160, 201), (120, 161)  # pixels, half-open; sizes differ as they do in VOC
UPRIGHT = 0.3  # share of pictures that are higher than wide
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


def stripes(u, v, rng, period, angle=0, share=0.5):
    """Bands that alternate in the direction `angle` (0: along x)."""
    return (u * np.cos(np.radians(angle)) + v * np.sin(np.radians(angle))) / period % 1 < share


def cells(u, v, period, below=0.0):
    """Distance from the centres, or from `below` them, of cells that are laid like bricks, `period` wide and high."""
    row = np.floor(v / period)
    return np.hypot((u / period + row % 2 / 2) % 1 - 0.5, v / period - row - 0.5 + below)


TEXTURES = {
    'plain': lambda u, v, rng: np.zeros_like(u),  # the first colour alone
    'stripes': stripes,
    'dots': lambda u, v, rng, period: cells(u, v, period) < 0.3,
    # Rows of scallops, of which the rims are drawn: feathers, wool, upholstery.
    'scales': lambda u, v, rng, period: np.abs(cells(u, v, period, 0.5) - 0.75) < 0.11,
    # A grid of windows; `frame` is the share of the wall between them.
    'panes': lambda u, v, rng, width, height, frame: (u / width % 1 > frame) & (v / height % 1 > frame),
    # Large patches with sharp edges; the higher `cover`, the fewer.
    'blotches': lambda u, v, rng, size, cover: ripples(u, v, rng, size, size) > cover,
    # Soft strokes of `across` and `along` units in x and y: fur, grass, waves, cloth, wood.
    'fur': lambda u, v, rng, across, along: np.clip(0.5 + 0.35 * ripples(u, v, rng, across, along), 0, 1),
    # From the first colour at height `top` to the second at `bottom`, unevenly.
    'fade': lambda u, v, rng, top, bottom: np.clip(
        (v - top) / (bottom - top) + 0.2 * ripples(u, v, rng, 40, 15), 0, 1),
}


def read_outline(kind, outline):
    """The points of a part's outline, float64 [N, 2] in units."""
    if kind == 'oval':
        x, y, radius_x, radius_y = outline
        angle = np.radians(np.arange(0, 360, 10))
        return np.stack([x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)], axis=1)
    return np.array([pair.split(',') for pair in outline.split()], np.float64)


def read_drawings():
    """The objects, dict of names of VOC's classes to Things, and the scenes, dict of names to lists of Parts."""
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'sample_drawings.json')) as file:
        drawings = json.load(file)

    def build_parts(parts):
        return [Part(read_outline(kind, outline), width[0] if width else 0, Paint(**drawings['paints'][paint]))
                for kind, outline, paint, *width in parts]

    objects = {name: Thing(**{**thing, 'parts': build_parts(thing['parts'])})
               for name, thing in drawings['objects'].items()}
    return objects, {name: build_parts(parts) for name, parts in drawings['scenes'].items()}


OBJECTS, SCENES = read_drawings()


class Pose:
    """Where a thing is: `origin`, in units, is drawn at `base`, (x, y) in drawn pixels; `scale` is in pixels per unit,
    `turn` in degrees. `rng` draws x over y, the stretch, mirrors half of the things, and bends their outlines."""

    def __init__(self, rng, base, scale, turn=0.0, origin=(50, 100)):
        stretch = rng.uniform(0.9, 1.12) * rng.choice([-1, 1])
        cos, sin = scale * np.cos(np.radians(turn)), scale * np.sin(np.radians(turn))
        self.matrix = np.array([[cos, -sin], [sin, cos]]) @ np.diag([stretch, 1 / abs(stretch)])
        self.base, self.scale, self.origin = np.array(base), scale, np.array(origin)
        self.phases = rng.uniform(0, 2 * np.pi, 2)

    def draw_mask(self, part, size):
        """The drawn pixels of one part: uint8 [H, W] in {0, 1}, size = (H, W)."""
        bent = part.points + WOBBLE * np.sin(part.points[:, ::-1] * (2 * np.pi / 85) + self.phases)
        points = np.rint((bent - self.origin) @ self.matrix.T + self.base).astype(np.int32)
        mask = np.zeros(size, np.uint8)
        if part.width:
            return cv2.polylines(mask, [points], False, 1, max(1, round(part.width * self.scale)))
        return cv2.fillPoly(mask, [points], 1)

    def to_units(self, x, y, width, height):
        """The positions u, v in units, float32 [height, width], of a window of pixels, without the bends."""
        rows, columns = np.mgrid[y:y + height, x:x + width]
        uv = (np.stack([columns, rows], axis=-1) - self.base) @ np.linalg.inv(self.matrix).T + self.origin
        return np.float32(uv[:, :, 0]), np.float32(uv[:, :, 1])


def mix_colour(colour, shift):
    """(hue, saturation, value) plus a shift of these three, as RGB, float32 [3] in 0..255."""
    hue, saturation, value = (np.array(colour) + shift) / (360, 100, 100)
    return 255 * np.float32(colorsys.hsv_to_rgb(hue % 1, np.clip(saturation, 0, 1), np.clip(value, 0.05, 1)))


def relief(mask, reach):
    """Brightness around 1, float32 [H, W], that makes a flat mask look round and lit from the upper left."""
    soft, window = mask.astype(np.float32), (2 * reach + 1, 2 * reach + 1)
    for _ in range(2):
        soft = cv2.blur(soft, window, borderType=cv2.BORDER_CONSTANT)
    slope = cv2.Sobel(soft, -1, 1, 0) * 0.5 + cv2.Sobel(soft, -1, 0, 1)
    return 1 + np.clip(slope * (0.09 * reach), -0.3, 0.22)


def draw_parts(canvas, parts, pose, shift, rng, round_off=0):
    """Paints parts onto the canvas, float32 RGB [H, W, 3]; returns their silhouette, bool [H, W]. `shift` is added to
    hue, saturation and value; `round_off` is the units over which edges are shaded, 0 for none."""
    silhouette = np.zeros(canvas.shape[:2], bool)
    for part in parts:
        mask = pose.draw_mask(part, canvas.shape[:2])
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


def draw_classes(seed, split, index):
    """Classes of one picture, the main object first: list of 1 to 4 int. Every twenty pictures share four shuffled
    lists, so that each class is once the main object in them, and a companion about as often as any other."""
    classes = np.arange(1, len(VOC.names))
    block, place = divmod(index, len(classes))
    rng = np.random.default_rng([seed, SPLITS.index(split), block, 1])
    lists = rng.permuted(np.tile(classes, (len(OBJECT_COUNT_ODDS), 1)), axis=1)
    counts = rng.choice(len(OBJECT_COUNT_ODDS), len(classes), p=OBJECT_COUNT_ODDS)
    return lists[:1 + counts[place], place].tolist()


def draw_picture(seed, split, index):
    """Draws one picture, uint8 RGB [H, W, 3], and its labels, uint8 [H, W], which depend on the arguments alone."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index, 2])
    size = rng.integers(*LONG_SIDE), rng.integers(*SHORT_SIDE)
    size = size if rng.random() < UPRIGHT else size[::-1]
    classes = draw_classes(seed, split, index)
    canvas = draw_scene(OBJECTS[VOC.names[classes[0]]].homes, size, rng)
    instances = draw_objects(canvas, classes, size, rng)
    image = cv2.resize(canvas, size[::-1], interpolation=cv2.INTER_AREA) * rng.normal(1, 0.03, 3)  # tinted light
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.7)) + rng.normal(0, NOISE, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), label_instances(instances, classes)


def draw_scene(homes, size, rng):
    height, width = (SUPERSAMPLING * side for side in size)
    name = rng.choice(list(SCENES) if rng.random() < STRAY_SCENES else homes)
    pose = Pose(rng, (width * rng.uniform(0.3, 0.7), height * rng.uniform(0.36, 0.5)), max(height, width) / 100,
                origin=(50, 55))
    canvas = np.zeros((height, width, 3), np.float32)
    draw_parts(canvas, SCENES[name], pose, rng.normal(0, SCENE_JITTER), rng)
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
        pose = Pose(rng, SUPERSAMPLING * places[rank], SUPERSAMPLING * length / 100, turn)
        silhouette = draw_parts(canvas, thing.parts, pose, rng.normal(0, COLOUR_JITTER), rng, round_off=3)
        instances[silhouette] = rank + 1
    centre = SUPERSAMPLING // 2
    return instances[centre::SUPERSAMPLING, centre::SUPERSAMPLING]


def place_objects(flies, size, rng):
    """Foot points in pixels, float64 [N, 2] as (x, y). Each companion gets the one of six random places that is
    farthest from the others (best-candidate sampling), so that objects overlap but rarely hide one another."""
    places = []
    for rank, in_the_air in enumerate(flies):
        left, right = (0.1, 0.9) if rank else (0.3, 0.7)
        top, bottom = (0.6, 0.95) if in_the_air else (0.66, 0.84) if rank else (0.86, 0.98)
        spots = rng.uniform((left, top), (right, bottom), (6, 2))
        distances = [min((abs(spot - place).sum() for place in places), default=0) for spot in spots]
        places.append(spots[np.argmax(distances)])
    return np.array(places) * size[::-1]


def label_instances(instances, classes):
    """Class labels, uint8 [H, W], with void on either side of every edge between two instances. VOC's border is 5
    pixels wide in pictures of 500; two here are the same share, and leave a chair's leg a core."""
    labels = np.array([0, *classes], np.uint8)[instances]
    labels[cv2.morphologyEx(instances, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0] = IGNORE_LABEL
    return labels


def parse_args(argv=None):
    parser = utils.ArgumentParser('Draws a small data set in the folder layout of PASCAL VOC.')
    parser.add_argument('--output_dir', required=True, help='folder to write; files of the same names are replaced')
    parser.add_argument('--num_train', type=utils.positive_int, default=160, help='pictures to train on')
    parser.add_argument('--num_val', type=utils.positive_int, default=40,
                        help='pictures to validate on; 20 show every class')
    parser.add_argument('--seed', type=utils.non_negative_int, default=0, help='another seed: other pictures')
    return parser.parse_args(argv)


def main(argv=None):
    """Writes the pictures, and their lists last."""
    args = parse_args(argv)
    images, masks, lists = (os.path.join(args.output_dir, folder)
                            for folder in ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'))
    if os.path.isdir(images) and any(not name.startswith(SPLITS) for name in os.listdir(images)):
        raise utils.UserError(f'{images} holds the images of another data set: give another --output_dir')
    for folder in (images, masks, lists):
        os.makedirs(folder, exist_ok=True)
    for split, count in zip(SPLITS, (args.num_train, args.num_val)):
        ids = [f'{split}_{index:06d}' for index in range(count)]
        for index, name in enumerate(tqdm(ids, desc=f'drawing {split}', unit='picture')):
            image, labels = draw_picture(args.seed, split, index)
            utils.save_image(os.path.join(images, name + '.jpg'), image)
            utils.save_labels(os.path.join(masks, name + '.png'), labels, VOC.palette)
        utils.save_text(os.path.join(lists, f'{split}.txt'), ''.join(f'{name}\n' for name in ids))


if __name__ == '__main__':
    utils.run_program(main)
