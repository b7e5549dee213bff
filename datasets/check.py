"""What `convert_fcn_dataset.py --check` finds in a data set: faults, notes, a report for the terminal, and JSON.

    python convert_fcn_dataset.py --data_dir VOCdevkit/VOC2012 --check --check_json check.json

A fault stops the conversion or makes training or its scores go wrong; a note is only worth knowing.
"""
import collections
import filecmp
import functools
import os
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

import utils
from datasets import classes, voc
from datasets.classes import IGNORE_LABEL
from datasets.voc import SMALL_SIDE, Finding

SHOWN = 10  # findings of a kind on the terminal; the JSON has all
MASK_KINDS = {'P': 'palette', 'RGB': 'colour', 'RGBA': 'colour'}  # by Pillow's mode; all others are 'grey'


class Seen(NamedTuple):
    """What was found in one image and its mask."""
    image_id: str
    image_path: str
    faults: list  # of Finding
    size: tuple = ()  # (width, height) of the image; () if it cannot be read
    checksum: int = 0  # of the decoded image, which may be an eighth of its size
    mask_kind: str = ''  # of MASK_KINDS, 'grey' or 'SBD'; '' if it cannot be read
    pixels: np.ndarray | None = None  # int64 [256], by label value
    odd_palette: str = ''  # see describe_palette


class Diagnosis(NamedTuple):
    """All that is known of a data set."""
    class_set: classes.ClassSet
    faults: list  # of Finding
    notes: list  # of Finding
    lists: list  # names of the train and the val list
    listed: list  # number of ids in each
    seen: list  # list of Seen for each


# ------------------------------------------------------------------------------------------- looking


def check(splits, lists, class_set, scale, num_workers):
    """Reads all images and masks of a data set, and judges it.

    Args:
        splits: two voc.Split. lists: voc.Lists. class_set: classes.ClassSet.
        scale: float, by which the pictures would be scaled.
        num_workers: int, threads.

    Returns:
        Diagnosis.
    """
    seen = []
    for split, ids in zip(splits, lists.ids):
        results = voc.map_in_order(functools.partial(look_at_pair, split, class_set, scale), ids, num_workers)
        seen.append(list(tqdm(results, desc=f'looking at {split.list_name}', total=len(ids), unit='image')))
    names = [split.list_name for split in splits]
    faults = [*lists.faults, *(fault for of_split in seen for pair in of_split for fault in pair.faults)]
    notes = []
    for images in find_twins(seen):
        in_both = len({split for split, _ in images}) == 2
        (faults if in_both else notes).append(describe_twins(names, images))
    faults += find_nothing_to_learn(class_set, names[0], seen[0])
    for name, of_split in zip(names, seen):
        notes += find_oddities(class_set, name, of_split)
    notes += find_absent_classes(class_set, names[0], seen[0])
    if unlisted := count_unlisted(splits, lists.ids):
        notes.append(Finding('in no list', f'{unlisted} masks are in neither {names[0]} nor {names[1]}'))
    return Diagnosis(class_set, faults, notes, names, lists.listed, seen)


def look_at_pair(split, class_set, scale, image_id):
    """Reads an image and its mask; returns Seen."""
    pair = voc.read_pair(split, image_id, class_set, scale)
    seen = Seen(image_id, pair.image_path, pair.faults)
    if pair.photo:
        checksum = zlib.crc32(pair.photo.picture.convert('RGB').tobytes())
        seen = seen._replace(size=pair.photo.size, checksum=checksum)
    if pair.labels is None:
        return seen
    pixels = np.bincount(pair.labels.ravel(), minlength=256)
    if pair.label_path.endswith('.mat'):
        return seen._replace(mask_kind='SBD', pixels=pixels)
    with Image.open(pair.label_path) as picture:
        kind = MASK_KINDS.get(picture.mode, 'grey')
        palette = picture.getpalette('RGB') or []
    odd = describe_palette(pair.label_path, palette, pixels, class_set) if kind == 'palette' else ''
    return seen._replace(mask_kind=kind, pixels=pixels, odd_palette=odd)


