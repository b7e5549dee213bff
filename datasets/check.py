"""What `convert_fcn_dataset.py --check` finds in a data set: faults, notes, a report for the terminal, and JSON.

    python convert_fcn_dataset.py --data_dir VOCdevkit/VOC2012 --check --check_json check.json

A fault stops the conversion or makes training or its scores go wrong; a note is only worth knowing.
"""
import collections
import functools
import zlib
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import utils
from datasets import classes, pictures, voc
from datasets.classes import IGNORE_LABEL
from datasets.voc import SMALL_SIDE, Finding

SHOWN = {'fault': 10, 'note': 1}  # findings of a kind on the terminal; the JSON has all


class Seen(NamedTuple):
    """What was found in one image and its mask."""
    image_id: str
    image_path: str
    faults: list  # of Finding
    notes: list  # of Finding
    size: tuple = ()  # (width, height) of the image; () if it cannot be read
    checksum: int = 0  # of the decoded image, which may be an eighth of its size
    mask_kind: str = ''  # see pictures.Mask; '' if it cannot be read
    pixels: np.ndarray = np.zeros(256, np.int64)  # by label


class Diagnosis(NamedTuple):
    """All that is known of a data set; of each pair, the first belongs to train and the second to val."""
    class_set: classes.ClassSet
    faults: list  # of Finding
    notes: list  # of Finding
    names: list  # of the two lists
    listed: list  # number of their ids
    seen: list  # two lists of Seen
    pixels: list  # two int64 [256], by label


def check(splits, lists, class_set, scale, num_workers):
    """Reads all images and masks in `num_workers` threads, as if scaled by `scale`; returns the Diagnosis."""
    names, seen = [split.list_name for split in splits], []
    for split, ids in zip(splits, lists.ids):
        results = voc.map_in_order(functools.partial(look_at_pair, split, class_set, scale), ids, num_workers)
        seen.append(list(tqdm(results, desc=f'looking at {split.list_name}', total=len(ids), unit='image')))
    pixels = [sum((pair.pixels for pair in of_split), np.zeros(256, np.int64)) for of_split in seen]
    twins = list(find_twins(names, seen))
    faults = [*lists.faults, *(fault for of_split in seen for pair in of_split for fault in pair.faults),
              *(twin for twin in twins if 'both' in twin.kind)]
    for name, counts, needed in zip(names, pixels, (2, 1)):
        if counts.any() and (lack := classes.describe_lack(class_set, counts, needed)):
            faults.append(Finding('nothing to learn', f'{name}: {lack}'))
    notes = [*(twin for twin in twins if 'both' not in twin.kind),
             *(note for name, of_split in zip(names, seen) for note in find_oddities(class_set, name, of_split))]
    if absent := [each for each, count in zip(class_set.names, pixels[0]) if not count]:
        notes.append(Finding('class not in train', f'{names[0]}: no pixel of {", ".join(absent)}'))
    if unlisted := {image_id for split in splits for image_id in split.masks}.difference(*lists.ids):
        notes.append(Finding('in no list', f'{len(unlisted)} masks are in neither {names[0]} nor {names[1]}'))
    return Diagnosis(class_set, faults, notes, names, lists.listed, seen, pixels)


def look_at_pair(split, class_set, scale, image_id):
    pair = voc.read_pair(split, image_id, class_set, scale)
    seen = Seen(image_id, pair.image_path, pair.faults, pair.notes)
    if pair.image:
        checksum = zlib.crc32(pair.image.picture.convert('RGB').tobytes())
        seen = seen._replace(size=pair.image.size, checksum=checksum)
    if pair.mask:
        pixels = np.bincount(pair.mask.labels.ravel(), minlength=256)
        seen = seen._replace(mask_kind=pair.mask.kind, pixels=pixels)
    return seen


