"""Converts folders in the PASCAL VOC layout into fcn_train.record and fcn_val.record, the input of train.py.

    python convert_fcn_dataset.py --data_dir VOCdevkit/VOC2012 --output_dir data

An image's own bytes, JPEG or PNG, go in unchanged unless --scale makes it smaller; a mask becomes an 8-bit grey PNG of
class indices in which void stays 255. The schema is in dataset.py. The classes are VOC's or those of `--classes FILE`;
a side file, RECORD.json, remembers them beside each record. Layout and colour map of the masks: the PASCAL VOC
development kit (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/). `--sbd_dir benchmark_RELEASE/dataset` adds SBD's
images to the train record (sbd.py); with its masks converted to VOC's layout, `--train_split trainaug --train_label_dir
SegmentationClassAug`. `--check` reads all and writes nothing; what it sees is judged in dataset_doctor.py.
"""
import argparse
import collections
import concurrent.futures
import contextlib
import functools
import itertools
import os
import sys
import warnings
from typing import NamedTuple

import google_crc32c
import numpy as np
from PIL import Image
from tqdm import tqdm

import utils
from datasets import check as dataset_doctor
from datasets import classes, pictures, sbd
from datasets.check import SMALL_SIDE, Finding, Pair
from datasets.classes import IGNORE_LABEL
from datasets.pictures import BadFileError
from datasets.records import make_example, write_example

IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png')
MAX_LIST_BYTES = 2 ** 25  # of a split file: two million ids of 16 letters


class Split(NamedTuple):
    """One half of the data, as the flags name it."""
    role: str  # 'train' or 'val', as in --train_split and fcn_train.record
    list_path: str  # text file, one id a line
    data_dirs: list  # what an id's files may not lead out of
    image_dirs: list  # an image is looked for in each, in turn
    label_dir: str
    sbd_dir: str | None = None  # masks that label_dir lacks are in its folder cls

    @property
    def record_name(self):
        return f'fcn_{self.role}.record'

    @property
    def list_name(self):
        return os.path.basename(self.list_path) + (' + SBD' if self.sbd_dir else '')


class Converted(NamedTuple):
    """One pair: either its serialised example and pixel counts, or the problem that keeps it out."""
    example: bytes = b''
    pixels: np.ndarray | None = None  # int64 [256], by label value
    problem: str = ''


class Summary(NamedTuple):
    """What became of one split."""
    images: int
    pixels: np.ndarray  # int64 [256], by label value
    problems: list  # of str, `path: reason`


# ------------------------------------------------------------------------------------------- flags and split files


def parse_args(argv=None):
    """The flags, from `argv` (list of str) or the command line."""
    parser = utils.ArgumentParser('Converts a PASCAL VOC folder into fcn_train.record and fcn_val.record.')
    parser.add_argument('--data_dir', default=os.path.join('VOCdevkit', 'VOC2012'),
                        help='folder with JPEGImages/ (ID.jpg, ID.jpeg or ID.png), SegmentationClass/ and '
                             'ImageSets/Segmentation/')
    parser.add_argument('--output_dir', default='data', help='folder for the two records; made if it is missing')
    for role in ('train', 'val'):
        parser.add_argument(f'--{role}_split', default=role,
                            help=f'list of the {role} images: ImageSets/Segmentation/NAME.txt')
        parser.add_argument(f'--{role}_label_dir', default='SegmentationClass',
                            help=f'folder of the {role} masks in --data_dir; SegmentationClassAug for those of SBD')
    parser.add_argument('--sbd_dir', metavar='DIR',
                        help="folder benchmark_RELEASE/dataset of SBD, with img/, cls/, train.txt and val.txt: its "
                             "images join the train record, except those of the val list; VOC's own mask is taken "
                             'where there is one')
    parser.add_argument('--classes', metavar='FILE',
                        help="text file with the classes' names in the order of the masks' values, one a line; NAME "
                             "#rrggbb names a class's colour as well; without it the classes are VOC's")
    parser.add_argument('--scale', type=scale_factor, default=1.0, metavar='F',
                        help='scale pictures to F of their sides, up to 1: images by averaging areas, as JPEGs of '
                             'quality 95 without chroma subsampling (4:4:4), masks by nearest neighbour')
    parser.add_argument('--num_workers', type=utils.positive_int, default=os.cpu_count() or 1,
                        help='threads that read and check pictures; the records do not depend on it')
    parser.add_argument('--skip_bad', action='store_true',
                        help='leave out pairs that cannot be used, instead of stopping without records')
    parser.add_argument('--check', action='store_true',
                        help='read everything, tell what is wrong, and write nothing; exit code 1 if something is')
    parser.add_argument('--check_json', metavar='FILE', help='with --check: write what was found to this file as well')
    args = parser.parse_args(argv)
    if args.check_json and not args.check:
        parser.error('--check_json goes with --check')
    if args.sbd_dir and args.classes:
        parser.error("--sbd_dir goes without --classes: SBD's classes are VOC's")
    return args


