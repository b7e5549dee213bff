"""Searches the dense CRF's parameters that suit a network and its images best.

    python tools/search_crf.py --checkpoint_path results/best --dataset data/fcn_held_out.record
    python evaluate.py --checkpoint_path results/best --crf --crf_params results/crf_search/crf.json

Search on images that the network was neither trained on, where it is too sure of itself, nor is to be scored on: on a
part of the training images that was left out of the training, say. Each trial scores all of the images. The first two
trials are the suite's own parameters and DeepLab's; of the others, the first half is drawn at random, and the second
half changes one or two parameters of the best so far.

Source of the idea: Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs",
which searches on 100 held-out images.
"""
import collections
import csv
import glob
import hashlib
import math
import os
import sys
import time
from concurrent.futures.process import BrokenProcessPool

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import tensorflow.compat.v1 as tf
import tqdm
from matplotlib.figure import Figure

import train
import utils
from datasets import batches
from inference import averaging, crf, weights
from inference.scores import mean_iou
from tools import crf_maps
from training import checkpoints
from utils import UserError

DEEPLABS = crf.Parameters(iterations=10, gaussian_xy=3, gaussian_compat=3, bilateral_xy=140, bilateral_rgb=5,
                          bilateral_compat=5)
# What is searched, (lowest, highest); widths in pixels and colour levels, see crf.Parameters.
RANGES = crf.Parameters(iterations=(1, 10), gaussian_xy=(0.5, 30), gaussian_compat=(0.3, 20), bilateral_xy=(5, 200),
                        bilateral_rgb=(2, 50), bilateral_compat=(0.3, 30))
STEP = 0.4  # standard deviation of a change near the best, of a parameter's natural logarithm

Trial = collections.namedtuple('Trial', 'kind parameters mean_iou seconds')

# ------------------------------------------------------------------------------------------- which images


def read_names(record, whole=False):
    """The image/filename of each example of a record, list of str. For `whole` and errors: input_pipeline's."""
    batches.count_examples(record, whole)
    return [tf.train.Example.FromString(example).features.feature['image/filename'].bytes_list.value[0].decode()
            for example in tf.io.tf_record_iterator(record)]


def check_images(record, names, settings):
    """Refuses a record with images of the run's validation; warns of images that the network was trained on.

    Args:
        record: str, --dataset. names: list of str, its images.
        settings: dict, the run's settings.json.

    Raises:
        UserError: the images are, or are called as, those that the run is scored on.
    """
    cure = 'parameters chosen on them would spoil every score; name a record of held-out training images by --dataset'
    shared = find_shared(record, names, settings.get('dataset_val'), 'is scored on')
    if shared:
        raise UserError(f'{record}: {shared} of its {len(names)} images are in the record that the run is scored on, '
                        f'{settings["dataset_val"]}; {cure}')
    shared = find_shared(record, names, settings.get('dataset_train'), 'was trained on')
    if shared:
        print(f'warning: {shared} of the {len(names)} images of {record} are ones that the network was trained on '
              f'({settings["dataset_train"]}). It is surer of them than of new images, and the CRF will be tuned to '
              'that; better search on images that were held out', file=sys.stderr)


def find_shared(record, names, other, purpose):
    """How many of a record's images another record, of the run's settings, has too.

    Where the other one is not there, two records of one name pass for the same, and a line says what is not known.

    Args:
        record: str. names: list of str. other: str or None. purpose: str, for the line.

    Returns:
        int.
    """
    if other and os.path.exists(other):
        return len(set(names) & set(read_names(other)))
    if other and os.path.basename(other) == os.path.basename(record):
        return len(names)
    print(f'warning: the record that the run {purpose} {f"({other}) is not there" if other else "is not known"}: '
          f'see to it yourself that it shares no images with {record}', file=sys.stderr)
    return 0