def find_twins(names, seen):
    """Yields a Finding for each group of equal images: those of one checksum, decoded again and compared."""
    list_of = {pair.image_path: name for name, of_split in zip(names[::-1], seen[::-1]) for pair in of_split}
    alike = collections.defaultdict(dict)
    for pair in (pair for of_split in seen for pair in of_split if pair.size):
        alike[pair.size, pair.checksum][pair.image_path] = None
    for group in (group for group in alike.values() if len(group) > 1):
        same = collections.defaultdict(list)
        for path in group:
            picture = pictures.turn_upright(pictures.read_picture(path, scale=0)).picture
            same[picture.convert('RGB').tobytes()].append(path)
        for paths in (paths for paths in same.values() if len(paths) > 1):
            first, last = paths[0], paths[-1]
            more = f', and {len(paths) - 2} more' if len(paths) > 2 else ''
            in_both = list_of[first] != list_of[last]
            yield Finding('same image in both lists' if in_both else 'same image twice',
                          f'{first} ({list_of[first]}) and {last} ({list_of[last]}){more} are the same image'
                          + ('; take it out of one list' if in_both else ''))


def find_oddities(class_set, name, of_split):
    """Yields Findings on the masks and images of one list (its name; list of Seen), worth a note each."""
    whose = "VOC's" if class_set == classes.VOC else "your classes'"
    colour = [pair for pair in of_split if pair.mask_kind == 'colour']
    void = [pair for pair in of_split if pair.mask_kind and pair.pixels[IGNORE_LABEL] == pair.pixels.sum()]
    small = [pair for pair in of_split if pair.size and min(pair.size) < SMALL_SIDE]
    for kind, found, what in (
            ('colour mask', colour, f'masks are colour pictures, which are read by {whose} colours, such as that of'),
            ('void mask', void, 'masks are void all over, such as that of'),
            ('small image', small, f'images are smaller than {SMALL_SIDE} pixels on a side, such as')):
        if found:
            yield Finding(kind, f'{name}: {len(found)} {what} {found[0].image_path}')
    for pair in of_split:
        yield from pair.notes


def report(diagnosis, json_path=None):
    """Prints a Diagnosis and writes it to `json_path`, if given; UserError if that fails or there are faults."""
    content = as_json(diagnosis)
    print(format_table(diagnosis.class_set, diagnosis.names, [content[role]['images'] for role in voc.ROLES],
                       diagnosis.pixels))
    print(*format_facts(content), sep='\n')
    for title, found in (('fault', diagnosis.faults), ('note', diagnosis.notes)):
        print(*voc.list_findings(found, title, SHOWN[title]), sep='\n', end='\n' if found else '')
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
    """The class table: the images of two data sets, and each class's pixels, int64 [256] by label, and shares."""
    width = max(12, *(len(name) + 1 for name in class_set.names))
    lines = [' ' * width + ''.join(f'{title:>26}' for title in titles),
             f'{"images":{width}}' + ''.join(f'{count:>26,}' for count in images)]
    for value, name in [*enumerate(class_set.names), (IGNORE_LABEL, 'void')]:
        cells = (f'{counts[value]:>17,}{counts[value] / max(counts.sum(), 1):>9.2%}' for counts in pixels)
        lines.append(f'{name:{width}}' + ''.join(cells))
    return '\n'.join(lines)


def format_facts(content):
    """Yields the lines for the terminal on the two lists in as_json's dict."""
    for facts in (content[role] for role in voc.ROLES):
        kinds = ', '.join(f'{count:,} {kind}' for kind, count in facts['masks'].items())
        line = f'{facts["list"]}: {facts["ids"]:,} ids, {facts["images"]:,} usable; masks: {kinds or "none"}'
        if facts['smallest']:
            ends = ('{id} ({width} x {height})'.format(**facts[end]) for end in ('smallest', 'largest'))
            line += '; images from {} to {}'.format(*ends)
        yield line
    names = [content[role]['list'] for role in voc.ROLES]
    if names[0] != names[1] and not any('both' in fault['kind'] for fault in content['faults']):
        yield ' and '.join(names) + ': no id and no image in both'


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
