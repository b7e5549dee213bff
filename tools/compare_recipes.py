"""Trains recipes and models on one data set, each on the same number of images, and writes a table with curves.

    python tools/compare_recipes.py --study camvid --data_dir camvid --classes camvid/classes.txt

Nothing is chosen on the images that are reported. The last part of each film, or of the list, is held out from the
training list; the best run and the CRF's parameters are chosen on that part before the val list is scored. This script
only calls the suite's other programs, and lists their commands below the table. Finished parts are not repeated, so the
same command resumes an interrupted comparison.
"""
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

if __name__ == '__main__':
    import utils
    utils.import_tensorflow()

from matplotlib.figure import Figure

import train
import utils
from datasets import voc
from inference import crf
from report import page
from utils import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HELD_OUT = 8  # one image in so many of each film
AVERAGED = ['--scales', '0.75,1,1.25', '--flip']


class Study(NamedTuple):
    """What is compared on a data set."""
    title: str
    scale: float  # of images and masks
    images_seen: int  # training images of each run
    long_images: int  # training images of one more run, with the best flags; 0: no such run
    trials: int  # of the search for the CRF's parameters
    runs: dict  # of name to flags of train.py, str


class Row(NamedTuple):
    """A line of the table; None is an empty cell. `held_out`, `val`, `val_crf` are mean IoUs."""
    name: str
    flags: str
    steps: int
    images_seen: int
    held_out: float
    val: float
    val_crf: float


SHORT = '--recipe adamw --learning_rate 2e-4 --schedule poly --batch_size 2 --augment flip'  # for hundreds of steps
COMMON_FLAGS = ['--fc_channels', '512', '--val_steps', '0', '--summary_steps', '0', '--save_steps', '500']

STUDIES = {
    'camvid': Study(
        'CamVid at half size', 0.5, 480, 960, 60, {
            'default': '--crop_size 160',
            'paper': '--recipe paper',
            'adamw': '--recipe adamw --crop_size 160',
            'poly': '--recipe poly --crop_size 160',
            'short': f'{SHORT} --crop_size 160',
            'short_32s': f'{SHORT} --crop_size 160 --model fcn_32s',
            'short_16s': f'{SHORT} --crop_size 160 --model fcn_16s',
            'short_fixed': f'{SHORT} --crop_size 160 --upsampling fixed',
            'short_plain': f'{SHORT} --crop_size 160 --augment',
            'short_augmented': f'{SHORT} --crop_size 160 --augment flip scale rotate colour'}),
    'voc': Study(
        'VOC2012 (the part of it that was at hand) at half size', 0.5, 480, 0, 24, {
            'default': '--crop_size 112',
            'short': f'{SHORT} --crop_size 112'}),
}


def parse_args(argv=None):
    parser = utils.ArgumentParser('Compares recipes and models on one data set, and writes a table with curves.')
    parser.add_argument('--study', choices=STUDIES, default='camvid', help='what is compared; see STUDIES in the file')
    parser.add_argument('--data_dir', required=True, help="the data set, a folder in VOC's layout")
    parser.add_argument('--classes', help="names of its classes, one a line; VOC's by default")
    parser.add_argument('--checkpoint_path', help='what each run starts from, see train.py')
    parser.add_argument('--output_dir', default='out/compare', help='folder for records and runs')
    parser.add_argument('--results_dir', default='results/compare', help='folder for STUDY.md and STUDY.png')
    parser.add_argument('--num_gpus', type=utils.positive_int, default=1,
                        help='GPUs that share the work of each step; fewer where they do not divide the batch')
    return parser.parse_args(argv)