def scale_factor(text):
    """argparse type: a float above 0, and 1 at most."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f'{text!r} is not a number above 0 and up to 1')


def find_splits(args):
    """The train and the val split of the flags, as two `Split`s; UserError where a folder is missing."""
    if not os.path.isdir(args.data_dir):
        raise utils.UserError(f'--data_dir {args.data_dir} is not a folder: unpack VOC2012 there, or name the folder '
                              'that holds JPEGImages')
    image_dir = os.path.join(args.data_dir, 'JPEGImages')
    if not os.path.isdir(image_dir):
        raise utils.UserError(f'{image_dir} is not a folder: --data_dir must name the folder that holds JPEGImages')
    splits = []
    for role in ('train', 'val'):
        label_dir = os.path.join(args.data_dir, getattr(args, f'{role}_label_dir'))
        if not os.path.isdir(label_dir):
            raise utils.UserError(f'{label_dir} is not a folder: name the one with the masks by --{role}_label_dir')
        list_name = getattr(args, f'{role}_split') + '.txt'
        list_path = os.path.join(args.data_dir, 'ImageSets', 'Segmentation', list_name)
        splits.append(Split(role, list_path, [args.data_dir], [image_dir], label_dir))
    return [add_sbd_dir(splits[0], args.sbd_dir), splits[1]] if args.sbd_dir else splits


def add_sbd_dir(split, sbd_dir):
    """A Split with SBD's folders beside its own; UserError if they are not there."""
    if not os.path.isdir(os.path.join(sbd_dir, 'cls')):
        raise utils.UserError(f'--sbd_dir {sbd_dir}: has no folder cls; name the folder benchmark_RELEASE/dataset of '
                              'SBD')
    return split._replace(data_dirs=[*split.data_dirs, sbd_dir], sbd_dir=sbd_dir,
                          image_dirs=[*split.image_dirs, os.path.join(sbd_dir, 'img')])


def find_lists(splits):
    """The lists of train and val and, where SBD takes part, its two: (path, what to do if it is missing) of each."""
    lists = [(split.list_path, f'name another list by --{split.role}_split, or mend --data_dir') for split in splits]
    if splits[0].sbd_dir:
        lists += [(path, 'name the folder benchmark_RELEASE/dataset of SBD by --sbd_dir')
                  for path in sbd.list_paths(splits[0].sbd_dir)]
    return lists


def merge_lists(ids_by_list):
    """The ids of train and val, two lists, from those of find_lists' lists; tells what SBD adds."""
    train_ids, val_ids, *sbd_lists = ids_by_list
    if not sbd_lists:
        return ids_by_list
    merged = sbd.merge(train_ids, val_ids, itertools.chain(*sbd_lists))
    print(f'train: {len(train_ids):,} of VOC + {merged.added:,} of SBD ({merged.in_val + merged.in_train:,} left out: '
          f'{merged.in_val:,} in val, {merged.in_train:,} in train)')
    return [merged.ids, val_ids]


