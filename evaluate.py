"""Scores a checkpoint on every image of a record, at true size, without and with the dense CRF.

    python evaluate.py --checkpoint_path results/best --dataset data/fcn_val.record --crf --scales 0.75,1,1.25 --flip

Writes metrics.json, the confusion matrix as a picture, and pictures of the worst and the best images.
"""
import collections
import glob
import hashlib
import importlib.metadata
import math
import os
import re
import sys
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import tensorflow.compat.v1 as tf
import tqdm
from matplotlib.figure import Figure

import train
import utils
from datasets import batches, classes
from inference import averaging, crf
from inference.scores import BOUNDARY_WIDTH, Score, accuracy_per_class, iou_per_class
from report import page
from training import checkpoints
from utils import UserError

PICTURED = 4  # so many of the worst and of the best images are shown
LEGIBLE = 60  # classes whose confusion matrix has a figure in every cell
PACKAGES = ('tensorflow', 'tf-slim', 'numpy', 'pillow', 'opencv-python-headless', 'pydensecrf2')

# ------------------------------------------------------------------------------------------- the loop

Evaluation = collections.namedtuple('Evaluation', 'class_set filenames scores worst best')
Evaluation.__doc__ = """What evaluate() found.

class_set: classes.ClassSet.
filenames: list of str, the record's images in its order.
scores: dict, 'plain' and, if asked for, 'crf' to Score.
worst, best: lists of Sample, those with the lowest and the highest mean IoU first; a short record's are in both.
"""
Sample = collections.namedtuple('Sample', 'filename image label predictions mean_ious')
Sample.__doc__ = """One image: uint8 [H, W, 3] RGB, uint8 [H, W] label; dicts of 'plain', 'crf' to map and mean IoU."""


def evaluate(checkpoint, record, with_crf, num_workers=1, classes_file=None, scales=(1.0,), flip=False,
             crf_parameters=crf.DEFAULTS):
    """Scores every image of a record; holds a bounded number of them at a time.

    Args:
        checkpoint: str, as train.find_checkpoint returns it.
        record: str, path of a TFRecord file.
        with_crf: bool, refine every prediction and score that too.
        num_workers: int, processes that refine beside the network.
        classes_file: str or None, see find_classes.
        scales, flip: see averaging.average_probabilities.
        crf_parameters: crf.Parameters.

    Returns:
        Evaluation.

    Raises:
        UserError: the checkpoint or the record is damaged, they are of other classes, or memory ran out.
    """
    num_examples = batches.count_examples(record, whole=True)
    class_set = find_classes(checkpoint, record, classes_file)
    names = ('plain', 'crf') if with_crf else ('plain',)
    found = Evaluation(class_set, [], {name: Score(len(class_set.names)) for name in names}, [], [])
    with tf.Graph().as_default(), tf.Session(config=train.session_config()) as session:
        predictor = train.load_predictor(session, checkpoint)
        reader = train.build_reader(record, num_examples, len(class_set.names))
        predictions = train.predict_record(session, predictor, reader, scales=scales, flip=flip)
        label_maps = (refine_beside(predictions, num_workers, crf_parameters) if with_crf
                      else take_most_probable(predictions))
        for example, maps in tqdm.tqdm(label_maps, 'evaluating', num_examples, unit='image'):
            filename = example['filename'].decode(errors='replace')
            ious = {name: found.scores[name].add(example['label'], maps[name]) for name in maps}
            found.filenames.append(filename)
            keep_extremes(found, Sample(filename, example['image'], example['label'], maps, ious))
    return found


def find_classes(checkpoint, record, classes_file=None):
    """The classes.ClassSet that a checkpoint and a record share.

    Args:
        checkpoint, record: str.
        classes_file: str or None, --classes, for a checkpoint or a record that tells none.

    Raises:
        UserError: they are of other classes.
    """
    class_set, side_file = train.find_classes(checkpoint, classes_file), classes.side_file(record)
    place = record if os.path.exists(side_file) else f'{record}, without {side_file},'
    classes.check_same(classes.of_record(record, classes_file), place, class_set, checkpoint)
    return class_set


def keep_extremes(found, sample):
    """Puts a sample among the worst or the best if it belongs there; one that is all void has no mean IoU."""
    if not math.isnan(sample.mean_ious['plain']):
        found.worst[:] = sorted([*found.worst, sample], key=lambda each: each.mean_ious['plain'])[:PICTURED]
        found.best[:] = sorted([*found.best, sample], key=lambda each: -each.mean_ious['plain'])[:PICTURED]


