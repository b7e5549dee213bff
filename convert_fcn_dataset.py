"""Converts folders in the PASCAL VOC layout into fcn_train.record and fcn_val.record, the input of train.py.

    python convert_fcn_dataset.py --data_dir VOCdevkit/VOC2012 --output_dir data

The bytes of an image's file, JPEG or PNG, stay as they are unless --scale makes the image smaller or EXIF turns it; a
mask becomes an 8-bit grey PNG of class indices in which void stays 255. datasets/records.py has the schema. Beside each
record, RECORD.json remembers its classes, VOC's or those of --classes.
"""
import argparse
import contextlib
import os
import random
import sys
import warnings
from typing import NamedTuple

if __name__ == '__main__':
    import utils
    utils.import_tensorflow()

import numpy as np
from tqdm import tqdm

import utils
from datasets import batches, check, classes, pictures, records, voc

CLASS_FILES = ('classes.txt', 'class_names.txt', 'labelmap.txt', 'labels.txt', 'train/_classes.csv')


class Summary(NamedTuple):
    """What became of one split."""
    images: int
    pixels: np.ndarray  # int64 [256], by label
    faults: list  # of voc.Finding, the first one of each pair that cannot be used
    notes: list  # of voc.Finding


def parse_args(argv=None):
    """The flags, from `argv` (list of str) or the command line."""
    parser = utils.ArgumentParser('Converts a PASCAL VOC folder into fcn_train.record and fcn_val.record.')
    parser.add_argument('--data_dir', default=os.path.join('VOCdevkit', 'VOC2012'),
                        help='folder with JPEGImages/ (ID.jpg, ID.jpeg or ID.png), SegmentationClass/ and '
                             'ImageSets/Segmentation/')
    parser.add_argument('--output_dir', default='data', help='folder for the two records; made if it is missing')
    for role in voc.ROLES:
        parser.add_argument(f'--{role}_split', default=role,
                            help=f'list of the {role} images: ImageSets/Segmentation/NAME.txt; may be one for both')
        parser.add_argument(f'--{role}_label_dir', default='SegmentationClass',
                            help=f'folder of the {role} masks in --data_dir; SegmentationClassAug for those of SBD')
    parser.add_argument('--val_fraction', type=scale_factor, metavar='F',
                        help='for data without a val list: use about F of the train list, or of all masks if there are '
                             'no lists, for validation; chosen by a hash of the id, so the same images each time')
    parser.add_argument('--sbd_dir', metavar='DIR',
                        help="folder benchmark_RELEASE/dataset of SBD, with img/, cls/, train.txt and val.txt: its "
                             "images join the train record, except those of the val list; VOC's own mask is taken "
                             'where there is one')
    parser.add_argument('--classes', metavar='FILE',
                        help="text file with the classes' names in the order of the masks' values, one a line; NAME "
                             "#rrggbb names a class's colour as well; labelmap.txt of CVAT, class_names.txt of "
                             "labelme and _classes.csv of Roboflow are read too; without it the classes are VOC's")
    parser.add_argument('--scale', type=scale_factor, default=1.0, metavar='F',
                        help='scale pictures to F of their sides, up to 1: images by averaging areas, as JPEGs of '
                             'quality 95 without chroma subsampling (4:4:4), masks by nearest neighbour')
    parser.add_argument('--num_workers', type=utils.positive_int, default=os.cpu_count() or 1,
                        help='threads that read and check pictures; the records do not depend on it')
    parser.add_argument('--skip_bad', action='store_true',
                        help='leave out pairs that cannot be used, instead of stopping without records')
    parser.add_argument('--check', action='store_true',
                        help='read everything, print what is wrong, and write nothing; exit code 1 if something is')
    parser.add_argument('--check_json', metavar='FILE', help='with --check: write what was found to this file as well')
    args = parser.parse_args(argv)
    if args.val_fraction == 1:
        parser.error('--val_fraction 1 leaves nothing to train on; give a number below it')
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


def convert_pair(split, image_id, class_set, scale):
    """Reads one image and its mask, and scales them.
    Returns the serialised example, b'' if they cannot be used; pixels, int64 [256] by label; faults; notes."""
    pair = voc.read_pair(split, image_id, class_set, scale)
    if pair.faults:
        return b'', 0, pair.faults[:1], []
    labels = pair.mask.labels if scale == 1 else pictures.scale_label(pair.mask.labels, scale)
    image, image_format = pictures.encode_image(pair.image, scale)
    example = records.make_example(image_id.encode(), image, pictures.encode_label(labels), *labels.shape,
                                   image_format)
    return example, pictures.count_pixels(labels), [], pair.notes