def read_ids(list_path, cure):
    """The ids of a split's file in its order, list of str.

    UserError if it is missing (`cure` says what to do then), empty or no text, or holds an id twice or one that is no
    plain file name.
    """
    ids = read_list(list_path, cure)
    for _, problem in find_list_problems(list_path, ids):
        raise utils.UserError(problem)
    return ids


def read_list(list_path, cure):
    """The lines of a split's file that are not empty, list of str; UserError as of read_ids, but for the ids."""
    try:
        with utils.open_file(list_path, encoding='utf-8-sig') as file:  # some editors put a byte order mark in front
            if os.fstat(file.fileno()).st_size > MAX_LIST_BYTES:
                raise utils.UserError(f'{list_path} is larger than {MAX_LIST_BYTES >> 20} MB: it must hold one '
                                      'image id a line')
            ids = [line.strip() for line in file if line.strip()]
    except OSError as error:
        raise utils.UserError(f'{list_path}: {error.strerror}: {cure}') from error
    except UnicodeDecodeError as error:
        raise utils.UserError(f'{list_path} is not UTF-8 text: it must hold one image id a line') from error
    if not ids:
        raise utils.UserError(f'{list_path} is empty: it must hold one image id a line')
    return ids


def find_list_problems(list_path, ids):
    """Yields (kind, message) for every line that is no id or could lead out of the data folder, and all that repeat."""
    for image_id in filter(lambda image_id: not is_id(image_id), ids):
        shown = image_id if len(image_id) < 80 else image_id[:80] + '...'
        yield 'not an id', (f'{list_path}: {shown!r} is not an id: give the file name alone, without folder and ending')
    repeated = [image_id for image_id, times in collections.Counter(ids).items() if times > 1 and is_id(image_id)]
    if repeated:
        yield 'repeated id', (f'{list_path} holds {repeated[0]} more than once: remove what is doubled '
                              f'({len(repeated)} in all)')


def is_id(text):
    """Whether a line can be the name of a file in a folder, and of nothing elsewhere; nor may it steer a terminal."""
    return (text not in ('.', '..') and len(text) <= 200
            and not any(character in '/\\' or utils.is_control(character) for character in text))


def find_overlap(splits, ids_by_split):
    """A problem, str, for each image that is in both splits: a score on images seen in training says nothing."""
    train_ids, val_ids = ids_by_split
    shared = sorted(set(train_ids) & set(val_ids))
    hint = " (SBD's own lists hold images of VOC's val)" if 'aug' in os.path.basename(splits[0].list_path) else ''
    return [f'{image_id} is in both {splits[0].list_path} and {splits[1].list_path}: remove it from one '
            f'({len(shared)} in all){hint}' for image_id in shared]


def check_disjoint(splits, ids_by_split):
    """UserError if an image is in both splits."""
    for problem in find_overlap(splits, ids_by_split):
        raise utils.UserError(problem)


# ------------------------------------------------------------------------------------------- one pair


def find_images(split, image_id):
    """The paths of an image, list of str: one as a rule; that of a JPEG if there is none."""
    for folder in split.image_dirs:
        paths = [os.path.join(folder, image_id + ending) for ending in IMAGE_ENDINGS]
        found = [path for path in paths if os.path.lexists(path)]
        if found:
            return found
    return paths[:1]


def read_image(split, paths, coarse):
    """Reads the image at one of find_images' paths, as pictures.read_image; BadFileError if there is another."""
    if len(paths) > 1:
        raise BadFileError(f'{paths[0]}: {os.path.basename(paths[1])} is there as well; keep one of them', 'two images')
    pictures.check_file(paths[0], split.data_dirs)
    return pictures.read_image(paths[0], coarse)


def find_label(split, image_id):
    """The path of an image's mask: VOC's own, which has void borders, and only where that is missing SBD's."""
    path = os.path.join(split.label_dir, image_id + '.png')
    if split.sbd_dir and not os.path.lexists(path):
        return os.path.join(split.sbd_dir, 'cls', image_id + '.mat')
    return path