def main(argv=None):
    """Searches the CRF's parameters for the first run, and for the best run or its longer training."""
    args = parse_args(argv)
    crf.check_installed('the comparison')
    utils.quiet_tensorflow()
    study = STUDIES[args.study]
    lab = Lab(study, os.path.join(args.output_dir, args.study), args.checkpoint_path, args.num_gpus)
    lab.convert(args.data_dir, args.classes)
    rows = [lab.train_and_score(name, flags, study.images_seen) for name, flags in study.runs.items()]
    best = max(rows, key=lambda row: row.held_out)
    refined = [lab.refine(rows[0], 'searched CRF')]
    if study.long_images:
        rows.append(lab.train_and_score(f'{best.name}_longer', best.flags, study.long_images))
        refined += [lab.refine(rows[-1], 'searched CRF'),
                    lab.refine(rows[-1], 'searched CRF, three scales and mirrored', *AVERAGED)]
    elif best is not rows[0]:
        refined.append(lab.refine(best, 'searched CRF'))
    os.makedirs(args.results_dir, exist_ok=True)
    write_page(lab, rows + refined, best.name, os.path.join(args.results_dir, args.study))
    print(f'table and curves in {args.results_dir}')


def split_films(ids):
    """Splits a training list, list of str, into ids to train on, and the last eighth of each film, rounded, held out.
    Ids that differ only in the number at their end are a film. Films of which an eighth is less than half an image
    count as one film together, the shortest first."""
    films = {}
    for image_id in ids:
        films.setdefault(re.sub(r'\d+$', '', image_id), []).append(image_id)
    parts = [film for film in films.values() if 2 * len(film) >= HELD_OUT]
    short = sorted((film for film in films.values() if 2 * len(film) < HELD_OUT), key=len)
    parts.append([image_id for film in short for image_id in film])
    held_out = [image_id for part in parts for image_id in part[len(part) - (len(part) + HELD_OUT // 2) // HELD_OUT:]]
    fit = set(ids).difference(held_out)
    return [image_id for image_id in ids if image_id in fit], held_out


def write_lists(data_dir, folder):
    """Makes a VOC folder of data_dir's images and masks with the lists `val`, and `fit` and `held_out` by films."""
    lists = os.path.join(folder, 'ImageSets', 'Segmentation')
    os.makedirs(lists, exist_ok=True)
    for name in ('JPEGImages', 'SegmentationClass'):
        if not os.path.lexists(os.path.join(folder, name)):
            os.symlink(os.path.abspath(os.path.join(data_dir, name)), os.path.join(folder, name))
    train_ids, val_ids = (voc.read_ids(os.path.join(data_dir, 'ImageSets', 'Segmentation', f'{split}.txt'),
                                       "--data_dir must be a folder in VOC's layout") for split in ('train', 'val'))
    for name, ids in zip(('fit', 'held_out', 'val'), (*split_films(train_ids), val_ids)):
        utils.save_text(os.path.join(lists, f'{name}.txt'), '\n'.join(ids) + '\n')


class Lab:
    """Calls the suite's programs for a Study, records their commands, and skips what is done already. Records and runs
    are in `folder`; all runs start from the checkpoint `start`, or at random."""

    def __init__(self, study, folder, start=None, num_gpus=1):
        self.study, self.folder, self.start, self.num_gpus, self.commands = study, folder, start, num_gpus, []
        self.records = {'fit': self.path('fit', 'fcn_train.record'), 'held_out': self.path('fit', 'fcn_val.record'),
                        'val': self.path('val', 'fcn_val.record')}

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def call(self, result, program, *flags):
        """Runs a program of the suite, unless its result, a file, exists. Raises UserError if it fails."""
        flags = [str(flag) for flag in flags]
        self.commands.append(shlex.join(['python', program, *flags]))
        if not os.path.exists(result):
            print(f'\n$ {self.commands[-1]}', flush=True)
            if subprocess.run([sys.executable, os.path.join(ROOT, program), *flags]).returncode:
                raise UserError(f'{program} has failed, see above; correct that, and the same command resumes there')

    def convert(self, data_dir, classes):
        """Writes the records of all three lists. classes: str or None, the file of their names."""
        write_lists(data_dir, self.path('voc'))
        own = ['--classes', classes] if classes else []
        for val_split in ('held_out', 'val'):
            record = self.records[val_split]
            self.call(record, 'convert_fcn_dataset.py', '--data_dir', self.path('voc'), '--train_split', 'fit',
                      '--val_split', val_split, '--output_dir', os.path.dirname(record), *own,
                      '--scale', self.study.scale)

    def train_and_score(self, name, flags, images_seen):
        """Trains on `fit` for a number of images, and scores; returns the Row. flags: str, of train.py."""
        words = [*COMMON_FLAGS, *shlex.split(flags)]
        batch_size = train.parse_args(words).recipe.batch_size
        steps = images_seen // batch_size
        self.call(self.path(name, 'train', f'model.ckpt-{steps}.index'), 'train.py',
                  '--checkpoint_path', self.start or 'none', '--output_dir', self.path(name),
                  '--dataset_train', self.records['fit'], '--dataset_val', self.records['val'], '--max_steps', steps,
                  '--num_gpus', math.gcd(batch_size, self.num_gpus), *words)
        held_out, val = self.evaluate(name, 'held_out'), self.evaluate(name, 'val', '--crf')
        return Row(name, flags, steps, images_seen, held_out['mean_iou'], val['mean_iou'], val['crf']['mean_iou'])

    def evaluate(self, name, split, *flags, label=''):
        folder = self.path(name, split + label)
        self.call(os.path.join(folder, 'metrics.json'), 'evaluate.py', '--checkpoint_path', self.path(name, 'train'),
                  '--dataset', self.records[split], '--output_dir', folder, *flags)
        with open(os.path.join(folder, 'metrics.json'), encoding='utf-8') as file:
            return json.load(file)

    def refine(self, row, way, *flags):
        """The Row of a trained run with CRF parameters searched on `held_out`; `way`, str, names it in the table."""
        found = self.path(row.name, 'crf_search', 'crf.json')
        self.call(found, os.path.join('tools', 'search_crf.py'), '--checkpoint_path', self.path(row.name, 'train'),
                  '--dataset', self.records['held_out'], '--output_dir', os.path.dirname(found),
                  '--trials', self.study.trials)
        flags = ['--crf_params', found, *flags]
        val = self.evaluate(row.name, 'val', '--crf', *flags, label='_' + way.replace(' ', '_').replace(',', ''))
        return row._replace(name=f'{row.name}: {way}', flags=shlex.join(flags), held_out=None, val=val['mean_iou'],
                            val_crf=val['crf']['mean_iou'])


def write_page(lab, rows, best, stem):
    """Writes STEM.md, a table of Rows, and STEM.png, the losses over the images seen. best: str, the chosen run."""
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.subplots()
    for row in (row for row in rows if row.held_out is not None):
        log = page.read_table(lab.path(row.name, 'train', 'log.csv'))
        axes.plot([each['step'] * row.images_seen / row.steps for each in log],
                  [each['loss_per_pixel'] for each in log], label=row.name, linewidth=1)
    axes.set(xlabel='training images seen', ylabel='loss per pixel', ylim=(0, None))
    axes.legend(fontsize=7)
    with utils.whole_file(f'{stem}.png') as partial:
        figure.savefig(partial, dpi=110)
    lines = [f'# {lab.study.title}', '',
             f'Made by `tools/compare_recipes.py` on {platform.platform()}, {os.cpu_count()} cores. Mean IoU in '
             f'percent. Chosen on the held-out training images: **{best}**.', '',
             '| run | flags | steps | images seen | held out | val | val with CRF |', '|' + '---|' * 7]
    for name, flags, steps, images_seen, *scores in rows:
        cells = [name, f'`{flags}`' if flags else '', str(steps), f'{images_seen:,}',
                 *('' if iou is None else f'{100 * iou:.1f}' for iou in scores)]
        lines.append(f'| {" | ".join(cells)} |')
    lines += ['', f'![loss of the runs]({os.path.basename(stem)}.png)', '', 'Commands:', '',
              *(f'    {command}' for command in lab.commands)]
    utils.save_text(f'{stem}.md', '\n'.join(lines) + '\n')


if __name__ == '__main__':
    utils.run_program(main)
