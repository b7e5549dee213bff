"""Searches for the parameters of the dense CRF that suit a network and its images best.

    python tools/search_crf.py --checkpoint_path runs/fit --dataset data/held_out/fcn_val.record
    python evaluate.py --checkpoint_path runs/fit --crf --crf_params runs/fit/crf_search/crf.json

Search on images that were held out from training: on those it was trained on, the network is too sure of itself. Each
trial scores all of them. The first two trials are this suite's parameters and DeepLab's. Of the others, the first half
is drawn at random, and the second half changes one to three parameters of the best so far.

Source: Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs".
"""
import csv
import math
import os
import sys
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

if __name__ == '__main__':
    import utils
    utils.import_tensorflow(frozen_weights=True)

import numpy as np
import tensorflow.compat.v1 as tf
import tqdm

import train
import utils
from datasets import batches, records
from inference import averaging, crf, devices, predictor, weights
from inference.scores import confusion_matrix, mean_iou
from utils import UserError

DEEPLABS = crf.Parameters(iterations=10, gaussian_xy=3, gaussian_compat=3, bilateral_xy=140, bilateral_rgb=5,
                          bilateral_compat=5)
# What is searched, (lowest, highest); widths in pixels and colour levels, see crf.Parameters.
RANGES = crf.Parameters(iterations=(1, 10), gaussian_xy=(0.5, 30), gaussian_compat=(0.3, 20), bilateral_xy=(5, 200),
                        bilateral_rgb=(2, 50), bilateral_compat=(0.3, 30))
STEP = 0.4  # standard deviation of a change near the best, of a parameter's natural logarithm


class Trial(NamedTuple):
    """A setting, where it came from, and the mean IoU over all images."""
    kind: str
    parameters: crf.Parameters
    mean_iou: float


def parse_args(argv=None):
    parser = utils.ArgumentParser("Searches for the dense CRF's parameters that suit a network and its images best.")
    weights.add_flags(parser)
    parser.add_argument('--dataset', required=True, metavar='RECORD',
                        help='record to search on: images that were held out from training and are not scored')
    averaging.add_flags(parser)
    parser.add_argument('--num_images', type=utils.positive_int, default=100,
                        help='most images to search on, spread over the record; their predictions are kept in memory')
    parser.add_argument('--trials', type=utils.positive_int, default=60, help='settings to try')
    parser.add_argument('--seed', type=utils.non_negative_int, default=0, help='of the settings that are drawn')
    parser.add_argument('--num_workers', type=utils.positive_int, default=os.cpu_count() or 1,
                        help='processes for the CRF')
    parser.add_argument('--output_dir', help='folder for crf.json and trials.csv; by default the folder "crf_search" '
                                             "in that of the checkpoint's run")
    args = parser.parse_args(argv)
    averaging.check_flags(parser, args.tile, args.overlap)
    return args


@devices.explain_failures()
def main(argv=None):
    """Returns the exit code: 130 if Ctrl-C ended the search early."""
    args = parse_args(argv)
    crf.check_installed('the search')
    utils.quiet_tensorflow()
    print(devices.describe())
    checkpoint = weights.find_checkpoint(args.checkpoint_path)
    output_dir = weights.choose_output_dir(checkpoint, args.output_dir, 'crf_search')
    utils.make_folder(output_dir)
    names = read_names(args.dataset)
    check_images(args.dataset, names, weights.read_settings(os.path.dirname(checkpoint)))
    number_of_classes = len(weights.find_common_classes(checkpoint, args.dataset, args.classes).names)
    passes = averaging.Passes(args.scales, args.flip, args.tile, args.overlap)
    maps = predict_maps(checkpoint, args.dataset, number_of_classes, spread(args.num_images, len(names)), passes)
    without_crf = mean_iou(sum(confusion_matrix(example['label'], probabilities.argmax(axis=-1), number_of_classes)
                               for example, probabilities in maps))
    if math.isnan(without_crf):
        raise UserError(f'{args.dataset}: the images have no annotated pixel; give another record as --dataset')
    trials = search(maps, number_of_classes, args.trials, args.seed, args.num_workers)
    if len(trials) < args.trials:
        print(f'stopped after {len(trials)} of {args.trials} trials; results so far:')
    write_results(output_dir, trials, without_crf, {
        'dataset': args.dataset, 'images': len(maps), 'checkpoint': checkpoint,
        'step': weights.checkpoint_step(checkpoint), 'sha256': weights.hash_checkpoint(checkpoint),
        **passes._asdict(), 'seed': args.seed})
    print(f'{output_dir}/crf.json for --crf_params; trials.csv beside it')
    return None if len(trials) == args.trials else 130


def read_names(record):
    """The image/filename of each example of a record, list of str; UserError if it is damaged."""
    records.count_examples(record)
    examples = map(tf.train.Example.FromString, tf.io.tf_record_iterator(record))
    return [example.features.feature['image/filename'].bytes_list.value[0].decode(errors='replace')
            for example in examples]


