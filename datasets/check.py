"""What `convert_fcn_dataset.py --check` finds in a data set: faults, notes, a report for the terminal, and JSON.

    python convert_fcn_dataset.py --data_dir VOCdevkit/VOC2012 --check --check_json check.json

A fault stops the conversion or makes training or its scores go wrong; a note is only worth knowing.
"""
import collections
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
    pixels: np.ndarray = np.zeros(256, np.int64)  # by label value
    odd_palette: str = ''  # see describe_palette


class Diagnosis(NamedTuple):
    """All that is known of a data set; of each pair, the first belongs to train and the second to val."""
    class_set: classes.ClassSet
    faults: list  # of Finding
    notes: list  # of Finding
    names: list  # of the two lists
    listed: list  # number of their ids
    seen: list  # two lists of Seen
    pixels: list  # two int64 [256], by label value


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
    names, seen = [split.list_name for split in splits], []
    for split, ids in zip(splits, lists.ids):
        results = voc.map_in_order(functools.partial(look_at_pair, split, class_set, scale), ids, num_workers)
        seen.append(list(tqdm(results, desc=f'looking at {split.list_name}', total=len(ids), unit='image')))
    pixels = [sum((pair.pixels for pair in of_split), np.zeros(256, np.int64)) for of_split in seen]
    twins = list(find_twins(names, seen))
    faults = [*lists.faults, *(fault for of_split in seen for pair in of_split for fault in pair.faults),
              *(twin for twin in twins if 'both' in twin.kind), *find_nothing_to_learn(class_set, names[0], pixels[0])]
    notes = [*(twin for twin in twins if 'both' not in twin.kind),
             *(note for name, of_split in zip(names, seen) for note in find_oddities(class_set, name, of_split)),
             *find_absent_classes(class_set, names[0], pixels[0]), *find_unlisted(splits, lists.ids)]
    return Diagnosis(class_set, faults, notes, names, lists.listed, seen, pixels)


def look_at_pair(split, class_set, scale, image_id):
    """Reads an image and its mask; returns Seen."""
    pair = voc.read_pair(split, image_id, class_set, scale)
    seen = Seen(image_id, pair.image_path, pair.faults)
    if pair.image:
        checksum = zlib.crc32(pair.image.picture.convert('RGB').tobytes())
        seen = seen._replace(size=pair.image.size, checksum=checksum)
    if pair.labels is None:
        return seen
    seen = seen._replace(pixels=np.bincount(pair.labels.ravel(), minlength=256), mask_kind='SBD')
    if pair.label_path.endswith('.mat'):
        return seen
    with Image.open(pair.label_path) as picture:
        kind = MASK_KINDS.get(picture.mode, 'grey')
        odd = describe_palette(picture.getpalette('RGB'), seen.pixels, class_set) if kind == 'palette' else ''
    return seen._replace(mask_kind=kind, odd_palette=odd and f'{pair.label_path}: {odd}')


def describe_palette(palette, pixels, class_set):
    """What is odd about a mask whose palette has the classes' colours in another order, as an editor may save it.

    Args:
        palette: list of int: R, G, B, R, G, B, ...
        pixels: int [256], how often each value occurs.
        class_set: classes.ClassSet.

    Returns:
        str, '' if nothing is: each value that occurs has its class's colour, or each has VOC's, as tools give them to
        any classes, or some have a colour that is no class's.
    """
    palette = [tuple(palette[start:start + 3]) for start in range(0, len(palette), 3)]
    names = {**dict(enumerate(class_set.names)), IGNORE_LABEL: 'void'}
    meant = {tuple(class_set.palette[value].tolist()): value for value in names}
    used = np.flatnonzero(pixels).tolist()
    shown = [palette[value] if value < len(palette) else None for value in used]
    wrong = [(value, meant.get(colour)) for value, colour in zip(used, shown) if meant.get(colour) != value]
    if not wrong or None in map(meant.get, shown) or shown == list(map(tuple, utils.voc_palette()[used].tolist())):
        return ''
    value, meaning = wrong[0]
    return f'value {value} has the colour of {names[meaning]}: is the palette in another order than {whose(class_set)}?'


def whose(class_set):
    """Whose colours masks are compared with, for messages."""
    return "VOC's" if class_set == classes.VOC else "your classes'"


# ------------------------------------------------------------------------------------------- judging


def find_twins(names, seen):
    """Yields a Finding for each group of images that are the same: those of one checksum, decoded again and compared.

    Args:
        names: two str, of the train and the val list.
        seen: two lists of Seen.
    """
    list_of = {pair.image_path: name for name, of_split in zip(names[::-1], seen[::-1]) for pair in of_split}
    alike = collections.defaultdict(dict)
    for pair in (pair for of_split in seen for pair in of_split if pair.size):
        alike[pair.size, pair.checksum][pair.image_path] = None
    for group in (group for group in alike.values() if len(group) > 1):
        same = collections.defaultdict(list)
        for path in group:
            with Image.open(path) as picture:
                same[picture.convert('RGB').tobytes()].append(path)
        for paths in (paths for paths in same.values() if len(paths) > 1):
            first, last = paths[0], paths[-1]
            more = f', and {len(paths) - 2} more' if len(paths) > 2 else ''
            in_both = list_of[first] != list_of[last]
            yield Finding('same image in both lists' if in_both else 'same image twice',
                          f'{first} ({list_of[first]}) and {last} ({list_of[last]}){more} are the same image'
                          + ('; take it out of one list' if in_both else ''))