def read_label(split, path, class_set):
    """Reads the mask at find_label's path, as pictures.read_label."""
    pictures.check_file(path, split.data_dirs)
    return (sbd if path.endswith('.mat') else pictures).read_label(path, class_set)


def describe_mismatch(label_path, image_size, label_size):
    """The problem of a mask whose image has another size; both (width, height)."""
    return '{}: is {} x {} pixels, its image {} x {}'.format(label_path, *label_size, *image_size)


def describe_shrinking(path, size, scale):
    """The problem of an image, (width, height), that `scale` makes too small to learn from; '' if it does not."""
    width, height = pictures.scaled_size(size, scale)
    if min(width, height) >= SMALL_SIDE or min(size) < SMALL_SIDE:  # what is small by itself is not --scale's fault
        return ''
    return (f'--scale {scale:g}: makes {path} {width} x {height} pixels, and fewer than {SMALL_SIDE} on a side are one '
            'to the network; take a larger one')


def convert_pair(split, image_id, class_set, scale):
    """One image and its mask, `scale` times as large, as `Converted`.

    A pair that cannot be used becomes its `problem`. UserError if it is `scale` that makes it so.
    """
    image_paths, label_path = find_images(split, image_id), find_label(split, image_id)
    try:
        photo = read_image(split, image_paths, coarse=scale == 1)
        label = read_label(split, label_path, class_set)
        if photo.size != label.size:
            return Converted(problem=describe_mismatch(label_path, photo.size, label.size))
        if problem := describe_shrinking(image_paths[0], photo.size, scale):
            raise utils.UserError(problem)
        if scale < 1:
            photo, label = pictures.scale_image(photo, scale, image_paths[0]), pictures.scale_label(label, scale)
    except BadFileError as error:
        return Converted(problem=str(error))
    width, height = label.size
    example = make_example(image_id.encode(), photo.data, label.png, height, width, photo.format)
    return Converted(example, label.pixels)


# ------------------------------------------------------------------------------------------- a whole split


def map_in_order(function, items, num_workers):
    """Yields function(item) in the order of the items, computed by threads a few items ahead.

    Threads do, because Pillow and zlib let go of the interpreter while they work. No more than 3 * num_workers results
    are held, so memory does not grow with the data set.
    """
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        ahead = collections.deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) == 3 * num_workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


# ------------------------------------------------------------------------------------------- --check


def look_at_pair(split, class_set, scale, image_id):
    """An image and its mask as a `dataset_doctor.Pair`; whatever is wrong becomes its faults, never an exception."""
    image_paths, label_path = find_images(split, image_id), find_label(split, image_id)
    faults, image, mask = [], {}, {}
    try:
        photo = read_image(split, image_paths, coarse=True)
        image = {'size': photo.size, 'checksum': google_crc32c.value(photo.picture.convert('RGB').tobytes())}
        if problem := describe_shrinking(image_paths[0], photo.size, scale):
            faults.append(Finding('too small', problem))
    except BadFileError as error:
        faults.append(Finding(error.kind, str(error)))
    try:
        label = read_label(split, label_path, class_set)
        mask = look_at_mask(label_path, label.pixels, class_set)
        if image and image['size'] != label.size:
            faults.append(Finding('size mismatch', describe_mismatch(label_path, image['size'], label.size)))
    except BadFileError as error:
        faults.append(Finding(error.kind, str(error)))
    return Pair(image_id, image_paths[0], faults, **image, **mask)


def look_at_mask(path, pixels, class_set):
    """`mask_kind`, `pixels` and `odd_palette` of a Pair, from a mask's path and its Label's pixels."""
    if path.endswith('.mat'):
        return {'mask_kind': 'SBD', 'pixels': pixels}
    with Image.open(path, formats=['PNG']) as picture:
        kind = {'P': 'palette', 'RGB': 'colour', 'RGBA': 'colour'}.get(picture.mode, 'grey')
    return {'mask_kind': kind, 'pixels': pixels,
            'odd_palette': dataset_doctor.describe_palette(path, pixels, class_set) if kind == 'palette' else ''}


