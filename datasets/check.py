"""What `convert_fcn_dataset.py --check` makes of a data set: faults, notes, the report on the terminal, the JSON.

    python convert_fcn_dataset.py --data_dir VOCdevkit/VOC2012 --check --check_json check.json

A fault stops the conversion or makes training or its scores go wrong; a note is worth knowing, and no more. Reading the
pictures is convert_fcn_dataset.py's part: what it saw of each comes here as a `Pair`.
"""
import collections
import filecmp
from typing import NamedTuple

import numpy as np
from PIL import Image

import utils
from datasets import classes
from datasets.classes import IGNORE_LABEL

SMALL_SIDE = 32  # pixels that are one in the network's coarsest map
SHOWN = 10  # findings of a kind on the terminal; the JSON has all
ROLES = ('train', 'val')


class Finding(NamedTuple):
    """One thing that is wrong or odd."""
    kind: str  # two or three words, by which findings are grouped
    message: str  # one line that names file or list


class Pair(NamedTuple):
    """What was seen of one image and its mask."""
    image_id: str
    image_path: str
    faults: list  # of Finding
    size: tuple = ()  # (width, height) of the image; () if it cannot be read
    checksum: int = 0  # of the image's pixels, of a JPEG at an eighth of its size
    mask_kind: str = ''  # 'palette', 'grey' or 'colour'; '' if it cannot be read
    pixels: np.ndarray | None = None  # int64 [256], by label value
    odd_palette: str = ''  # see describe_palette


class Diagnosis(NamedTuple):
    """All that is known of a data set."""
    class_set: classes.ClassSet
    faults: list  # of Finding
    notes: list  # of Finding
    lists: list  # names of the train and the val list
    listed: list  # number of ids in each
    pairs: list  # list of Pair for each


def describe_palette(path, pixels, class_set):
    """What is odd about a palette mask whose colours are the classes' in another order, as an editor may save it.

    Args:
        path: str, a readable PNG with a palette.
        pixels: int [256], how often each value occurs.
        class_set: classes.ClassSet.

    Returns:
        str, '' if each value has its class's colour or each VOC's, as tools give it to any classes, or if some have a
        colour that is no class's: a palette of its own.
    """
    with Image.open(path, formats=['PNG']) as picture:
        palette = np.array(picture.getpalette('RGB') or [], int).reshape(-1, 3).tolist()
    names = {**dict(enumerate(class_set.names)), IGNORE_LABEL: 'void'}
    colours = class_set.palette.tolist()
    meant = {tuple(colours[value]): value for value in names}
    used = [int(value) for value in np.flatnonzero(pixels)]
    shown = [palette[value] if value < len(palette) else None for value in used]
    meanings = [colour and meant.get(tuple(colour)) for colour in shown]
    wrong = [(value, names[meaning]) for value, meaning in zip(used, meanings) if meaning not in (None, value)]
    if None in meanings or not wrong or shown == utils.voc_palette()[used].tolist():
        return ''
    return (f'{path}: value {wrong[0][0]} has the colour of {wrong[0][1]}: is the palette in another order than '
            f'{whose(class_set)}?')


def whose(class_set):
    """Whose colours masks are held against, for messages."""
    return "VOC's" if class_set == classes.VOC else "your classes'"


# ------------------------------------------------------------------------------------------- judging


def diagnose(class_set, lists, listed, list_faults, pairs, unlisted):
    """Judges a data set.

    Args:
        class_set: classes.ClassSet.
        lists: two str, the names of the train and the val list.
        listed: two ints, how many ids they hold.
        list_faults: list of Finding on the lists themselves.
        pairs: two lists of Pair, of the ids that could be looked at.
        unlisted: int, masks in the folders that are in neither list.

    Returns:
        Diagnosis.
    """
    faults = [*list_faults, *(fault for of_split in pairs for pair in of_split for fault in pair.faults)]
    notes = []
    for images in find_twins(pairs):
        finding = describe_twins(lists, images)
        (faults if len({split for split, _ in images}) == 2 else notes).append(finding)
    faults += find_nothing_to_learn(class_set, lists, pairs)
    for name, of_split in zip(lists, pairs):
        notes += find_oddities(class_set, name, of_split)
    notes += find_unlearned(class_set, lists, pairs)
    if unlisted:
        notes.append(Finding('in no list', f'{unlisted} masks are in neither {lists[0]} nor {lists[1]}'))
    return Diagnosis(class_set, faults, notes, lists, listed, pairs)


def find_twins(pairs):
    """Groups of images that are the same under several names.

    Those of one size and checksum are candidates only, which are decoded in full and compared.

    Args:
        pairs: two lists of Pair.

    Returns:
        list of lists of (0 for train or 1 for val, Pair).
    """
    by_path = {pair.image_path: (split, pair) for split in (1, 0) for pair in pairs[split] if pair.size}
    candidates = collections.defaultdict(list)
    for image in by_path.values():
        candidates[image[1].size, image[1].checksum].append(image)
    twins = []
    for images in filter(lambda images: len(images) > 1, candidates.values()):
        by_pixels = collections.defaultdict(list)
        for image in sorted(images, key=lambda image: (image[0], image[1].image_path)):
            with Image.open(image[1].image_path, formats=['JPEG', 'PNG']) as picture:
                by_pixels[picture.convert('RGB').tobytes()].append(image)
        twins += [same for same in by_pixels.values() if len(same) > 1]
    return twins