def spread(number, total):
    """`number` ints spread evenly over range(total), all of them where it has no more (None: all)."""
    number = min(number or total, total)
    return [index * total // number for index in range(number)]


# ------------------------------------------------------------------------------------------- their maps


def find_folder(cache_dir, sha256, args):
    """The folder for the maps of a checkpoint on a record; whatever would change them makes it another.

    Args:
        cache_dir: str. sha256: str, of the checkpoint. args: of parse_args, for dataset, scales and flip.
    """
    with open(args.dataset, 'rb') as file:
        images = hashlib.file_digest(file, 'sha256').hexdigest()
    key = hashlib.sha256(f'{sha256} {images} {args.scales} {args.flip} {crf.THRESHOLD}'.encode()).hexdigest()[:16]
    return os.path.join(cache_dir, key)


def score_without_crf(paths, number_of_classes):
    """Reads all maps and scores their most probable classes.

    Args:
        paths: dict of int to str, by number in the record. number_of_classes: int, C.

    Returns:
        confusion: int64 [C, C], of the maps that are there.
        missing: set of ints, the numbers of those that are not, or are damaged.
    """
    confusion, missing = np.zeros((number_of_classes, number_of_classes), np.int64), set()
    for number, path in paths.items():
        counted = crf_maps.score_plain(path, number_of_classes)
        if counted is None:
            missing.add(number)
        else:
            confusion += counted
    return confusion, missing


def predict_maps(checkpoint, args, number_of_classes, paths):
    """Predicts images of a record and writes their maps; holds one at a time.

    Args:
        checkpoint: str. args: of parse_args, for dataset, scales and flip. number_of_classes: int.
        paths: dict of int to str, number in the record to the map's path.
    """
    with tf.Graph().as_default(), tf.Session(config=train.session_config()) as session:
        predictor = train.load_predictor(session, checkpoint)
        images = batches.whole_images(args.dataset, number_of_classes)
        next_example = tf.data.make_one_shot_iterator(images).get_next()
        with tqdm.tqdm(total=len(paths), desc='predicting', unit='image') as progress:
            for number in range(max(paths) + 1):
                example = train.run_input(session, next_example, args.dataset)
                if number in paths:
                    probabilities = train.predict_example(session, predictor, example, args.dataset, args.scales,
                                                          args.flip)
                    crf_maps.save_map(paths[number], example['image'], example['label'], probabilities)
                    progress.update()


def remove_partial(folder):
    """Removes what a search that was killed while it wrote a map has left behind."""
    for path in glob.glob(os.path.join(glob.escape(folder), 'partial-*')):
        os.remove(path)


# ------------------------------------------------------------------------------------------- the search


def propose(trials, number, random):
    """What the next trial tries.

    Args:
        trials: list of Trial, those done. number: int, of trials in all. random: np.random.RandomState.

    Returns:
        kind: str, for the table. parameters: crf.Parameters.
    """
    if len(trials) < 2:
        return [('defaults', crf.DEFAULTS), ("DeepLab's", DEEPLABS)][len(trials)]
    if len(trials) < 2 + (number - 2) // 2:
        drawn = [math.exp(random.uniform(math.log(low), math.log(high))) for low, high in RANGES]
        return 'random', in_range(crf.Parameters(*drawn))
    best, tried = find_best(trials).parameters, {trial.parameters for trial in trials}
    while True:
        changed = random.choice(crf.Parameters._fields, random.randint(1, 3), replace=False)
        near = in_range(best._replace(**{name: getattr(best, name) * math.exp(random.normal(0, STEP))
                                         for name in changed}))
        if near not in tried:  # a small change of the iterations is none
            return 'near the best', near


def in_range(parameters):
    """Parameters cut to RANGES and to three digits, whole iterations; a file of them shall be legible."""
    cut = [float(f'{min(max(value, low), high):.3g}') for value, (low, high) in zip(parameters, RANGES)]
    return crf.Parameters(round(cut[0]), *cut[1:])


def find_best(trials):
    """The Trial of the highest mean IoU; of equals, the first."""
    return max(trials, key=lambda trial: trial.mean_iou)


def search(paths, number_of_classes, number, seed, num_workers, trials):
    """Scores settings one after the other, the images of each beside one another. The result depends on the seed only.

    Args:
        paths: list of str, maps of crf_maps. number_of_classes: int.
        number: int, trials in all. seed: int. num_workers: int, processes.
        trials: list that the Trials are added to, so that an interrupted search has something to show.

    Raises:
        UserError: a process was killed.
    """
    random = np.random.RandomState(seed)
    with crf.start_processes(num_workers) as pool, tqdm.tqdm(
            total=number * len(paths), desc='searching', unit='image', smoothing=0.05) as progress:
        try:
            while len(trials) < number:
                kind, parameters = propose(trials, number, random)
                started = time.perf_counter()
                mean_iou = score(pool, paths, parameters, number_of_classes, progress)
                trials.append(Trial(kind, parameters, mean_iou, time.perf_counter() - started))
                progress.set_postfix_str(f'trial {len(trials)}, best {find_best(trials).mean_iou:.4f}')
        except BrokenProcessPool:
            raise UserError('a process of the CRF was killed, for lack of memory perhaps; '
                            'try a lower --num_workers') from None
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C shall not wait for the images of the trial


def score(pool, paths, parameters, number_of_classes, progress):
    """Mean IoU of all maps with some parameters, float."""
    confusion = np.zeros((number_of_classes, number_of_classes), np.int64)
    jobs = [pool.submit(crf_maps.score_refined, path, parameters, number_of_classes) for path in paths]
    for job in jobs:
        confusion += job.result()
        progress.update()
    return mean_iou(confusion)


# ------------------------------------------------------------------------------------------- what is written


def write_results(folder, trials, without_crf, facts):
    """Writes FOLDER/trials.csv, trials.png and, last, crf.json, which --crf_params takes.

    Args:
        folder: str. trials: list of Trial. without_crf: float, mean IoU. facts: dict, of how the search was made.
    """
    with utils.whole_file(os.path.join(folder, 'trials.csv')) as partial, open(partial, 'w', newline='') as file:
        table = csv.writer(file)
        table.writerow(['trial', 'kind', *crf.Parameters._fields, 'mean_iou', 'seconds'])
        table.writerows([number, trial.kind, *trial.parameters, f'{trial.mean_iou:.6f}', f'{trial.seconds:.2f}']
                        for number, trial in enumerate(trials, start=1))
    draw_trials(os.path.join(folder, 'trials.png'), trials, without_crf)
    scores = {'without_crf': without_crf, **{trial.kind: trial.mean_iou for trial in trials[:2]},
              'best': find_best(trials).mean_iou}
    utils.save_json(os.path.join(folder, 'crf.json'), {
        **find_best(trials).parameters._asdict(), crf.HOW_FOUND: {**facts, 'trials': len(trials), 'mean_iou': scores}})


def draw_trials(path, trials, without_crf):
    """Draws mean IoU against each parameter, a dot a trial, the best one ringed, as a PNG."""
    figure = Figure(figsize=(10, 6), layout='constrained')
    best, ious = find_best(trials), [trial.mean_iou for trial in trials]
    for name, (low, high), axes in zip(crf.Parameters._fields, RANGES, figure.subplots(2, 3, sharey=True).flat):
        axes.scatter([getattr(trial.parameters, name) for trial in trials], ious, s=14, c=range(len(trials)),
                     cmap='viridis')
        axes.scatter(getattr(best.parameters, name), best.mean_iou, s=90, facecolors='none', edgecolors='tab:red')
        axes.axhline(without_crf, color='grey', linestyle='--')
        if name != 'iterations':
            axes.set_xscale('log')
            ticks = [low, float(f'{math.sqrt(low * high):.2g}'), high]
            axes.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
            axes.minorticks_off()
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    figure.supylabel('mean IoU')
    figure.suptitle(f'{len(trials)} trials, the later the lighter; best ringed; dashed: without CRF')
    with utils.whole_file(path) as partial:
        figure.savefig(partial, dpi=100)


def print_results(trials, without_crf):
    """Prints the scores to compare, and says so if no setting is better than no CRF."""
    best = find_best(trials)
    print(f'{"":16}{"mean IoU":>9}  ' + '  '.join(crf.Parameters._fields))
    print(f'{"without CRF":16}{without_crf:9.4f}')
    for name, trial in [(trial.kind, trial) for trial in trials[:2]] + [('best', best)]:
        print(f'{name:16}{trial.mean_iou:9.4f}  ' + '  '.join(
            f'{value:{len(field)}g}' for field, value in trial.parameters._asdict().items()))
    if best.mean_iou <= without_crf:
        print(f'none of {len(trials)} settings is better than no CRF on these images: leave --crf away for this '
              'network, or search on with more --trials')


# ------------------------------------------------------------------------------------------- the program


def parse_args(argv=None):
    """The program's flags; see --help."""
    parser = utils.ArgumentParser("Searches the dense CRF's parameters that suit a network and its images best.")
    parser.add_argument('--checkpoint_path', default='results/train', help='checkpoint, or the folder of a run')
    parser.add_argument('--dataset', required=True, metavar='RECORD',
                        help='record to search on: images that were held out from training and are in no score')
    parser.add_argument('--classes', metavar='FILE', help='names of the classes, one a line, if neither the '
                                                          "checkpoint's run nor the record tells them")
    averaging.add_flags(parser)
    parser.add_argument('--num_images', type=utils.positive_int,
                        help='so many images, spread over the record; without it, all')
    parser.add_argument('--trials', type=utils.positive_int, default=60, help='settings to try')
    parser.add_argument('--seed', type=utils.non_negative_int, default=0, help='of the settings that are drawn')
    parser.add_argument('--num_workers', type=utils.positive_int, default=os.cpu_count() or 1,
                        help='processes for the CRF')
    parser.add_argument('--output_dir', help='folder for crf.json, trials.csv and trials.png; without it, the folder '
                                             '"crf_search" beside the one that holds the checkpoint')
    parser.add_argument('--cache_dir', help="folder for the network's maps, which a second search takes as they are; "
                                            'without it, the folder "maps" in that of --output_dir')
    return parser.parse_args(argv)


def prepare_maps(args, checkpoint, sha256, total, cache_dir):
    """Finds the maps to search on, and predicts those that are not there.

    Returns:
        paths: list of str. number_of_classes: int. without_crf: float, their mean IoU as they are.

    Raises:
        UserError: network and record are of other classes, or the images have no annotated pixel.
    """
    number_of_classes = len(weights.find_common_classes(checkpoint, args.dataset, args.classes).names)
    folder = find_folder(cache_dir, sha256, args)
    os.makedirs(folder, exist_ok=True)
    remove_partial(folder)
    paths = {number: crf_maps.map_path(folder, number) for number in spread(args.num_images, total)}
    confusion, missing = score_without_crf(paths, number_of_classes)
    if missing:
        predict_maps(checkpoint, args, number_of_classes, {number: paths[number] for number in missing})
        confusion += score_without_crf({number: paths[number] for number in missing}, number_of_classes)[0]
    if not confusion.any():
        raise UserError(f'{args.dataset}: the images have no annotated pixel; name another record by --dataset')
    return list(paths.values()), number_of_classes, mean_iou(confusion)


def main(argv=None):
    """Returns the exit code: 130 if Ctrl-C ended the search early."""
    args = parse_args(argv)
    train.quiet_tensorflow()
    checkpoint = train.find_checkpoint(args.checkpoint_path)
    output_dir = weights.choose_output_dir(checkpoint, args.output_dir, 'crf_search')
    names = read_names(args.dataset, whole=True)
    check_images(args.dataset, names, train.read_settings(os.path.dirname(checkpoint)))
    os.makedirs(output_dir, exist_ok=True)

    sha256 = weights.hash_checkpoint(checkpoint)
    paths, number_of_classes, without_crf = prepare_maps(args, checkpoint, sha256, len(names),
                                                         args.cache_dir or os.path.join(output_dir, 'maps'))
    trials, code = [], None
    try:
        search(paths, number_of_classes, args.trials, args.seed, args.num_workers, trials)
    except KeyboardInterrupt:
        if not trials:
            raise
        code = 130
        print(f'stopped after {len(trials)} of {args.trials} trials; what they found:')
    print_results(trials, without_crf)
    write_results(output_dir, trials, without_crf, {
        'dataset': args.dataset, 'images': len(paths), 'checkpoint': checkpoint,
        'step': checkpoints.checkpoint_step(checkpoint), 'sha256': sha256, 'scales': list(args.scales),
        'flip': args.flip, 'seed': args.seed})
    print(f'{output_dir}/crf.json for --crf_params; trials.csv and trials.png beside it')
    return code


if __name__ == '__main__':
    utils.run_program(main)