def order_ids(split, ids):
    """The order of a record: that of the list, but always the same random one if a reader cannot shuffle it in memory.
    Otherwise the images of VOC would come before those of SBD in each epoch."""
    paths = [split.images[image_id][0] for image_id in ids if image_id in split.images]
    size = sum(os.path.getsize(path) for path in paths if os.path.isfile(path))
    shuffled = split.role == 'train' and len(ids) > batches.shuffle_buffer(len(ids), size)
    return random.Random(2).sample(ids, len(ids)) if shuffled else ids


def convert_split(split, ids, record_path, class_set, scale, num_workers):
    """Writes the usable pairs of a split to a record, in the order of `ids`; returns Summary."""
    images, counted, all_faults, all_notes = 0, np.zeros(256, np.int64), [], []
    results = voc.map_in_order(lambda image_id: convert_pair(split, image_id, class_set, scale), ids, num_workers)
    with records.open_writer(record_path) as writer:
        bar = tqdm(results, desc=f'fcn_{split.role}.record', total=len(ids), unit='image')
        for example, pixels, faults, notes in bar:
            if example:
                writer.write(example)
                images += 1
            counted += pixels
            all_faults += faults
            all_notes += notes
    return Summary(images, counted, all_faults, all_notes)


def check_summaries(splits, class_set, summaries, skip_bad):
    """Prints what cannot be used, or is odd, to stderr; UserError unless records can be made of the rest."""
    faults = [fault for summary in summaries for fault in summary.faults]
    notes = [note for summary in summaries for note in summary.notes]
    for line in (*voc.list_findings(faults, '', 10), *voc.list_findings(notes, 'note', 1)):
        print(line, file=sys.stderr)
    total = sum(summary.images for summary in summaries) + len(faults)
    if faults and not skip_bad:
        raise utils.UserError(f'{len(faults)} of {total} images cannot be used: mend them or pass --skip_bad')
    for split, summary, needed in zip(splits, summaries, (2, 1)):
        if not summary.images:
            raise utils.UserError(f'{split.list_path}: not one of its images can be used: mend them as listed above')
        if lack := classes.describe_lack(class_set, summary.pixels, needed):
            raise utils.UserError(f'{split.list_path}: {lack}')
    if faults:
        print(f'{len(faults)} of {total} images left out', file=sys.stderr)


def main(argv=None):
    """Converts both splits, or checks them. The records take their names only when both are complete."""
    args = parse_args(argv)
    warnings.filterwarnings('ignore', module='PIL')  # of very large pictures and odd EXIF, which are no reason to stop
    class_set = classes.read_classes(args.classes) if args.classes else classes.VOC
    val_label_dir = args.train_label_dir if args.val_fraction else args.val_label_dir
    splits = voc.find_splits(args.data_dir, (args.train_split, args.val_split), (args.train_label_dir, val_label_dir),
                             args.sbd_dir)
    if args.val_fraction:
        splits = voc.share_list(*splits, args.val_fraction)
    for path in (os.path.join(args.data_dir, *name.split('/')) for name in CLASS_FILES):
        if not args.classes and os.path.isfile(path):
            print(f'note: the classes are assumed to be those of VOC; if they are not, give --classes {path}',
                  file=sys.stderr)
    lists = voc.read_lists(splits)
    if args.check:
        check.report(check.check(splits, lists, class_set, args.scale, args.num_workers), args.check_json)
        return
    ids_by_split, _, faults = lists
    for fault in faults:
        raise utils.UserError(fault.message)
    names = [f'fcn_{role}.record' for role in voc.ROLES]
    os.makedirs(args.output_dir, exist_ok=True)
    with utils.StopSignals(), contextlib.ExitStack() as files:
        paths = [files.enter_context(utils.whole_file(os.path.join(args.output_dir, name)))
                 for name in (*names, *map(classes.side_file, names))]
        summaries = [convert_split(split, order_ids(split, ids), path, class_set, args.scale, args.num_workers)
                     for split, ids, path in zip(splits, ids_by_split, paths)]
        check_summaries(splits, class_set, summaries, args.skip_bad)
        for summary, path in zip(summaries, paths[2:]):
            classes.save_side_file(path, class_set, summary.images, summary.pixels)
    print(check.format_table(names, [summary.images for summary in summaries],
                             [check.name_pixels(class_set, summary.pixels) for summary in summaries]))


if __name__ == '__main__':
    utils.run_program(main)
