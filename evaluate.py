"""Scores a checkpoint on every image of a record, at true size, without and with the dense CRF.

    python evaluate.py --checkpoint_path results/best --dataset data/fcn_val.record --crf --scales 0.75,1,1.25 --flip

Writes metrics.json, the confusion matrices, and pictures of the images with the lowest and the highest scores.
"""
import math
import os
import sys
from importlib.metadata import distributions
from typing import NamedTuple

if __name__ == '__main__':
    import utils
    utils.import_tensorflow(frozen_weights=True)

import numpy as np
import tensorflow.compat.v1 as tf
import tqdm

import train
import utils
from datasets import batches, records
from datasets.classes import ClassSet
from inference import averaging, crf, weights
from inference.devices import describe, explain_failures, session_config
from inference.predictor import load_predictor, predict_record
from inference.scores import BOUNDARY_WIDTH, FIGURES, Score, accuracy_per_class, iou_per_class
from report import page
from report.evaluation import Sample, write_pictures

PICTURED = 4  # number of worst and of best images that are shown
PACKAGES = ('tensorflow', 'tf-slim', 'numpy', 'pillow', 'opencv-python-headless', 'pydensecrf2')


def parse_args(argv=None):
    parser = utils.ArgumentParser('Scores a checkpoint on every image of a record.')
    weights.add_flags(parser)
    parser.add_argument('--dataset', default='data/fcn_val.record', help='record to score on')
    averaging.add_flags(parser)
    crf.add_flags(parser)
    parser.add_argument('--num_workers', type=utils.positive_int, default=max(1, (os.cpu_count() or 1) - 1),
                        help='processes for the CRF, which run beside the network')
    parser.add_argument('--output_dir', help='folder for metrics.json and pictures; by default the folder "evaluation" '
                                             "in that of the checkpoint's run")
    args = parser.parse_args(argv)
    averaging.check_flags(parser, args.tile, args.overlap)
    crf.check_flags(parser, args.crf, args.crf_params)
    return args


@explain_failures()
def main(argv=None):
    args = parse_args(argv)
    utils.quiet_tensorflow()
    tf.config.experimental.enable_tensor_float_32_execution(False)  # figures of full float32
    print(describe())
    checkpoint = weights.find_checkpoint(args.checkpoint_path)
    output_dir = weights.choose_output_dir(checkpoint, args.output_dir, 'evaluation')
    utils.make_folder(output_dir)

    passes = averaging.Passes(args.scales, args.flip, args.tile, args.overlap)
    found = evaluate(checkpoint, args.dataset, args.crf_params if args.crf else None, args.num_workers, args.classes,
                     passes)

    scorecard = make_scorecard(checkpoint, found, passes, args)
    print_scores(found.scores, found.class_set.names)
    warn_of_crf(found.scores)
    print('{dataset}, {images} images; {checkpoint}, step {step}, sha256 {sha256}; VGG16 from {vgg_weights_from}; '
          'seed {seed}'.format(**scorecard))
    write_metrics(output_dir, found, scorecard)
    print(f'metrics and pictures in {output_dir}')
    if not args.output_dir:
        print(f'results page: {page.write_page(weights.find_run_folder(checkpoint))}')


class Evaluation(NamedTuple):
    """What evaluate() found."""
    class_set: ClassSet
    filenames: list  # of str, the record's images in its order
    scores: dict  # of 'plain', and 'crf' if there is a CRF, to Score
    extremes: dict  # of 'worst' and 'best' to lists of Sample, the lowest or highest mean IoU first


def evaluate(checkpoint, record, crf_parameters=None, num_workers=1, classes_file=None, passes=averaging.DEFAULTS):
    """Scores every image of a TFRecord file, of which few are in memory at a time; returns an Evaluation.
    With crf.Parameters, num_workers processes refine every prediction, and that is scored as well. Raises UserError if
    the checkpoint or the record is damaged, their classes differ, or memory ran out."""
    num_examples = records.count_examples(record)
    class_set = weights.find_common_classes(checkpoint, record, classes_file)
    print(weights.describe(checkpoint, class_set, classes_file), flush=True)
    number_of_classes = len(class_set.names)
    scores = {name: Score(number_of_classes) for name in (['plain', 'crf'] if crf_parameters else ['plain'])}
    found = Evaluation(class_set, [], scores, {'worst': [], 'best': []})
    with tf.Graph().as_default(), tf.Session(config=session_config()) as session:
        predictor = load_predictor(session, checkpoint, train.fcn, train.read_network(checkpoint))
        reader = batches.build_reader(record, num_examples, number_of_classes)
        predictions = predict_record(session, predictor, reader, passes=passes)
        label_maps = (crf.refine_all(predictions, num_workers, crf_parameters) if crf_parameters
                      else take_most_probable(predictions))
        for example, maps in tqdm.tqdm(label_maps, 'evaluating', num_examples, unit='image'):
            filename = example['filename'].decode(errors='replace')
            mean_ious = {name: scores[name].add(example['label'], maps[name]) for name in maps}
            found.filenames.append(filename)
            keep_extremes(found.extremes, Sample(filename, example['image'], example['label'], maps, mean_ious))
    return found


