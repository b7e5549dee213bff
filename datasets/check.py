"""What `convert_fcn_dataset.py --check` finds in a data set: faults, notes, a report for the terminal, and JSON.

    python convert_fcn_dataset.py --data_dir VOCdevkit/VOC2012 --check --check_json check.json

A fault stops the conversion or makes training or its scores go wrong; a note is only worth knowing.
"""
import collections
import functools
import hashlib
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import utils
from datasets import classes, pictures, voc
from datasets.classes import IGNORE_LABEL
from datasets.voc import Finding

SMALL_SIDE = 32  # pixels that are one in the network's coarsest map


class Seen(NamedTuple):
    """What was found in one image and its mask."""
    image_id: str
    image_path: str
    faults: list  # of Finding
    notes: list  # of Finding
    size: tuple = ()  # (width, height) of the scaled image; () if it cannot be read
    checksum: bytes = b''  # of the picture, which read_image may have decoded at an eighth of its size
    mask_kind: str = ''  # see pictures.Mask; '' if it cannot be read
    pixels: np.ndarray = np.zeros(256, np.int64)  # by label


def check(splits, lists, class_set, scale, num_workers):
    """Reads all images and masks of two voc.Split, whose `lists` are read_lists' result, in `num_workers` threads, and
    judges them as if scaled by `scale`. Returns what --check_json writes, dict."""
    ids_by_split, listed, faults = lists
    names, seen = [split.list_name for split in splits], []
    for split, ids in zip(splits, ids_by_split):
        results = voc.map_in_order(functools.partial(look_at_pair, split, class_set, scale), ids, num_workers)
        seen.append(list(tqdm(results, desc=f'looking at {split.list_name}', total=len(ids), unit='image')))
    pixels = [sum((pair.pixels for pair in of_split), np.zeros(256, np.int64)) for of_split in seen]
    twins = list(find_twins(names, seen))
    faults = [*faults, *(fault for of_split in seen for pair in of_split for fault in pair.faults),
              *(twin for twin in twins if 'both' in twin.kind)]
    for name, counts, needed in zip(names, pixels, (2, 1)):
        if counts.any() and (lack := classes.describe_lack(class_set, counts, needed)):
            faults.append(Finding('nothing to learn', f'{name}: {lack}'))
    notes = [*(twin for twin in twins if 'both' not in twin.kind),
             *(note for name, of_split in zip(names, seen) for note in find_oddities(class_set, name, of_split))]
    if absent := [each for each, count in zip(class_set.names, pixels[0]) if not count]:
        notes.append(Finding('class not in train', f'{names[0]}: no pixel of {", ".join(absent)}'))
    if unlisted := {*splits[0].masks, *splits[1].masks}.difference(*ids_by_split):
        notes.append(Finding('in no list', f'{len(unlisted)} masks are in neither {names[0]} nor {names[1]}'))
    faults, notes = map(dict.fromkeys, (faults, notes))  # each once, because train and val may be one list
    return {'faults': [fault._asdict() for fault in faults], 'notes': [note._asdict() for note in notes],
            **{role: describe_split(class_set, *of_split)
               for role, *of_split in zip(voc.ROLES, names, listed, seen, pixels)}}


def look_at_pair(split, class_set, scale, image_id):
    """Reads an image and its mask; returns Seen."""
    pair = voc.read_pair(split, image_id, class_set, scale)
    seen = Seen(image_id, pair.image_path, pair.faults, pair.notes)
    if pair.image:
        checksum = hashlib.sha256(pair.image.picture.convert('RGB').tobytes()).digest()
        seen = seen._replace(size=pictures.scaled_size(pair.image.size, scale), checksum=checksum)
    if pair.mask:
        seen = seen._replace(mask_kind=pair.mask.kind, pixels=pictures.count_pixels(pair.mask.labels))
    return seen


def describe_split(class_set, name, listed, of_split, pixels):
    """What is in one list, as JSON: its name, number of ids, list of Seen, and int64 [256] by label."""
    sized = sorted((pair for pair in of_split if pair.size), key=lambda pair: pair.size[0] * pair.size[1])
    ends = [{'id': pair.image_id, 'width': pair.size[0], 'height': pair.size[1]} for pair in sized] or [None]
    kinds = collections.Counter(pair.mask_kind for pair in of_split if pair.mask_kind)
    return {'list': name, 'ids': listed, 'images': sum(not pair.faults for pair in of_split),
            'masks': dict(sorted(kinds.items())), 'smallest': ends[0], 'largest': ends[-1],
            'pixels': name_pixels(class_set, pixels)}


def name_pixels(class_set, pixels):
    """Numbers of pixels, int64 [256] by label, as a dict of the classes' names and `void` to int."""
    return {name: int(pixels[label]) for label, name in [*enumerate(class_set.names), (IGNORE_LABEL, 'void')]}


def find_twins(names, seen):
    """Yields a Finding for each group of images that are the same, which means of one size and checksum.
    `names`: two str, of the train and the val list. `seen`: two lists of Seen."""
    list_of = {pair.image_path: name for name, of_split in zip(names[::-1], seen[::-1]) for pair in of_split}
    alike = collections.defaultdict(dict)
    for pair in (pair for of_split in seen for pair in of_split if pair.size):
        alike[pair.size, pair.checksum][pair.image_path] = None
    for paths in (list(group) for group in alike.values() if len(group) > 1):
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


def report(content, json_path=None):
    """Prints check's result and writes it to `json_path`, if given; UserError if there are faults."""
    facts = [content[role] for role in voc.ROLES]
    print(format_table(*zip(*((of_split['list'], of_split['images'], of_split['pixels']) for of_split in facts))))
    print(*format_facts(facts, content['faults']), sep='\n')
    for title, shown in (('fault', 10), ('note', 1)):
        for line in voc.list_findings((Finding(**found) for found in content[f'{title}s']), title, shown):
            print(line)
    if json_path:
        utils.save_json(json_path, content)
    if count := len(content['faults']):
        raise utils.UserError(f'{count} fault{"s" * (count > 1)}: training would go wrong; mend what is listed above')
    print('no fault: ready to convert')


def format_table(titles, images, pixels):
    """The class table, str of many lines: two titles, two numbers of images, two dicts of name_pixels."""
    width = max(12, *(len(name) + 1 for name in pixels[0]))
    lines = [' ' * width + ''.join(f'{title:>26}' for title in titles),
             f'{"images":{width}}' + ''.join(f'{count:>26,}' for count in images)]
    for name in pixels[0]:
        cells = (f'{counts[name]:>17,}{counts[name] / max(sum(counts.values()), 1):>9.2%}' for counts in pixels)
        lines.append(f'{name:{width}}' + ''.join(cells))
    return '\n'.join(lines)


def format_facts(facts, faults):
    """Yields the lines for the terminal on the two lists in check's result."""
    for of_split in facts:
        kinds = ', '.join(f'{count:,} {kind}' for kind, count in of_split['masks'].items())
        line = f'{of_split["list"]}: {of_split["ids"]:,} ids, {of_split["images"]:,} usable; masks: {kinds or "none"}'
        if of_split['smallest']:
            ends = ('{id} ({width} x {height})'.format(**of_split[end]) for end in ('smallest', 'largest'))
            line += '; images from {} to {}'.format(*ends)
        yield line
    names = [of_split['list'] for of_split in facts]
    if names[0] != names[1] and not any('both' in fault['kind'] for fault in faults):
        yield ' and '.join(names) + ': no id and no image in both'