def take_most_probable(predictions):
    """Pairs (example, probabilities) to pairs (example, {'plain': uint8 [H, W]})."""
    for example, probabilities in predictions:
        yield example, {'plain': probabilities.argmax(axis=-1).astype(np.uint8)}


# ------------------------------------------------------------------------------------------- the CRF's processes


def refine_beside(predictions, num_workers, crf_parameters=crf.DEFAULTS):
    """Refines predictions in processes of their own, while the network goes on with the next images.

    Args:
        predictions: iterator of (example, probabilities), see train.predict_record.
        num_workers: int; twice as many images are under way at most.
        crf_parameters: crf.Parameters.

    Yields:
        (example, {'plain': uint8 [H, W], 'crf': uint8 [H, W]}), in the order of `predictions`.

    Raises:
        UserError: a process was killed.
    """
    under_way = collections.deque()

    def finish_first():
        example, maps, refined = under_way.popleft()
        return example, {**maps, 'crf': refined.result()}

    try:
        with crf.start_processes(num_workers) as pool:
            for example, probabilities in predictions:
                maps = {'plain': probabilities.argmax(axis=-1).astype(np.uint8)}
                refined = crf.submit(pool, example['image'], probabilities, crf_parameters)
                under_way.append((example, maps, refined))
                if len(under_way) >= 2 * num_workers:
                    yield finish_first()
            while under_way:
                yield finish_first()
    except BrokenProcessPool:
        raise UserError('a process of the CRF was killed, for lack of memory perhaps; '
                        'try a lower --num_workers') from None


# ------------------------------------------------------------------------------------------- metrics.json


def summarise(score, filenames, class_names):
    """A Score as what metrics.json holds of it; see README."""
    by_class = {'per_class_iou': iou_per_class(score.confusion),
                'per_class_accuracy': accuracy_per_class(score.confusion)}
    return {**{name: known(value) for name, value in score.figures().items()},
            **{name: {class_name: known(value) for class_name, value in zip(class_names, values)}
               for name, values in by_class.items()},
            'absent_classes': [class_names[i] for i in np.flatnonzero(np.isnan(by_class['per_class_iou']))],
            'confusion': score.confusion.tolist(),
            'images': len(filenames),
            'per_image': [{'filename': filename, 'mean_iou': known(iou)}
                          for filename, iou in zip(filenames, score.image_ious)]}


def known(value):
    """A float; None for nan, which JSON does not have."""
    return None if math.isnan(value) else float(value)


def make_scorecard(checkpoint, found, args):
    """What must stand beside figures for them to be compared with others, dict; None for what is not known.

    Args:
        checkpoint: str. found: Evaluation. args: of parse_args.
    """
    settings = train.read_settings(os.path.dirname(checkpoint))
    return {'dataset': args.dataset, 'images': len(found.filenames), 'classes': list(found.class_set.names),
            'checkpoint': checkpoint, 'step': checkpoints.checkpoint_step(checkpoint),
            'sha256': hash_checkpoint(checkpoint),
            'vgg_weights_from': settings.get('vgg_weights_from'), 'seed': settings.get('seed'),
            'settings': settings or None,
            'scales': list(args.scales), 'flip': args.flip,
            'crf_parameters': args.crf_params._asdict() if args.crf else None,
            'boundary_width_pixels': BOUNDARY_WIDTH,
            'packages': {'python': sys.version.split()[0], **{name: package_version(name) for name in PACKAGES}}}


