"""A data set in VOC's or Roboflow's layout, with SBD beside it if wanted: lists, folders, an image and its mask.

    train, val = voc.find_splits('VOCdevkit/VOC2012', ('train', 'val'), ('SegmentationClass', 'SegmentationClass'))
    (train_ids, val_ids), _, faults = voc.read_lists((train, val))
    pair = voc.read_pair(train, train_ids[0], classes.VOC, scale=1.0)

Layout: the PASCAL VOC development kit (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/). SBD, the Semantic Boundaries
Dataset, has masks without void borders for 11,355 images of VOC2011, as img/, cls/, train.txt and val.txt. Roboflow's
"Semantic Segmentation Masks" are folders train/ and valid/ of ID.jpg, ID_mask.png and _classes.csv, without lists.
"""
import collections
import concurrent.futures
import hashlib
import os
import re
from typing import NamedTuple

import utils
from datasets import photos, pictures
from datasets.pictures import BadFileError

ROLES = ('train', 'val')
NO_NAME = 'no name of a file; give the file name alone, without folder and ending'
OTHER_LINES = (  # of lists that hold more than ids, and what they are
    (r'\S+\s+-?[01]', "an id with 1 or -1, as VOC's lists of one class have; take a list of ImageSets/Segmentation"),
    (r'#.*', 'a comment; remove it'),
    (r'["\'].*', 'in quotes; remove them'),
    (r'.*[/\\].*[\s,;].*[/\\].*', 'two paths; give the file name of the image alone, without folder and ending'),
    (r'.*[/\\].*', 'a path; give the file name alone, without folder and ending'),
    (r'.*\.(?i:jpe?g|png|bmp|mat)', 'a file name with its ending; remove the ending'),
    (r'.*[\s,;].*', 'more than one word; give the id alone'),
    (r'.*', NO_NAME))
NO_ID = r'\.{1,2}|.{201,}|.*[\\\x00-\x1f\x7f-\x9f].*'  # . and .., too long, or with control characters


class Finding(NamedTuple):
    """One thing that is wrong or odd: its kind in two or three words, and one line that names the file or the list."""
    kind: str
    message: str


class Split(NamedTuple):
    """The train or the val part of a data set."""
    role: str  # of ROLES
    list_path: str  # text file of one id a line; or a folder, whose masks are all taken
    image_dir: str
    label_dir: str
    images: dict  # of id to list of paths; see list_files
    masks: dict  # likewise
    sbd_dir: str | None = None
    val_fraction: float | None = None  # of a list that train and val share

    @property
    def list_name(self):
        return (os.path.basename(self.list_path) + (' + SBD' if self.sbd_dir else '')
                + (f' ({self.role})' if self.val_fraction else ''))


class Pair(NamedTuple):
    """An image and its mask, as far as they can be read."""
    image_path: str
    image: pictures.ImageFile | None
    mask: pictures.Mask | None
    faults: list  # of Finding; empty if the pair can be used
    notes: list  # of Finding