def describe_palette(path, palette, pixels, class_set):
    """What is odd about a palette that has the classes' colours in another order, as an editor may save it.

    Args:
        path: str, the mask.
        palette: list of int, R, G, B, R, G, B, ...
        pixels: int [256], how often each value occurs.
        class_set: classes.ClassSet.

    Returns:
        str, '' if nothing is: each value that occurs has its class's colour, or each has VOC's, as tools give them to
        any classes, or some have a colour that is no class's.
    """
    palette = np.reshape(palette, (-1, 3)).tolist()
    names = {**dict(enumerate(class_set.names)), IGNORE_LABEL: 'void'}
    meant = {tuple(class_set.palette[value].tolist()): value for value in names}
    used = [int(value) for value in np.flatnonzero(pixels)]
    shown = [palette[value] if value < len(palette) else None for value in used]
    meanings = [colour and meant.get(tuple(colour)) for colour in shown]
    wrong = [(value, names[meaning]) for value, meaning in zip(used, meanings) if meaning not in (None, value)]
    if None in meanings or not wrong or shown == utils.voc_palette()[used].tolist():
        return ''
    return (f'{path}: value {wrong[0][0]} has the colour of {wrong[0][1]}: is the palette in another order than '
            f'{whose(class_set)}?')


def whose(class_set):
    """Whose colours masks are compared with, for messages."""
    return "VOC's" if class_set == classes.VOC else "your classes'"


def count_unlisted(splits, ids_by_split):
    """The number of masks in the splits' folders that are in neither list."""
    folders = {split.label_dir for split in splits}
    known = {image_id + '.png' for ids in ids_by_split for image_id in ids}
    return sum(name.endswith('.png') and name not in known for folder in folders for name in os.listdir(folder))


# ------------------------------------------------------------------------------------------- judging


def find_twins(seen):
    """Groups of images that are the same under several names: those of one checksum, decoded again and compared.

    Args:
        seen: two lists of Seen.

    Returns:
        list of lists of (0 for train or 1 for val, Seen).
    """
    by_path = {pair.image_path: (split, pair) for split in (1, 0) for pair in seen[split] if pair.size}
    candidates = collections.defaultdict(list)
    for image in by_path.values():
        candidates[image[1].size, image[1].checksum].append(image)
    twins = []
    for images in filter(lambda images: len(images) > 1, candidates.values()):
        by_pixels = collections.defaultdict(list)
        for image in sorted(images, key=lambda image: (image[0], image[1].image_path)):
            with Image.open(image[1].image_path) as picture:
                by_pixels[picture.convert('RGB').tobytes()].append(image)
        twins += [same for same in by_pixels.values() if len(same) > 1]
    return twins


def describe_twins(names, images):
    """The Finding on a group of find_twins; `names` are those of the two lists."""
    (split, first), (other_split, last) = images[0], images[-1]
    in_both = split != other_split
    more = f', and {len(images) - 2} more' if len(images) > 2 else ''
    exactly = 'byte for byte' if filecmp.cmp(first.image_path, last.image_path, False) else 'pixel for pixel'
    return Finding('same image in both lists' if in_both else 'same image twice',
                   f'{first.image_path} ({names[split]}) and {last.image_path} ({names[other_split]}){more} are the '
                   f'same image, {exactly}' + ('; take it out of one list' if in_both else ''))


def find_nothing_to_learn(class_set, name, of_train):
    """Yields a Finding if the readable train masks have only void and, where class 0 is that, background."""
    pixels = sum_pixels(of_train)
    first, empty = (1, 'background or void') if class_set.has_background else (0, 'void')
    if pixels.sum() and not pixels[first:len(class_set.names)].sum():
        yield Finding('nothing to learn', f'{name}: every pixel is {empty}; masks must hold class indices, not 0 and '
                                          '255')


def find_oddities(class_set, name, of_split):
    """Yields Findings on the masks and images of one list (its name; list of Seen), worth a note each."""
    colour = [pair for pair in of_split if pair.mask_kind == 'colour']
    void = [pair for pair in of_split if pair.pixels is not None and pair.pixels[IGNORE_LABEL] == pair.pixels.sum()]
    small = [pair for pair in of_split if pair.size and min(pair.size) < SMALL_SIDE]
    for kind, found, what in (
            ('colour mask', colour, f'masks are colour pictures, which are read by {whose(class_set)} colours, such as '
                                    'that of'),
            ('void mask', void, 'masks are void all over, such as that of'),
            ('small image', small, f'images are smaller than {SMALL_SIDE} pixels on a side, such as')):
        if found:
            yield Finding(kind, f'{name}: {len(found)} {what} {found[0].image_path}')
    yield from (Finding('odd palette', pair.odd_palette) for pair in of_split if pair.odd_palette)


def find_absent_classes(class_set, name, of_train):
    """Yields a Finding on the classes that no train mask has."""
    absent = [each for each, count in zip(class_set.names, sum_pixels(of_train)) if not count]
    if absent:
        yield Finding('class not in train', f'{name}: no pixel of {", ".join(absent)}')


def sum_pixels(of_split):
    """int64 [256], the pixels of a list of Seen by label value."""
    return sum((pair.pixels for pair in of_split if pair.pixels is not None), np.zeros(256, np.int64))