def take_most_probable(predictions):
    """Turns pairs (example, probabilities) into (example, {'plain': uint8 [H, W]})."""
    for example, probabilities in predictions:
        yield example, {'plain': probabilities.argmax(axis=-1).astype(np.uint8)}


def keep_extremes(extremes, sample):
    """Adds a sample to the worst and the best if it belongs there; one that is all void has no mean IoU."""
    if not math.isnan(sample.mean_ious['plain']):
        for end, sign in (('worst', 1), ('best', -1)):
            ranked = sorted([*extremes[end], sample], key=lambda each: sign * each.mean_ious['plain'])
            extremes[end] = ranked[:PICTURED]


def print_scores(scores, class_names):
    """Prints IoU and accuracy of each class, then the figures over all; two columns for each Score of the dict."""
    columns = [['', *class_names, *FIGURES.values()]]
    for name, score in scores.items():
        ious, accuracies, figures = iou_per_class(score.confusion), accuracy_per_class(score.confusion), score.figures()
        columns.append(['IoU with CRF' if name == 'crf' else 'IoU',
                        *map(format_score, [*ious, *(figures[figure] for figure in FIGURES)])])
        columns.append(['acc. with CRF' if name == 'crf' else 'accuracy',
                        *map(format_score, accuracies), *[''] * len(FIGURES)])
    width = max(map(len, columns[0])) + 2
    for name, *cells in zip(*columns):
        print((f'{name:{width}}' + ''.join(f'{cell:>14}' for cell in cells)).rstrip())


def warn_of_crf(scores):
    """Prints a line if the CRF lowers the mean IoU. scores: dict as of Evaluation."""
    if 'crf' in scores:
        plain, refined = (scores[name].figures()['mean_iou'] for name in ('plain', 'crf'))
        if refined < plain:
            print(f'the CRF lowers the mean IoU from {plain:.4f} to {refined:.4f}: search for parameters that suit '
                  'this network with tools/search_crf.py, and give them as --crf_params; or leave out --crf')


def format_score(value):
    return 'absent' if math.isnan(value) else f'{value:.4f}'


def make_scorecard(checkpoint, found, passes, args):
    """What figures need beside them to be compared with others, dict; None for what is not known."""
    settings = weights.read_settings(os.path.dirname(checkpoint))
    versions = {package.name.lower(): package.version for package in distributions()}
    return {'dataset': args.dataset, 'images': len(found.filenames), 'classes': list(found.class_set.names),
            'checkpoint': checkpoint, 'step': weights.checkpoint_step(checkpoint),
            'sha256': weights.hash_checkpoint(checkpoint),
            'vgg_weights_from': settings.get('vgg_weights_from'), 'seed': settings.get('seed'),
            'settings': settings or None,
            **passes._asdict(),
            'crf_parameters': args.crf_params._asdict() if args.crf else None,
            'boundary_width_pixels': BOUNDARY_WIDTH,
            'packages': {'python': sys.version.split()[0], **{name: versions.get(name) for name in PACKAGES}}}


def write_metrics(folder, found, scorecard):
    """Writes the pictures and, last, FOLDER/metrics.json."""
    shown = write_pictures(folder, found.class_set, found.scores, found.extremes)
    summaries = {name: summarise(score, found.filenames, found.class_set.names) for name, score in found.scores.items()}
    utils.save_json(os.path.join(folder, 'metrics.json'),
                    {**summaries['plain'], 'crf': summaries.get('crf'), 'scorecard': scorecard, **shown})


def summarise(score, filenames, class_names):
    """The content of metrics.json for one Score, dict."""
    ious, accuracies = iou_per_class(score.confusion), accuracy_per_class(score.confusion)
    return {**{name: none_for_nan(value) for name, value in score.figures().items()},
            'per_class_iou': dict(zip(class_names, map(none_for_nan, ious))),
            'per_class_accuracy': dict(zip(class_names, map(none_for_nan, accuracies))),
            'absent_classes': [name for name, iou in zip(class_names, ious) if math.isnan(iou)],
            'confusion': score.confusion.tolist(),
            'images': len(filenames),
            'per_image': [{'filename': filename, 'mean_iou': none_for_nan(iou)}
                          for filename, iou in zip(filenames, score.image_ious)]}


def none_for_nan(value):
    """A float, or None for nan, which JSON does not have."""
    return None if math.isnan(value) else float(value)


if __name__ == '__main__':
    utils.run_program(main)
