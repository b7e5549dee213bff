"""Trains recipes and models on one data set, each on the same number of images, and writes a table with curves.

    python tools/compare_recipes.py --study camvid --data_dir camvid --classes camvid/classes.txt

Nothing is chosen on the images that are reported. The last part of each film, or of the list, is held out from the
training list; the best run and the CRF's parameters are chosen on that part before the val list is scored. The best
flags then train on the complete list, for longer. This script only calls the suite's other programs, and lists their
commands below the table. Finished parts are not repeated, so the same command resumes an interrupted comparison.
"""
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

if __name__ == '__main__':
    import utils
    utils.import_tensorflow()

import matplotlib
from matplotlib.figure import Figure

import train
import utils
from datasets import classes, voc
from inference import crf, devices
from report import page
from utils import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HELD_OUT = 8  # one image in so many of each film
FREQUENT = 500_000  # training pixels at full size from which a class counts as frequent
AVERAGED = ['--scales', '0.75,1,1.25', '--flip']


class Study(NamedTuple):
    """What is compared on a data set."""
    title: str
    scale: float  # of images and masks
    train_split: str  # name of the training list
    label_dir: str  # folder of its masks
    images_seen: int  # training images of each run
    long_images: int  # training images of one more run, with the best flags on the complete list; 0: no such run
    trials: int  # of the search for the CRF's parameters
    runs: dict  # of name to flags of train.py, str; {runs} in them is the folder of the runs


class Row(NamedTuple):
    """A line of the table; None is an empty cell. Mean IoUs: on the held-out images; on val, over all classes and over
    the frequent ones; the same with the CRF."""
    name: str
    flags: str
    steps: int
    images_seen: int
    minutes: float  # of training steps
    held_out: float
    val: float
    val_frequent: float
    val_crf: float
    val_crf_frequent: float


COMMON_FLAGS = ['--fc_channels', '512', '--val_steps', '0', '--summary_steps', '0', '--save_steps', '500']


def short(crop_size=160, learning_rate='2e-4', batch_size=4, augment='flip', more=''):
    """Flags of train.py, str, for hundreds to some thousands of steps."""
    return (f'--recipe adamw --schedule poly --learning_rate {learning_rate} --batch_size {batch_size} '
            f'--crop_size {crop_size} --augment {augment} {more}').strip()


STUDIES = {
    'camvid': Study(
        'CamVid', 1.0, 'train', 'SegmentationClass', 6400, 16000, 2, {
            'short': short(320, batch_size=8, augment='flip scale'),
            'short_224': short(224, batch_size=8, augment='flip scale'),
            'short_low': short(320, '1e-4', 8, 'flip scale'),
            'short_all': short(320, batch_size=8, augment='flip scale rotate colour')}),
    'camvid_half': Study(
        'CamVid at half size', 0.5, 'train', 'SegmentationClass', 3200, 3200, 24, {
            'default': '--crop_size 160',
            'paper': '--recipe paper',
            'adamw': '--recipe adamw --crop_size 160',
            'short': short(),
            'short_32s': short(more='--model fcn_32s'),
            'short_16s': short(more='--model fcn_16s'),
            'short_fixed': short(more='--upsampling fixed'),
            'short_plain': short(augment=''),
            'short_scale': short(augment='flip scale'),
            'short_all': short(augment='flip scale rotate colour'),
            'short_weights': short(more='--class_weights median_frequency'),
            'short_ohem': short(more='--loss ohem'),
            'short_2': short(batch_size=2),
            'short_complete': short(240, batch_size=2),
            'short_complete_high': short(240, '4e-4', 2)}),
    'voc': Study(
        'VOC2012 (the part of it that was at hand)', 1.0, 'trainaug', 'SegmentationClassAug', 4800, 12000, 2, {
            'short': short(320, '1e-4', 8),
            'short_scale': short(320, '1e-4', 8, 'flip scale'),
            'short_high': short(320, '2e-4', 8, 'flip scale')}),
    'voc_half': Study(
        'VOC2012 (the part of it that was at hand) at half size', 0.5, 'trainaug', 'SegmentationClassAug', 4800, 0,
        24, {
            'default': '--crop_size 160',
            'short': short(160, '1e-4'),
            'short_scale': short(160, '1e-4', augment='flip scale'),
            'short_complete': short(250, '1e-4', 2),
            'stage_32s': short(160, '1e-4', more='--model fcn_32s'),
            'stage_16s': short(160, '1e-4', more='--model fcn_16s --checkpoint_path {runs}/stage_32s'),
            'stage_8s': short(160, '1e-4', more='--checkpoint_path {runs}/stage_16s')}),
}