def check_images(record, names, settings):
    """Warns of images, by name, that the run of `settings` was trained on; UserError if it is scored on one."""
    for key, purpose in (('dataset_val', 'is scored on'), ('dataset_train', 'was trained on')):
        other = settings.get(key)
        if not other or not os.path.exists(other):
            print(f'warning: the record that the run {purpose} is missing: make sure yourself that it shares no images '
                  f'with {record}', file=sys.stderr)
        elif shared := len(set(names) & set(read_names(other))):
            problem = (f'{record}: {shared} of its {len(names)} images are in {other}, which the run {purpose}; '
                       'give a record of held-out training images as --dataset')
            if key == 'dataset_val':
                raise UserError(problem)
            print(f'warning: {problem}', file=sys.stderr)


def spread(number, total):
    """`number` ints spread evenly over range(total); all of them if `number` is larger."""
    number = min(number, total)
    return [index * total // number for index in range(number)]


def predict_maps(checkpoint, record, number_of_classes, numbers, passes):
    """Predicts the images of a record that have these numbers; returns a list of (example, see batches.whole_images;
    probabilities, float16 [H, W, C])."""
    maps = []
    with tf.Graph().as_default(), tf.Session(config=devices.session_config()) as session:
        network = predictor.load_predictor(session, checkpoint, train.fcn, train.read_network(checkpoint))
        reader = batches.build_reader(record, numbers[-1] + 1, number_of_classes)
        session.run(reader.initializer)
        for number in tqdm.trange(numbers[-1] + 1, desc='predicting', unit='image'):
            example = batches.run_input(session, reader.next_example, record)
            if number in numbers:
                probabilities = predictor.predict_example(session, network, example, record, passes)
                maps.append((example, probabilities.astype(np.float16)))
    return maps


def search(maps, number_of_classes, number, seed, num_workers):
    """Scores settings on the result of predict_maps in `num_workers` processes: a list of `number` Trials, which depend
    on the seed only; fewer, but at least one, after Ctrl-C."""
    random, trials = np.random.RandomState(seed), []
    try:
        with crf.start_processes(num_workers) as pool, tqdm.tqdm(
                total=number * len(maps), desc='searching', unit='image', smoothing=0.05) as progress:
            while len(trials) < number:
                kind, parameters = propose(trials, number, random)
                confusion = 0
                pairs = ((example, probabilities.astype(np.float32)) for example, probabilities in maps)
                for example, refined in crf.refine_in(pool, pairs, 2 * num_workers, parameters):
                    confusion += confusion_matrix(example['label'], refined['crf'], number_of_classes)
                    progress.update()
                trials.append(Trial(kind, parameters, mean_iou(confusion)))
                progress.set_postfix_str(f'trial {len(trials)}, best {find_best(trials).mean_iou:.4f}')
    except KeyboardInterrupt:
        if not trials:
            raise
    return trials


def propose(trials, number, random):
    """What the trial after `trials`, of `number` in all, tries: its kind for the table, str, and crf.Parameters."""
    if len(trials) < 2:
        return [('defaults', crf.DEFAULTS), ("DeepLab's", DEEPLABS)][len(trials)]
    if len(trials) < 2 + (number - 2) // 2:
        drawn = [math.exp(random.uniform(math.log(low), math.log(high))) for low, high in RANGES]
        return 'random', clip(crf.Parameters(*drawn))
    best, tried = find_best(trials).parameters, {trial.parameters for trial in trials}
    while True:
        changed = random.choice(crf.Parameters._fields, random.randint(1, 3), replace=False)
        near = clip(best._replace(**{name: getattr(best, name) * math.exp(random.normal(0, STEP))
                                     for name in changed}))
        if near not in tried:  # a small change of the iterations is rounded off
            return 'near the best', near


def clip(parameters):
    """Parameters clipped to RANGES and rounded to three digits, so that their file is easy to read."""
    clipped = [float(f'{min(max(value, low), high):.3g}') for value, (low, high) in zip(parameters, RANGES)]
    return crf.Parameters(round(clipped[0]), *clipped[1:])


def find_best(trials):
    return max(trials, key=lambda trial: trial.mean_iou)


def write_results(folder, trials, without_crf, facts):
    """Writes FOLDER/trials.csv, and crf.json with `facts`, a dict of how it was found; prints the mean IoUs."""
    best = find_best(trials)
    scores = {'without_crf': without_crf, **{trial.kind: trial.mean_iou for trial in trials[:2]}, 'best': best.mean_iou}
    print('mean IoU: ' + ', '.join(f'{name} {iou:.4f}' for name, iou in scores.items()).replace('_crf', ' CRF'))
    if best.mean_iou <= without_crf:
        print(f'none of {len(trials)} settings is better than no CRF on these images: do not use --crf for this '
              'network, or search on with more --trials')
    with utils.whole_file(os.path.join(folder, 'trials.csv')) as partial, open(partial, 'w', newline='') as file:
        table = csv.writer(file)
        table.writerow(['trial', 'kind', *crf.Parameters._fields, 'mean_iou'])
        table.writerows([number, trial.kind, *trial.parameters, f'{trial.mean_iou:.6f}']
                        for number, trial in enumerate(trials, start=1))
    utils.save_json(os.path.join(folder, 'crf.json'), {
        **best.parameters._asdict(), crf.HOW_FOUND: {**facts, 'trials': len(trials), 'mean_iou': scores}})


if __name__ == '__main__':
    utils.run_program(main)