def find_nothing_to_learn(class_set, name, pixels):
    """Yields a Finding if the readable train masks have only void and, where class 0 is that, background."""
    first, empty = (1, 'background or void') if class_set.has_background else (0, 'void')
    if pixels.sum() and not pixels[first:len(class_set.names)].sum():
        yield Finding('nothing to learn', f'{name}: every pixel is {empty}; masks must hold class indices, not 0 and '
                                          '255')


def find_oddities(class_set, name, of_split):
    """Yields Findings on the masks and images of one list (its name; list of Seen), worth a note each."""
    colour = [pair for pair in of_split if pair.mask_kind == 'colour']
    void = [pair for pair in of_split if pair.mask_kind and pair.pixels[IGNORE_LABEL] == pair.pixels.sum()]
    small = [pair for pair in of_split if pair.size and min(pair.size) < SMALL_SIDE]
    for kind, found, what in (
            ('colour mask', colour, f'masks are colour pictures, which are read by {whose(class_set)} colours, such as '
                                    'that of'),
            ('void mask', void, 'masks are void all over, such as that of'),
            ('small image', small, f'images are smaller than {SMALL_SIDE} pixels on a side, such as')):
        if found:
            yield Finding(kind, f'{name}: {len(found)} {what} {found[0].image_path}')
    yield from (Finding('odd palette', pair.odd_palette) for pair in of_split if pair.odd_palette)


def find_absent_classes(class_set, name, pixels):
    """Yields a Finding on the classes that no train mask has."""
    absent = [each for each, count in zip(class_set.names, pixels) if not count]
    if absent:
        yield Finding('class not in train', f'{name}: no pixel of {", ".join(absent)}')


def find_unlisted(splits, ids_by_split):
    """Yields a Finding on the masks in the splits' folders that are in neither list."""
    known = {image_id + '.png' for ids in ids_by_split for image_id in ids}
    count = sum(name.endswith('.png') and name not in known
                for folder in {split.label_dir for split in splits} for name in os.listdir(folder))
    if count:
        yield Finding('in no list', f'{count} masks are in neither {splits[0].list_name} nor {splits[1].list_name}')


# ------------------------------------------------------------------------------------------- reporting


def report(diagnosis, json_path=None):
    """Prints a Diagnosis and writes it to `json_path`, if given; UserError if that fails or there are faults."""
    content = as_json(diagnosis)
    print(format_table(diagnosis.class_set, diagnosis.names, [content[role]['images'] for role in voc.ROLES],
                       diagnosis.pixels))
    print(*format_facts(content), sep='\n')
    if json_path:
        try:
            utils.save_json(json_path, content)
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


def format_facts(content):
    """Yields the lines for the terminal on as_json's dict, the class table apart."""
    for facts in (content[role] for role in voc.ROLES):
        kinds = ', '.join(f'{count:,} {kind}' for kind, count in facts['masks'].items())
        line = f'{facts["list"]}: {facts["ids"]:,} ids, {facts["images"]:,} usable; masks: {kinds or "none"}'
        if facts['smallest']:
            ends = ('{id} ({width} x {height})'.format(**facts[end]) for end in ('smallest', 'largest'))
            line += '; images from {} to {}'.format(*ends)
        yield line
    if not any('both' in fault['kind'] for fault in content['faults']):
        yield ' and '.join(content[role]['list'] for role in voc.ROLES) + ': no id and no image in both'
    for title in ('fault', 'note'):
        by_kind = collections.defaultdict(list)
        for finding in content[title + 's']:
            by_kind[finding['kind']].append('{}: {kind}: {message}'.format(title, **finding))
        for kind, lines in by_kind.items():
            yield from lines[:SHOWN]
            if len(lines) > SHOWN:
                yield f'{title}: {kind}: {len(lines) - SHOWN:,} more; --check_json FILE lists all'


def as_json(diagnosis):
    """A Diagnosis as dicts, lists, strings and numbers."""
    content = {'faults': [finding._asdict() for finding in diagnosis.faults],
               'notes': [finding._asdict() for finding in diagnosis.notes]}
    labels = [*enumerate(diagnosis.class_set.names), (IGNORE_LABEL, 'void')]
    for role, name, listed, of_split, pixels in zip(
            voc.ROLES, diagnosis.names, diagnosis.listed, diagnosis.seen, diagnosis.pixels):
        sized = sorted((pair for pair in of_split if pair.size), key=lambda pair: pair.size[0] * pair.size[1])
        ends = [{'id': pair.image_id, 'width': pair.size[0], 'height': pair.size[1]} for pair in sized] or [None]
        kinds = collections.Counter(pair.mask_kind for pair in of_split if pair.mask_kind)
        content[role] = {'list': name, 'ids': listed, 'images': sum(not pair.faults for pair in of_split),
                         'masks': dict(sorted(kinds.items())), 'smallest': ends[0], 'largest': ends[-1],
                         'pixels': {name: int(pixels[value]) for value, name in labels}}
    return content