def hash_checkpoint(checkpoint):
    """SHA-256 of a checkpoint's files, hexadecimal: of .index, then .data, as of `cat`; of a V1 checkpoint's one."""
    digest = hashlib.sha256()
    stem = glob.escape(checkpoint)
    for path in (glob.glob(stem + '.index') + sorted(glob.glob(stem + '.data-*'))) or [checkpoint]:
        with open(path, 'rb') as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def package_version(name):
    """A package's version, str; None if it is installed under another name (opencv-python, say)."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


# ------------------------------------------------------------------------------------------- pictures


def write_pictures(folder, found):
    """Draws the confusion matrices and the worst and best images; removes those of an earlier evaluation.

    Returns:
        dict: 'worst' and 'best' to lists of {'filename', 'mean_iou', 'crf_mean_iou', 'stem'}, see README.
    """
    written = set()
    for name, score in found.scores.items():
        picture = 'confusion_crf.png' if name == 'crf' else 'confusion.png'
        draw_confusion(os.path.join(folder, picture), score.confusion, found.class_set.names,
                       'with CRF' if name == 'crf' else 'without CRF')
        written.add(picture)
    shown = {'worst': [], 'best': []}
    for end, samples in (('worst', found.worst), ('best', found.best)):
        for rank, sample in enumerate(samples, start=1):
            stem = f'{end}_{rank}_{safe_name(sample.filename)}'
            written.update(write_sample(folder, stem, sample, found.class_set))
            shown[end].append({'filename': sample.filename, 'mean_iou': sample.mean_ious['plain'],
                               'crf_mean_iou': sample.mean_ious.get('crf'), 'stem': stem})
    for name in os.listdir(folder):
        if name not in written and OWN_PICTURES.fullmatch(name):
            os.remove(os.path.join(folder, name))
    return shown


OWN_PICTURES = re.compile(r'confusion(_crf)?\.png|(worst|best)_\d_.*'
                          r'_(img|annotation|prediction|prediction_crfed|error|error_crfed)\.jpg')


def safe_name(filename):
    """An image's name as part of a file name that every file system and address takes."""
    return re.sub(r'[^A-Za-z0-9_-]+', '_', filename)[:100]


def write_sample(folder, stem, sample, class_set):
    """Writes FOLDER/STEM_{img,annotation,prediction,error}.jpg, with a CRF also prediction_crfed and error_crfed.

    Returns:
        list of str, the files' names.
    """
    palette = class_set.palette
    pictures = {'img': sample.image, 'annotation': utils.colourise(sample.label, palette)}
    for name, prediction in sample.predictions.items():
        suffix = '_crfed' if name == 'crf' else ''
        pictures['prediction' + suffix] = utils.colourise(prediction, palette)
        pictures['error' + suffix] = utils.error_map(sample.image, sample.label, prediction, len(class_set.names))
    for name, pixels in pictures.items():
        utils.save_image(os.path.join(folder, f'{stem}_{name}.jpg'), pixels)
    return [f'{stem}_{name}.jpg' for name in pictures]


def confusion_size(number_of_classes):
    """Inches of the confusion matrix's picture, (width, height): room for the names, and some for each class."""
    side = 0.6 + number_of_classes * (0.4 if number_of_classes <= LEGIBLE else 0.12)
    return max(side, 5.6) + 1, max(side, 5.6)


def draw_confusion(path, confusion, class_names, title):
    """Draws a confusion matrix, int64 [C, C], each row in percent of its annotated pixels, as a PNG.

    Of more than LEGIBLE classes the cells are small and without figures, which metrics.json has all the same.
    """
    shares = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    ticks, small = range(len(class_names)), len(class_names) > LEGIBLE
    figure = Figure(figsize=confusion_size(len(class_names)), layout='constrained')
    axes = figure.subplots()
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=100)
    for row, column in [] if small else zip(*np.nonzero(shares >= 0.5)):
        axes.text(column, row, f'{shares[row, column]:.0f}', ha='center', va='center', fontsize=8,
                  color='white' if shares[row, column] > 50 else 'black')
    looks = {'fontsize': 5 if small else None, 'parse_math': False}  # a dollar in a name is a dollar
    axes.set_xticks(ticks, class_names, rotation=90, **looks)
    axes.set_yticks(ticks, [f'{name}{"" if row.any() else " (none)"}' for name, row in zip(class_names, confusion)],
                    **looks)
    axes.set(xlabel='predicted', ylabel='annotated', title=f'where the pixels of each class went, in percent; {title}')
    axes.set_xticks(np.arange(len(ticks) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(ticks) + 1) - 0.5, minor=True)
    axes.grid(which='minor', color='lightgrey', linewidth=0.5)
    axes.tick_params(which='minor', length=0)
    with utils.whole_file(path) as partial:
        figure.savefig(partial, dpi=110)


# ------------------------------------------------------------------------------------------- the program


FIGURE_TITLES = {'mean_iou': 'mean IoU', 'pixel_accuracy': 'pixel accuracy', 'mean_accuracy': 'mean accuracy',
                 'frequency_weighted_iou': 'frequency-weighted IoU',
                 'boundary_iou': f'boundary IoU ({BOUNDARY_WIDTH} px)'}