def parse_args(argv=None):
    parser = utils.ArgumentParser('Compares recipes and models on one data set, and writes a table with curves.')
    parser.add_argument('--study', choices=STUDIES, default='camvid', help='what is compared; see STUDIES in the file')
    parser.add_argument('--data_dir', required=True, help="the data set, a folder in VOC's layout")
    parser.add_argument('--classes', help="names of its classes, one a line; VOC's by default")
    parser.add_argument('--checkpoint_path', help='what each run starts from, see train.py')
    parser.add_argument('--output_dir', default='out/compare', help='folder for records, runs, STUDY.md and STUDY.png')
    parser.add_argument('--jobs', type=utils.positive_int, default=1,
                        help='runs at the same time; a large GPU has room for several')
    parser.add_argument('--num_gpus', type=utils.positive_int, default=1,
                        help='GPUs that share the work of each step; fewer where they do not divide the batch')
    return parser.parse_args(argv)


def main(argv=None):
    """Scores the runs, then the best one with the CRF's parameters that suit it, and its longer training."""
    args = parse_args(argv)
    crf.check_installed('the comparison')
    utils.quiet_tensorflow()
    study = STUDIES[args.study]
    lab = Lab(study, os.path.join(args.output_dir, args.study), args.checkpoint_path, args.num_gpus)
    lab.convert(args.data_dir, args.classes)
    rows = []
    if args.jobs > 1:
        lab.work_ahead(args.jobs)
    for name, flags in study.runs.items():
        rows.append(lab.train_and_score(name, flags, study.images_seen))
        write_page(lab, rows, args.jobs)
    best = find_best(rows)
    parameters = ['--crf_params', lab.search(best.name)]
    rows.append(lab.score_again(best, 'searched CRF', *parameters))
    if study.long_images:
        on_all = lab.train_and_score(f'{best.name}_on_all', best.flags, study.long_images, 'train')
        rows += [on_all, lab.score_again(on_all, 'searched CRF', *parameters),
                 lab.score_again(on_all, 'searched CRF, three scales and mirrored', *parameters, *AVERAGED)]
    write_page(lab, rows, args.jobs)
    print(f'table and curves: {lab.folder}.md')