def find_splits(data_dir, list_names, label_dirs, sbd_dir=None):
    """The train and the val Split of VOC's folder, or of Roboflow's; UserError if a folder is missing.
    list_names: two, in ImageSets/Segmentation. label_dirs: two, of the masks. sbd_dir: SBD's benchmark_RELEASE/dataset,
    which joins train."""
    if os.path.isfile(os.path.join(data_dir, 'train', '_classes.csv')):
        return list(find_roboflow_splits(data_dir))
    image_dir, *label_dirs = (os.path.join(data_dir, name) for name in ('JPEGImages', *label_dirs))
    lists = [os.path.join(data_dir, 'ImageSets', 'Segmentation', f'{name}.txt') for name in list_names]
    for folder, cure in ((data_dir, 'unpack VOC2012 there, or name the folder that holds JPEGImages by --data_dir'),
                         (image_dir, '--data_dir must name the folder that holds JPEGImages, or for an export of '
                                     'Roboflow train/_classes.csv'),
                         *((path, f'name the one with the masks by --{role}_label_dir')
                           for role, path in zip(ROLES, label_dirs)),
                         *((os.path.join(sbd_dir, name), 'name benchmark_RELEASE/dataset of SBD by --sbd_dir')
                           for name in ('img', 'cls') if sbd_dir)):
        if not os.path.isdir(folder):
            raise utils.UserError(f'{folder} is not a folder: {cure}')
    images = list_files(image_dir, pictures.FORMATS)
    train, val = (Split(*of_split, images, list_files(of_split[-1], ('.png', '.bmp')))
                  for of_split in zip(ROLES, lists, [image_dir] * 2, label_dirs))
    if sbd_dir:  # VOC's own files are taken where there are some, because its masks have void borders
        train = train._replace(images={**list_files(os.path.join(sbd_dir, 'img'), pictures.FORMATS), **images},
                               masks={**list_files(os.path.join(sbd_dir, 'cls'), ('.mat',)), **train.masks},
                               sbd_dir=sbd_dir)
    return [train, val]


def find_roboflow_splits(data_dir):
    """The train and the val Split of Roboflow's folders train/ and valid/."""
    for role, name in zip(ROLES, ('train', 'valid')):
        folder = os.path.join(data_dir, name)
        images, pngs = (list_files(folder, endings) if os.path.isdir(folder) else {}
                        for endings in (pictures.FORMATS, ('.png',)))
        masks = {stem.removesuffix('_mask'): paths for stem, paths in pngs.items() if stem.endswith('_mask')}
        yield Split(role, folder, folder, folder, images, masks)


def share_list(train, val, val_fraction):
    """The train and the val Split of one list: that of train, or of all its masks if the data set has no lists.
    UserError if val has a list, which comes from the user."""
    if os.path.exists(val.list_path):
        cure = '' if os.path.isdir(val.list_path) else ', or give --val_split the name of a list that does not exist'
        raise utils.UserError(f'{val.list_path} exists: leave out --val_fraction{cure}')
    has_lists = os.path.isdir(os.path.dirname(train.list_path))
    train = train._replace(list_path=train.list_path if has_lists else train.label_dir, val_fraction=val_fraction)
    return [train, train._replace(role='val', sbd_dir=None)]


def divide_ids(ids, val_fraction):
    """Divides a list of ids into those of train and those of val, at least one each; UserError if there is only one.
    An id is val's if its SHA-256, as a number from 0 to 1, is below val_fraction. So images that come later move no
    other image from one part to the other, and the val part is only about as large as val_fraction says."""
    if len(ids) < 2:
        raise utils.UserError(f'--val_fraction: there is no image beside {ids[0]}; train and val need one each')
    number = {image_id: int(hashlib.sha256(image_id.encode()).hexdigest(), 16) / 2 ** 256 for image_id in ids}
    count = sum(number[image_id] < val_fraction for image_id in ids)
    val = set(sorted(ids, key=number.get)[:min(max(count, 1), len(ids) - 1)])
    return [[image_id for image_id in ids if image_id not in val], [image_id for image_id in ids if image_id in val]]


def list_files(folder, endings):
    """The files of a folder and its subfolders, without hidden ones, that have one of the endings, in upper or lower
    case: dict of id, which is the path in the folder without ending, to paths."""
    found = collections.defaultdict(list)
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        within = os.path.join(place, '')[len(os.path.join(folder, '')):]  # '' or a subfolder, with / at its end
        for name in sorted(names):
            stem, ending = os.path.splitext(name)
            if ending.lower() in endings:
                found[within + stem].append(os.path.join(place, name))
    return dict(found)