def print_scores(scores, class_names):
    """Prints IoU and accuracy of each class, then the figures over all; two columns for each Score.

    Args:
        scores: dict of 'plain' and perhaps 'crf' to Score.
        class_names: tuple of str.
    """
    columns = [['', *class_names, *FIGURE_TITLES.values()]]
    for name, score in scores.items():
        figures = score.figures()
        columns.append(['IoU with CRF' if name == 'crf' else 'IoU',
                        *map(format_score, iou_per_class(score.confusion)),
                        *(format_score(figures[figure]) for figure in FIGURE_TITLES)])
        columns.append(['acc. with CRF' if name == 'crf' else 'accuracy',
                        *map(format_score, accuracy_per_class(score.confusion)), *[''] * len(FIGURE_TITLES)])
    width = max(map(len, columns[0])) + 2
    for name, *cells in zip(*columns):
        print((f'{name:{width}}' + ''.join(f'{cell:>14}' for cell in cells)).rstrip())


def format_score(value):
    return 'absent' if math.isnan(value) else f'{value:.4f}'


def find_run_folder(checkpoint):
    """OUT for OUT/train/model.ckpt-1 and OUT/best/model.ckpt-1; None for a checkpoint that lies elsewhere."""
    folder = os.path.dirname(os.path.abspath(checkpoint))
    return os.path.relpath(os.path.dirname(folder)) if os.path.basename(folder) in ('train', 'best') else None


def find_output_dir(checkpoint, output_dir, name, content):
    """--output_dir, or the folder `name` in the run of a checkpoint; UserError if there is neither. `content`: str."""
    run_folder = find_run_folder(checkpoint)
    if not (output_dir or run_folder):
        raise UserError(f'{checkpoint} lies in no run folder: name a folder for the {content} by --output_dir')
    return output_dir or os.path.join(run_folder, name)


def parse_args(argv=None):
    """The program's flags; see --help."""
    parser = utils.ArgumentParser('Scores a checkpoint on every image of a record.')
    parser.add_argument('--checkpoint_path', default='results/train', help='checkpoint, or the folder of a run')
    parser.add_argument('--dataset', default='data/fcn_val.record', help='record to score on')
    parser.add_argument('--classes', metavar='FILE', help="file of the classes' names, one a line, for a checkpoint "
                                                          'away from its run; else its run tells them')
    parser.add_argument('--crf', action='store_true', help='score the predictions refined by the dense CRF as well')
    crf.add_flag(parser)
    averaging.add_flags(parser)
    parser.add_argument('--output_dir', help='folder for metrics.json and pictures; without it, the folder '
                                             '"evaluation" beside the one that holds the checkpoint')
    parser.add_argument('--num_workers', type=utils.positive_int, default=max(1, (os.cpu_count() or 1) - 1),
                        help='processes for the CRF, which run beside the network')
    args = parser.parse_args(argv)
    crf.check_flag(parser, args)
    return args


def main(argv=None):
    args = parse_args(argv)
    train.quiet_tensorflow()
    checkpoint = train.find_checkpoint(args.checkpoint_path)
    output_dir = find_output_dir(checkpoint, args.output_dir, 'evaluation', 'figures')
    os.makedirs(output_dir, exist_ok=True)
    found = evaluate(checkpoint, args.dataset, args.crf, args.num_workers, args.classes, args.scales, args.flip,
                     args.crf_params)
    scorecard = make_scorecard(checkpoint, found, args)
    print_scores(found.scores, found.class_set.names)
    print('{dataset}, {images} images; {checkpoint}, step {step}, sha256 {sha256}; VGG16 from {vgg_weights_from}; '
          'seed {seed}'.format(**scorecard))
    write_metrics(output_dir, found, scorecard)
    print(f'figures and pictures in {output_dir}')
    if not args.output_dir:
        print(f'all to look at in {page.write_page(find_run_folder(checkpoint))}')


def write_metrics(folder, found, scorecard):
    """Writes the pictures and, last, FOLDER/metrics.json."""
    summaries = {name: summarise(score, found.filenames, found.class_set.names) for name, score in found.scores.items()}
    shown = write_pictures(folder, found)
    utils.save_json(os.path.join(folder, 'metrics.json'),
                    {**summaries['plain'], 'crf': summaries.get('crf'), 'scorecard': scorecard, **shown})


if __name__ == '__main__':
    utils.run_program(main)