# ------------------------------------------------------------------------------------------- reporting


def report(diagnosis, json_path=None):
    """Prints a Diagnosis and writes it to `json_path`, if given; UserError if that fails or there are faults."""
    counts = [sum(not pair.faults for pair in of_split) for of_split in diagnosis.seen]
    print(format_table(diagnosis.class_set, diagnosis.lists, counts, list(map(sum_pixels, diagnosis.seen))))
    print(*format_diagnosis(diagnosis), sep='\n')
    if json_path:
        try:
            utils.save_json(json_path, as_json(diagnosis))
        except OSError as error:
            raise utils.UserError(f'--check_json {json_path}: {error.strerror}: name a file in a folder you can write '
                                  'to') from error
    if diagnosis.faults:
        count = '1 fault' if len(diagnosis.faults) == 1 else f'{len(diagnosis.faults)} faults'
        raise utils.UserError(f'{count}: training would go wrong; mend what is listed above')
    print('no fault: ready to convert')


def format_table(class_set, titles, images, pixels):
    """The class table: images, and each class's pixels and share of all, in two columns; str of many lines.

    Args:
        class_set: classes.ClassSet.
        titles: two str. images: two int.
        pixels: two int64 [256], by label value.
    """
    width = max(12, *(len(name) + 1 for name in class_set.names))
    lines = [' ' * width + ''.join(f'{title:>26}' for title in titles),
             f'{"images":{width}}' + ''.join(f'{count:>26,}' for count in images)]
    for value, name in [*enumerate(class_set.names), (IGNORE_LABEL, 'void')]:
        cells = (f'{counts[value]:>17,}{counts[value] / max(counts.sum(), 1):>9.2%}' for counts in pixels)
        lines.append(f'{name:{width}}' + ''.join(cells))
    return '\n'.join(lines)


def format_diagnosis(diagnosis):
    """Yields the lines on a Diagnosis, the class table apart."""
    for name, listed, of_split in zip(diagnosis.lists, diagnosis.listed, diagnosis.seen):
        facts = describe_split(diagnosis.class_set, listed, of_split)
        kinds = ', '.join(f'{count:,} {kind}' for kind, count in facts['masks'].items())
        line = f'{name}: {listed:,} ids, {facts["images"]:,} usable; masks: {kinds or "none"}'
        if facts['smallest']:
            ends = ('{id} ({width} x {height})'.format(**facts[end]) for end in ('smallest', 'largest'))
            line += '; images from {} to {}'.format(*ends)
        yield line
    if not any(fault.kind in ('id in both lists', 'same image in both lists') for fault in diagnosis.faults):
        yield f'{" and ".join(diagnosis.lists)}: no id and no image in both'
    yield from list_findings('fault', diagnosis.faults)
    yield from list_findings('note', diagnosis.notes)


def list_findings(title, findings):
    """Yields a line for each of the first SHOWN findings of each kind."""
    by_kind = collections.defaultdict(list)
    for finding in findings:
        by_kind[finding.kind].append(f'{title}: {finding.kind}: {finding.message}')
    for kind, lines in by_kind.items():
        yield from lines[:SHOWN]
        if len(lines) > SHOWN:
            yield f'{title}: {kind}: {len(lines) - SHOWN:,} more; --check_json FILE lists all'


def describe_split(class_set, listed, of_split):
    """The facts on one list (number of ids; list of Seen), dict, as in the JSON."""
    pixels = sum_pixels(of_split)
    sized = sorted((pair for pair in of_split if pair.size), key=lambda pair: pair.size[0] * pair.size[1])
    ends = [{'id': pair.image_id, 'width': pair.size[0], 'height': pair.size[1]}
            for pair in sized[:1] + sized[-1:]] or [None, None]
    return {'ids': listed, 'images': sum(not pair.faults for pair in of_split),
            'masks': dict(sorted(collections.Counter(pair.mask_kind for pair in of_split if pair.mask_kind).items())),
            'smallest': ends[0], 'largest': ends[1],
            'pixels': {name: int(pixels[value]) for value, name in
                       [*enumerate(class_set.names), (IGNORE_LABEL, 'void')]}}


def as_json(diagnosis):
    """A Diagnosis as dicts, lists, strings and numbers."""
    splits = zip(voc.ROLES, diagnosis.lists, diagnosis.listed, diagnosis.seen)
    return {'faults': [finding._asdict() for finding in diagnosis.faults],
            'notes': [finding._asdict() for finding in diagnosis.notes],
            **{role: {'list': name, **describe_split(diagnosis.class_set, listed, of_split)}
               for role, name, listed, of_split in splits}}