def check(splits, class_set, scale, num_workers):
    """Looks at all that the lists name, and at the lists; stops at nothing but a list that cannot be read.

    Returns:
        `dataset_doctor.Diagnosis`.
    """
    paths, cures = zip(*find_lists(splits))
    lists = [read_list(path, cure) for path, cure in zip(paths, cures)]
    faults = [Finding(*problem) for path, ids in zip(paths, lists) for problem in find_list_problems(path, ids)]
    usable = [list(dict.fromkeys(filter(is_id, ids))) for ids in lists]
    faults += [Finding('id in both lists', problem) for problem in find_overlap(splits, usable[:2])]
    merged, pairs = merge_lists(usable), []
    for split, ids in zip(splits, merged):
        results = map_in_order(functools.partial(look_at_pair, split, class_set, scale), ids, num_workers)
        pairs.append(list(tqdm(results, desc=f'looking at {split.list_name}', total=len(ids), unit='image')))
    listed = [len(ids) + len(after) - len(before) for ids, before, after in zip(lists, usable, merged)]
    return dataset_doctor.diagnose(class_set, [split.list_name for split in splits], listed, faults, pairs,
                                   count_unlisted(splits, merged))


def count_unlisted(splits, ids_by_split):
    """How many masks of the splits' folders are in neither list, int."""
    folders = {split.label_dir for split in splits}
    known = {image_id + '.png' for ids in ids_by_split for image_id in ids}
    return sum(name.endswith('.png') and name not in known for folder in folders for name in os.listdir(folder))


def tell(diagnosis, json_path):
    """Prints a diagnosis, and writes it to `json_path` if there is one; UserError if it has faults."""
    summaries = [Summary(sum(not pair.faults for pair in pairs), dataset_doctor.sum_pixels(pairs), [])
                 for pairs in diagnosis.pairs]
    print(format_table(diagnosis.class_set, diagnosis.lists, summaries))
    print(dataset_doctor.format_diagnosis(diagnosis))
    if json_path:
        try:
            utils.save_json(json_path, dataset_doctor.as_json(diagnosis))
        except OSError as error:
            raise utils.UserError(f'--check_json {json_path}: {error.strerror}: name a file in a folder you can write '
                                  'to') from error
    if diagnosis.faults:
        count = '1 fault' if len(diagnosis.faults) == 1 else f'{len(diagnosis.faults)} faults'
        raise utils.UserError(f'{count}: training would go wrong; mend what is listed above')
    print('no fault: ready to convert')


# ------------------------------------------------------------------------------------------- writing a split


def convert_split(split, ids, record_path, class_set, scale, num_workers):
    """Writes the usable pairs of a split to a record, in the order of `ids`, and its side file.

    Returns:
        `Summary`. UserError if one of the two cannot be written.
    """
    pixels, problems = np.zeros(256, np.int64), []
    results = map_in_order(lambda image_id: convert_pair(split, image_id, class_set, scale), ids, num_workers)
    bar = tqdm(results, desc=split.record_name, total=len(ids), unit='image')
    with naming_output(split.record_name), bar, open(record_path, 'wb') as record:
        for result in bar:
            if result.problem:
                problems.append(result.problem)
            else:
                write_example(record, result.example)
                pixels += result.pixels
    summary = Summary(len(ids) - len(problems), pixels, problems)
    side_path = classes.side_file(record_path)
    with naming_output(classes.side_file(split.record_name)):
        classes.save_side_file(side_path, class_set, summary.images, pixels)
    return summary