def split_films(ids):
    """Splits a training list, list of str, into ids to train on, and the last eighth of each film, rounded, held out.
    Ids that differ only in the number at their end are a film. Films of fewer than four images, the shortest first, are
    joined into one."""
    films = {}
    for image_id in ids:
        films.setdefault(re.sub(r'\d+$', '', image_id), []).append(image_id)
    parts = [film for film in films.values() if 2 * len(film) >= HELD_OUT]
    short = sorted((film for film in films.values() if 2 * len(film) < HELD_OUT), key=len)
    parts.append([image_id for film in short for image_id in film])
    held_out = [image_id for part in parts for image_id in part[len(part) - (len(part) + HELD_OUT // 2) // HELD_OUT:]]
    fit = set(ids).difference(held_out)
    return [image_id for image_id in ids if image_id in fit], held_out


def write_lists(data_dir, folder, train_split='train'):
    """Makes a VOC folder of data_dir's images and masks with four lists: `train`, `val`, and the two parts into which
    split_films divides `train`: `fit` and `held_out`."""
    lists = os.path.join(folder, 'ImageSets', 'Segmentation')
    os.makedirs(lists, exist_ok=True)
    for name in os.listdir(data_dir):
        if name != 'ImageSets' and not os.path.lexists(os.path.join(folder, name)):
            os.symlink(os.path.abspath(os.path.join(data_dir, name)), os.path.join(folder, name))
    train_ids, val_ids = (voc.read_ids(os.path.join(data_dir, 'ImageSets', 'Segmentation', f'{split}.txt'),
                                       "--data_dir must be a folder in VOC's layout") for split in (train_split, 'val'))
    for name, ids in zip(('train', 'fit', 'held_out', 'val'), (train_ids, *split_films(train_ids), val_ids)):
        utils.save_text(os.path.join(lists, f'{name}.txt'), '\n'.join(ids) + '\n')


class Lab:
    """Calls the suite's programs for a Study, records their commands, and skips what is done already. Records and runs
    are in `folder`; all runs start from the checkpoint `start`, or at random."""

    def __init__(self, study, folder, start=None, num_gpus=1):
        self.study, self.folder, self.start, self.num_gpus, self.commands = study, folder, start, num_gpus, []
        self.records = {'fit': self.path('fit', 'fcn_train.record'), 'held_out': self.path('fit', 'fcn_val.record'),
                        'train': self.path('train', 'fcn_train.record'), 'val': self.path('train', 'fcn_val.record')}

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def call(self, result, program, *flags):
        """Runs a program of the suite, unless its result, a file, exists. Raises UserError if it fails."""
        flags = [str(flag) for flag in flags]
        command = shlex.join(['python', program, *flags])
        self.commands.append(command)
        if not os.path.exists(result):
            print(f'\n$ {command}', flush=True)
            if subprocess.run([sys.executable, os.path.join(ROOT, program), *flags]).returncode:
                raise UserError(f'{result}: {program} has failed, see above; correct that, and the same command '
                                'resumes there')

    def convert(self, data_dir, classes_file):
        """Writes the records of all four lists. classes_file: str or None."""
        study = self.study
        write_lists(data_dir, self.path('voc'), study.train_split)
        own = ['--classes', classes_file] if classes_file else []
        for train_split, val_split, label_dir in (('fit', 'held_out', study.label_dir),
                                                  ('train', 'val', 'SegmentationClass')):
            record = self.records[train_split]
            self.call(record, 'convert_fcn_dataset.py', '--data_dir', self.path('voc'), '--train_split', train_split,
                      '--val_split', val_split, '--train_label_dir', study.label_dir, '--val_label_dir', label_dir,
                      '--output_dir', os.path.dirname(record), *own, '--scale', study.scale)

    def work_ahead(self, jobs):
        """Trains and scores the runs that do not start from another one, `jobs` at a time."""
        alone = [item for item in self.study.runs.items() if '{runs}' not in item[1]]
        before = list(self.commands)
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda item: self.train_and_score(*item, self.study.images_seen), alone))
        self.commands = before  # the others' order is by chance: main() calls them again, and finds all done

    def train_and_score(self, name, flags, images_seen, split='fit'):
        """Trains on a list for a number of images, and scores; returns the Row. flags: str, of train.py."""
        flags = flags.format(runs=self.folder)
        words = [*COMMON_FLAGS, *shlex.split(flags)]
        batch_size = train.parse_args(words).recipe.batch_size
        steps = images_seen // batch_size
        self.call(self.path(name, 'train', f'model.ckpt-{steps}.index'), 'train.py',
                  '--checkpoint_path', self.start or 'none', '--output_dir', self.path(name),
                  '--dataset_train', self.records[split], '--dataset_val', self.records['val'], '--max_steps', steps,
                  '--num_gpus', math.gcd(batch_size, self.num_gpus), *words)
        held_out = self.evaluate(name, 'held_out')['mean_iou'] if split == 'fit' else None
        return Row(name, flags, steps, images_seen, self.read_minutes(name, batch_size), held_out,
                   *self.read_scores(self.evaluate(name, 'val', '--crf')))

    def evaluate(self, name, split, *flags, label=''):
        folder = self.path(name, split + label)
        self.call(os.path.join(folder, 'metrics.json'), 'evaluate.py', '--checkpoint_path', self.path(name, 'train'),
                  '--dataset', self.records[split], '--output_dir', folder, *flags)
        with open(os.path.join(folder, 'metrics.json'), encoding='utf-8') as file:
            return json.load(file)

    def read_minutes(self, name, batch_size):
        """Minutes that a run's training steps took, from its log, float."""
        log, done, seconds = page.read_table(self.path(name, 'train', 'log.csv')), 0, 0.0
        for row in log:
            seconds += (row['step'] - done) * batch_size / row['images_per_second']
            done = row['step']
        return seconds / 60

    def read_scores(self, metrics):
        """The last four entries of a Row from the dict of a metrics.json."""
        side_file = classes.read_side_file(self.records['train'])
        frequent = [name for name, pixels in zip(side_file['classes'].names, side_file['pixels'])
                    if pixels >= FREQUENT * self.study.scale ** 2]
        for scores in (metrics, metrics['crf']):
            ious = [scores['per_class_iou'][name] or 0.0 for name in frequent]
            yield from (scores['mean_iou'], sum(ious) / max(len(ious), 1))

    def search(self, name):
        """Searches the CRF's parameters for a run on the held-out images; returns the path of crf.json."""
        found = self.path(name, 'crf_search', 'crf.json')
        self.call(found, os.path.join('tools', 'search_crf.py'), '--checkpoint_path', self.path(name, 'train'),
                  '--dataset', self.records['held_out'], '--output_dir', os.path.dirname(found),
                  '--trials', self.study.trials, '--num_images', 40)
        return found

    def score_again(self, row, way, *flags):
        """The Row of a trained run evaluated with other flags; `way`, str, names it in the table."""
        metrics = self.evaluate(row.name, 'val', '--crf', *flags, label='_' + way.replace(' ', '_').replace(',', ''))
        return Row(f'{row.name}: {way}', shlex.join(flags), row.steps, row.images_seen, None, None,
                   *self.read_scores(metrics))


def find_best(rows):
    """The Row with the highest mean IoU on the held-out images, the first of equals."""
    return max((row for row in rows if row.held_out is not None), key=lambda row: row.held_out)


def draw_losses(lab, rows, path):
    """Draws the losses of the Rows' runs over the images seen."""
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.subplots()
    axes.set_prop_cycle(color=matplotlib.colormaps['tab20'].colors)  # more than ten runs
    for row in (row for row in rows if row.minutes is not None):
        log = page.read_table(lab.path(row.name, 'train', 'log.csv'))
        axes.plot([each['step'] * row.images_seen / row.steps for each in log],
                  [each['loss_per_pixel'] for each in log], label=row.name, linewidth=1)
    axes.set(xlabel='training images seen', ylabel='loss per pixel', ylim=(0, None))
    axes.legend(fontsize=7)
    with utils.whole_file(path) as partial:
        figure.savefig(partial, dpi=110)


def format_row(row):
    shares = ['' if iou is None else f'{100 * iou:.1f}' for iou in row[5:]]
    cells = [row.name, f'`{row.flags}`', str(row.steps), f'{row.images_seen:,}',
             '' if row.minutes is None else f'{row.minutes:.1f}', *shares]
    return f'| {" | ".join(cells)} |'


def format_classes(lab, row):
    """The IoU of each class on val for a trained run, lines of a table."""
    metrics = lab.evaluate(row.name, 'val', '--crf')
    return ['', f'| {row.name} | IoU | IoU with CRF |', '|---|---|---|',
            *(f'| {name} | {100 * (iou or 0):.1f} | {100 * (metrics["crf"]["per_class_iou"][name] or 0):.1f} |'
              for name, iou in metrics['per_class_iou'].items())]


def write_page(lab, rows, jobs):
    """Writes STUDY.md, a table of Rows, and STUDY.png, the losses over the images seen."""
    draw_losses(lab, rows, f'{lab.folder}.png')
    best = find_best(rows)
    shown = next((row for row in rows if row.minutes is not None and row.held_out is None), best)
    machine = f'{platform.platform()}, {os.cpu_count()} cores; {devices.describe()}'
    lines = [f'# {lab.study.title}', '',
             f'Made by `tools/compare_recipes.py` on {machine}{f"; {jobs} runs at a time" * (jobs > 1)}. Mean IoU in '
             f'percent. "Frequent" is the mean over the classes with at least {FREQUENT:,} training pixels at full '
             f'size. Best on the held-out training images: **{best.name}**.', '',
             '| run | flags | steps | images seen | minutes | held out | val | val, frequent | val with CRF '
             '| val with CRF, frequent |', '|' + '---|' * 10, *map(format_row, rows),
             *format_classes(lab, shown), '', f'![loss of the runs]({os.path.basename(lab.folder)}.png)', '',
             'Commands:', '', *(f'    {command}' for command in dict.fromkeys(lab.commands))]
    utils.save_text(f'{lab.folder}.md', '\n'.join(lines) + '\n')


if __name__ == '__main__':
    utils.run_program(main)