def read_lists(splits):
    """Reads the lists of train and val; if SBD takes part, the ids of its two lists join train, except those of val.
    Prints what SBD adds, and whether one list is that of both splits. Returns two lists of ids, each once; two ints,
    the lines of the lists; the faults, list of Finding. UserError if a list is missing, empty or not text."""
    train, val = splits
    cures = ('' if train.val_fraction else '; without lists, --val_fraction 0.2 divides all masks',
             '; --val_fraction 0.2 divides the train list, --val_split train scores on the images trained on')
    sources = [(split.list_path, f'name a list of one image id a line by --{split.role}_split{cure}')
               for split, cure in zip(splits, cures)]
    sources += [(os.path.join(train.sbd_dir, f'{role}.txt'), 'name benchmark_RELEASE/dataset of SBD by --sbd_dir')
                for role in ROLES if train.sbd_dir]
    lines = [sorted(split.masks) for split in splits if os.path.isdir(split.list_path)]
    for (path, _), of_folder in zip(sources, lines):
        if not of_folder:
            raise utils.UserError(f'{path}: holds no masks; put them there, or name another folder')
    lines += [utils.read_lines(*source) for source in sources[len(lines):]]
    images = {**train.images, **val.images}
    ids, faults = map(list, zip(*(find_ids(path, of_list, images) for (path, _), of_list in zip(sources, lines))))
    faults = sum(faults, [])
    if train.val_fraction:
        lines[:2] = ids[:2] = divide_ids(ids[0], train.val_fraction)
    elif train.list_path == val.list_path:
        print(f'note: {val.list_path} is the list of both train and val: scores are those on images trained on')
    else:  # a score on images that were trained on is meaningless
        shared = sorted(set(ids[0]) & set(ids[1]))
        hint = " (SBD's own lists hold images of VOC's val)" if 'aug' in os.path.basename(train.list_path) else ''
        faults += [Finding('id in both lists', f'{image_id} is in both {train.list_path} and {val.list_path}: remove '
                                               f'it from one ({len(shared)} in all){hint}') for image_id in shared]
    added = add_sbd(ids[0], ids[1], [*ids[2], *ids[3]]) if train.sbd_dir else []
    return [ids[0] + added, ids[1]], [len(lines[0]) + len(added), len(lines[1])], faults


def read_ids(list_path, cure):
    """The ids of one list, list of str; UserError if it cannot be read (`cure` is what to do then), or has a fault."""
    ids, faults = find_ids(list_path, utils.read_lines(list_path, cure))
    for fault in faults:
        raise utils.UserError(fault.message)
    return ids


def find_ids(list_path, lines, images=None):
    """The ids in the lines of a list, list of str, and its faults, list of Finding: other lines, and repeated ids.
    A line that looks like more than an id is one all the same if `images`, a dict by id, has it. Without `images`, all
    lines but paths are ids."""
    ids, others = collections.Counter(), collections.defaultdict(list)
    for line in lines:
        what = next(what for form, what in OTHER_LINES if re.fullmatch(form, line, re.DOTALL))
        unknown = '/' in line if images is None else line not in images
        if re.fullmatch(NO_ID, line, re.DOTALL) or unknown and what != NO_NAME:
            others[what].append(line)
        else:
            ids[line] += 1
    faults = [Finding('not an id', f'{list_path}: {found[0][:80]!r} is not an id, but {what} ({len(found)} such lines)')
              for what, found in others.items()]
    if repeated := [image_id for image_id, times in ids.items() if times > 1]:
        faults.append(Finding('repeated id', f'{list_path} holds {repeated[0]} more than once: remove what is doubled '
                                             f'({len(repeated)} in all)'))
    return list(ids), faults


def add_sbd(train_ids, val_ids, sbd_ids):
    """The ids of SBD, list of str, that are neither in VOC's train nor in its val list; prints their number."""
    known, candidates = {*train_ids, *val_ids}, list(dict.fromkeys(sbd_ids))
    added = [image_id for image_id in candidates if image_id not in known]
    left_out, left_out_val = len(candidates) - len(added), len(set(val_ids).intersection(candidates))
    print(f'train: {len(train_ids):,} of VOC + {len(added):,} of SBD ({left_out:,} left out: {left_out_val:,} in val, '
          f'{left_out - left_out_val:,} in train)')
    return added