@contextlib.contextmanager
def naming_output(name):
    """Has what cannot be written end in a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise utils.UserError(f'cannot write {name} ({error.strerror}): free space or name another --output_dir'
                              ) from error


@contextlib.contextmanager
def partial_records(output_dir, names):
    """Gives temporary paths in the output folder, renamed to `names` when the block ends, removed when it fails."""
    finals = [os.path.join(output_dir, name) for name in names]
    partials = [os.path.join(output_dir, 'partial-' + name) for name in names]
    try:
        yield partials
        for partial, final in zip(partials, finals):
            os.replace(partial, final)
    except KeyboardInterrupt:
        print('interrupted: no record was written', file=sys.stderr)
        raise
    finally:
        for partial in partials:
            if os.path.exists(partial):
                os.remove(partial)


def make_output_folder(output_dir, names):
    """Makes the folder; UserError if that fails or a folder is in a record's place, before any work."""
    try:
        os.makedirs(output_dir, exist_ok=True)
    except OSError as error:
        raise utils.UserError(f'--output_dir {output_dir}: {error.strerror}: name a folder you can write to') from error
    for name in names:
        path = os.path.join(output_dir, name)
        if os.path.isdir(path):
            raise utils.UserError(f'{path} is a folder: move it away or name another --output_dir')


def check_problems(splits, summaries, skip_bad):
    """Lists what cannot be used on stderr; UserError unless it is to be skipped, or if a split has nothing left."""
    problems = [problem for summary in summaries for problem in summary.problems]
    for problem in problems:
        print(problem, file=sys.stderr)
    total = sum(summary.images + len(summary.problems) for summary in summaries)
    if problems and not skip_bad:
        raise utils.UserError(f'{len(problems)} of {total} images cannot be used: mend them or pass --skip_bad')
    for split, summary in zip(splits, summaries):
        if not summary.images:
            raise utils.UserError(f'{split.list_path}: not one of its images can be used: mend them as listed above')
    if problems:
        print(f'{len(problems)} of {total} images left out', file=sys.stderr)


def format_table(class_set, titles, summaries):
    """Images, pixels a class and share of all pixels, a pair of columns for each split; str of many lines."""
    width = max(12, *(len(name) + 1 for name in class_set.names))
    lines = [' ' * width + ''.join(f'{title:>26}' for title in titles),
             f'{"images":{width}}' + ''.join(f'{summary.images:>26,}' for summary in summaries)]
    rows = [*enumerate(class_set.names), (IGNORE_LABEL, 'void')]
    for value, name in rows:
        cells = (f'{summary.pixels[value]:>17,}{summary.pixels[value] / max(summary.pixels.sum(), 1):>9.2%}'
                 for summary in summaries)
        lines.append(f'{name:{width}}' + ''.join(cells))
    return '\n'.join(lines)


def main(argv=None):
    """Converts both splits; the records take their final names only when both are complete. Or checks them."""
    args = parse_args(argv)
    # Pillow warns of very large pictures and odd EXIF, without the file's name; neither keeps an image out.
    warnings.filterwarnings('ignore', module='PIL')
    class_set = classes.read_classes(args.classes) if args.classes else classes.VOC
    splits = find_splits(args)
    if not args.classes and os.path.isfile(list_of_classes := os.path.join(args.data_dir, 'classes.txt')):
        print(f'note: the classes are taken for those of VOC; for others there is --classes {list_of_classes}',
              file=sys.stderr)
    if args.check:
        tell(check(splits, class_set, args.scale, args.num_workers), args.check_json)
        return
    ids_by_list = [read_ids(*source) for source in find_lists(splits)]
    check_disjoint(splits, ids_by_list[:2])
    ids_by_split = merge_lists(ids_by_list)
    names = [split.record_name for split in splits]
    outputs = [*names, *map(classes.side_file, names)]
    make_output_folder(args.output_dir, outputs)
    with partial_records(args.output_dir, outputs) as paths:
        summaries = [convert_split(split, ids, path, class_set, args.scale, args.num_workers)
                     for split, ids, path in zip(splits, ids_by_split, paths)]
        check_problems(splits, summaries, args.skip_bad)
    print(format_table(class_set, names, summaries))


if __name__ == '__main__':
    utils.run_program(main)