def describe_twins(lists, images):
    """Finding on a group of find_twins."""
    (split, first), (other_split, last) = images[0], images[-1]
    across = split != other_split
    more = f', and {len(images) - 2} more' if len(images) > 2 else ''
    exactly = 'byte for byte' if filecmp.cmp(first.image_path, last.image_path, False) else 'pixel for pixel'
    return Finding('same image in both lists' if across else 'same image twice',
                   f'{first.image_path} ({lists[split]}) and {last.image_path} ({lists[other_split]}){more} are the '
                   f'same image, {exactly}' + ('; take it out of one list' if across else ''))


def find_nothing_to_learn(class_set, lists, pairs):
    """A Finding if the train masks can be read and hold nothing but void and, where class 0 is that, background."""
    pixels = sum_pixels(pairs[0])
    first, empty = (1, 'background or void') if class_set.has_background else (0, 'void')
    if pixels.sum() and not pixels[first:len(class_set.names)].sum():
        yield Finding('nothing to learn', f'{lists[0]}: every pixel is {empty}; masks must hold class indices, not 0 '
                                          'and 255')


def find_oddities(class_set, name, of_split):
    """Findings on the masks and images of one list (its name; list of Pair), worth a note each."""
    kinds = {'colour mask': [pair for pair in of_split if pair.mask_kind == 'colour'],
             'void mask': [pair for pair in of_split if pair.pixels is not None
                           and pair.pixels[IGNORE_LABEL] == pair.pixels.sum()],
             'small image': [pair for pair in of_split if pair.size and min(pair.size) < SMALL_SIDE]}
    says = {'colour mask': f'masks are colour pictures, which are read by {whose(class_set)} colours, such as that of',
            'void mask': 'masks are void all over, such as that of',
            'small image': f'images are smaller than {SMALL_SIDE} pixels on a side, such as'}
    for kind, found in kinds.items():
        if found:
            yield Finding(kind, f'{name}: {len(found)} {says[kind]} {found[0].image_path}')
    for pair in of_split:
        if pair.odd_palette:
            yield Finding('odd palette', pair.odd_palette)


def find_unlearned(class_set, lists, pairs):
    """A Finding on the classes that the train masks lack."""
    absent = [name for name, count in zip(class_set.names, sum_pixels(pairs[0])) if not count]
    if absent:
        yield Finding('class not in train', f'{lists[0]}: no pixel of {", ".join(absent)}')


def sum_pixels(of_split):
    """int64 [256], the pixels of a list of Pair by label value."""
    return sum((pair.pixels for pair in of_split if pair.pixels is not None), np.zeros(256, np.int64))


# ------------------------------------------------------------------------------------------- telling


def format_diagnosis(diagnosis):
    """What a Diagnosis holds beside the class table, for the terminal; str of some lines."""
    lines = []
    for name, listed, of_split in zip(diagnosis.lists, diagnosis.listed, diagnosis.pairs):
        facts = describe_split(diagnosis.class_set, listed, of_split)
        kinds = ', '.join(f'{count:,} {kind}' for kind, count in facts['masks'].items())
        line = f'{name}: {listed:,} ids, {facts["images"]:,} usable; masks: {kinds or "none"}'
        if facts['smallest']:
            ends = ('{id} ({width} x {height})'.format(**facts[end]) for end in ('smallest', 'largest'))
            line += '; images from {} to {}'.format(*ends)
        lines.append(line)
    if not any(fault.kind in ('id in both lists', 'same image in both lists') for fault in diagnosis.faults):
        lines.append(f'{" and ".join(diagnosis.lists)}: no id and no image in both')
    for title, findings in (('fault', diagnosis.faults), ('note', diagnosis.notes)):
        lines += list_findings(title, findings)
    return '\n'.join(lines)


def list_findings(title, findings):
    """A line each for the first SHOWN findings of each kind; list of str."""
    by_kind = collections.defaultdict(list)
    for finding in findings:
        by_kind[finding.kind].append(f'{title}: {finding.kind}: {finding.message}')
    for kind, lines in by_kind.items():
        yield from lines[:SHOWN]
        if len(lines) > SHOWN:
            yield f'{title}: {kind}: {len(lines) - SHOWN:,} more; --check_json FILE lists all'


def describe_split(class_set, listed, of_split):
    """The facts on one list (number of ids; list of Pair) as they stand in the JSON, dict."""
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
    return {'faults': [finding._asdict() for finding in diagnosis.faults],
            'notes': [finding._asdict() for finding in diagnosis.notes],
            **{role: {'list': name, **describe_split(diagnosis.class_set, listed, of_split)}
               for role, name, listed, of_split in
               zip(ROLES, diagnosis.lists, diagnosis.listed, diagnosis.pairs)}}