def read_pair(split, image_id, class_set, scale):
    """Reads an image and its mask as a Pair, turns the image as viewers show it, and checks them.
    `class_set`: classes.ClassSet. `scale`: float, by which they will be scaled."""
    image_path, image, faults = read_file(split, split.images, split.image_dir, image_id, scale,
                                          lambda path: pictures.read_image(path, scale))
    label_path, mask, mask_faults = read_file(split, split.masks, split.label_dir, image_id, scale,
                                              lambda path: pictures.read_mask(path, class_set, scale))
    notes = [Finding('odd palette', f'{label_path}: {mask.oddity}')] if mask and mask.oddity else []
    if image and 2 <= image.orientation <= 8:
        image, note = turn_image(image_path, image, mask)
        notes.append(note)
    faults += mask_faults
    if image and mask and image.size != mask.labels.shape[::-1]:
        sizes = '{} x {} pixels, its image {} x {}'.format(*mask.labels.shape[::-1], *image.size)
        turned = f', turned by its EXIF orientation {image.orientation}' if image.orientation > 1 else ''
        faults.append(Finding('size mismatch', f'{label_path}: is {sizes}{turned}'))
    return Pair(image_path, image, mask, faults, notes)


def read_file(split, files, folder, image_id, scale, read):
    """Reads the image or the mask of an id with `read`, a function of a path.
    The path is that in `files`, dict by id; if there is none, that of a file in `folder` with another ending.
    Returns its path; the result, None if it cannot be used; list of Finding."""
    others = (*photos.IMAGE_ENDINGS, *map(str.upper, photos.IMAGE_ENDINGS))  # cannot be used, only named
    found = files.get(image_id) or [path for ending in others
                                    if os.path.lexists(path := os.path.join(folder, image_id + ending))]
    path = found[0] if found else os.path.join(folder, image_id + ('.jpg' if folder == split.image_dir else '.png'))
    try:
        if len(found) > 1:
            raise BadFileError(f'{path}: {os.path.basename(found[1])} is there as well; keep one of them', 'two images')
        pictures.check_file(path, filter(None, (os.path.dirname(split.image_dir), split.sbd_dir)), scale)
        return path, read(path), []
    except BadFileError as error:
        return path, None, [Finding(error.kind, str(error))]


def turn_image(path, image, mask):
    """An ImageFile as viewers show it, unless only its stored size fits the mask, and a Finding that says which."""
    upright, by_exif = pictures.turn_upright(image), f'by its EXIF orientation {image.orientation}'
    if mask and mask.labels.shape[::-1] == image.size != upright.size:
        return image, Finding('stored image', f'{path}: is used as it is stored, because its mask has that size; '
                                              f'viewers and predict.py turn it {by_exif}')
    return upright, Finding('turned image', f'{path}: is turned as viewers show it, {by_exif}, and encoded anew')


def list_findings(findings, title, shown):
    """Yields the lines for the terminal: of each kind of Finding the first `shown`, and how many there are.
    `title` ('fault', 'note') and the kind begin each line; without a title these are the messages alone."""
    by_kind = collections.defaultdict(list)
    for finding in findings:
        by_kind[finding.kind].append(finding.message)
    for kind, messages in by_kind.items():
        yield from (f'{title}: {kind}: {message}' if title else message for message in messages[:shown])
        if len(messages) > shown:
            yield f'{title or "fault"}: {kind}: {len(messages):,} in all; --check --check_json FILE lists them'


def map_in_order(function, items, num_workers):
    """Yields function(item) in the order of the items, computed by threads a few items ahead.
    Threads suffice because Pillow and zlib release the interpreter while they work. At most 3 * num_workers results
    are held, so that memory does not grow with the data set."""
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        ahead = collections.deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) == 3 * num_workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
