"""Trains recipes and models on one data set, the same number of images each, and writes a table with curves.

    python tools/compare_recipes.py --study camvid --data_dir camvid --classes camvid/classes.txt

Nothing is chosen on the images that are reported: the last part of each film, or of the list, in the training list is
held out. The best run and the CRF's parameters are chosen there, before the val list is scored. What is done already is
not done again: the same command goes on where it was stopped. All it does is to call the suite's own programs; their
commands are in the table's file.
"""
import collections
import itertools
import json
import os
import shlex
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from matplotlib.figure import Figure

import convert_fcn_dataset
import train
import utils
from benchmarks import measure, tables
from report import page
from utils import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HELD_OUT = 6  # one image in so many of each film
# How a run is scored once more, with flags beside those of the searched CRF.
AS_IT_IS = {'searched CRF': []}
AVERAGED = {'searched CRF, three scales and mirrored': ['--scales', '0.75,1,1.25', '--flip']}

Study = collections.namedtuple('Study', 'title scale images_seen long_images trials train_flags runs')
Study.__doc__ = """What is compared on a data set.

title: str. scale: float, of images and masks.
images_seen, long_images: ints, training images of each run, and of the one that goes on for longer; 0: none does.
trials: int, of the search for the CRF's parameters.
train_flags: list of str, of all trainings. runs: dict of name to flags of train.py, str.
"""

SHORT = '--recipe adamw --learning_rate 2e-4 --schedule poly --batch_size 2 --augment flip'  # for hundreds of steps
ON_HALF_SIZE = ['--fc_channels', '512', '--val_steps', '0', '--summary_steps', '0', '--save_steps', '500']

STUDIES = {
    'camvid': Study(
        'CamVid at half size', 0.5, 480, 960, 60, ON_HALF_SIZE, {
            'owner': '--crop_size 160',
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
        'VOC2012 (the part of it that was at hand) at half size', 0.5, 480, 0, 24, ON_HALF_SIZE, {
            'owner': '--crop_size 112',
            'short': f'{SHORT} --crop_size 112'}),
}

Row = collections.namedtuple('Row', 'name flags steps images_seen held_out val val_crf minutes')
Row.__doc__ = """A line of the table: flags, str; mean IoUs on the held-out images and on val, without and with CRF;
minutes that the steps took. None for what there is not."""

# ------------------------------------------------------------------------------------------- data


def write_lists(data_dir, folder):
    """Makes a VOC folder whose images and masks are those of data_dir, and whose training list is split in two.

    Lists: `fit`, to train on; `held_out`, the last sixth of every film (ids that begin with the same six letters, as
    CamVid's do) or of the list; `val`, to report.
    """
    lists = os.path.join(folder, 'ImageSets', 'Segmentation')
    os.makedirs(lists, exist_ok=True)
    for name in ('JPEGImages', 'SegmentationClass'):
        if not os.path.lexists(os.path.join(folder, name)):
            os.symlink(os.path.abspath(os.path.join(data_dir, name)), os.path.join(folder, name))
    ids = {split: convert_fcn_dataset.read_ids(os.path.join(data_dir, 'ImageSets', 'Segmentation', f'{split}.txt'),
                                               "--data_dir must be a folder in VOC's layout")
           for split in ('train', 'val')}
    films = [list(film) for _, film in itertools.groupby(ids['train'], key=lambda image_id: image_id[:6])]
    if len(films) > len(ids['train']) / HELD_OUT:  # no films
        films = [ids['train']]
    split = {'fit': [each for film in films for each in film[:-(len(film) // HELD_OUT)]],
             'held_out': [each for film in films for each in film[-(len(film) // HELD_OUT):]], 'val': ids['val']}
    for name, names in split.items():
        utils.save_text(os.path.join(lists, f'{name}.txt'), '\n'.join(names) + '\n')


# ------------------------------------------------------------------------------------------- programs


class Lab:
    """Calls the suite's programs on a study's data, notes their commands, and leaves out what is done.

    Args:
        study: Study. args: of parse_args.
    """

    def __init__(self, study, args):
        self.study, self.args, self.commands = study, args, []

    def path(self, *names):
        return os.path.join(self.args.output_dir, self.args.study, *names)

    def record(self, name):
        """The record of a list: fit, held_out or val."""
        return self.path('val' if name == 'val' else 'fit', 'fcn_train.record' if name == 'fit' else 'fcn_val.record')

    def call(self, made, program, *flags):
        """Runs a program of the suite, unless the file `made` is there; UserError if it fails."""
        flags = [str(flag) for flag in flags]
        self.commands.append(shlex.join(['python', program, *flags]))
        if not os.path.exists(made):
            print(f'\n$ {self.commands[-1]}', flush=True)
            if subprocess.run([sys.executable, os.path.join(ROOT, program), *flags]).returncode:
                raise UserError(f'{program} has failed, see above; mend that, and the same command goes on there')

    def convert(self):
        """Writes the records of all three lists."""
        write_lists(self.args.data_dir, self.path('voc'))
        own = ['--classes', self.args.classes] if self.args.classes else []
        for val_split in ('held_out', 'val'):
            record = self.record(val_split)
            self.call(record, 'convert_fcn_dataset.py', '--data_dir', self.path('voc'), '--train_split', 'fit',
                      '--val_split', val_split, '--output_dir', os.path.dirname(record), *own,
                      '--scale', self.study.scale)

    def train(self, name, flags, images_seen):
        """Trains on `fit` until so many images were seen; returns the number of steps."""
        flags = [*self.study.train_flags, *shlex.split(flags)]
        steps = images_seen // train.parse_args(flags).batch_size
        start = ['--checkpoint_path', self.args.checkpoint_path] if self.args.checkpoint_path else []
        self.call(self.path(name, 'train', f'model.ckpt-{steps}.index'), 'train.py', *start,
                  '--output_dir', self.path(name), '--dataset_train', self.record('fit'),
                  '--dataset_val', self.record('val'), '--max_steps', steps, *flags)
        return steps

    def evaluate(self, name, split, *flags, label=''):
        """Scores a run on a list; returns metrics.json, dict."""
        folder = self.path(name, split + label)
        self.call(os.path.join(folder, 'metrics.json'), 'evaluate.py', '--checkpoint_path', self.path(name, 'train'),
                  '--dataset', self.record(split), '--output_dir', folder, *flags)
        with open(os.path.join(folder, 'metrics.json'), encoding='utf-8') as file:
            return json.load(file)

    def search_crf(self, name):
        """Searches the CRF's parameters on the held-out images; returns the path of their file."""
        found = self.path(name, 'crf_search', 'crf.json')
        self.call(found, os.path.join('tools', 'search_crf.py'), '--checkpoint_path', self.path(name, 'train'),
                  '--dataset', self.record('held_out'), '--output_dir', os.path.dirname(found),
                  '--trials', self.study.trials)
        return found


# ------------------------------------------------------------------------------------------- the comparison


def compare(lab):
    """Trains and scores all runs of a study; the CRF is searched for the first and the best, or its longer training.

    Returns:
        rows: list of Row. best: str, the name of the run that was chosen.
    """
    study = lab.study
    steps = {name: lab.train(name, flags, study.images_seen) for name, flags in study.runs.items()}
    rows = [score(lab, name, flags, steps[name], study.images_seen) for name, flags in study.runs.items()]
    best = max(rows, key=lambda row: row.held_out)
    refined = [*refine(lab, rows[0], AS_IT_IS)]
    if study.long_images:
        name = f'{best.name}_longer'
        steps = lab.train(name, best.flags, study.long_images)
        rows.append(score(lab, name, best.flags, steps, study.long_images))
        refined += refine(lab, rows[-1], {**AS_IT_IS, **AVERAGED})
    elif best is not rows[0]:
        refined += refine(lab, best, AS_IT_IS)
    return [*rows, *refined], best.name


def score(lab, name, flags, steps, images_seen):
    """The Row of a trained run."""
    held_out, val = lab.evaluate(name, 'held_out'), lab.evaluate(name, 'val', '--crf')
    return Row(name, flags, steps, images_seen, held_out['mean_iou'], val['mean_iou'], val['crf']['mean_iou'],
               count_minutes(read_log(lab, name), images_seen // steps))


def refine(lab, row, ways):
    """Rows of a run once more, with the CRF searched on the held-out images; `ways`: dict of name to further flags."""
    parameters = lab.search_crf(row.name)
    for name, flags in ways.items():
        flags = ['--crf_params', parameters, *flags]
        label = '_' + name.replace(' ', '_').replace(',', '')
        val = lab.evaluate(row.name, 'val', '--crf', *flags, label=label)
        yield row._replace(name=f'{row.name}: {name}', flags=shlex.join(flags), held_out=None, val=val['mean_iou'],
                           val_crf=val['crf']['mean_iou'], minutes=None)


def read_log(lab, name):
    """Rows of a run's log.csv, dicts of float."""
    return page.read_table(lab.path(name, 'train', 'log.csv'))


def count_minutes(log, batch_size):
    """The time that a run's steps took, without validation and checkpoints."""
    ends = [row['step'] for row in log]
    return sum((end - start) * batch_size / row['images_per_second'] / 60
               for start, end, row in zip([0, *ends], ends, log))


# ------------------------------------------------------------------------------------------- the page


def draw(lab, rows, path):
    """Draws the loss per pixel of every run over the images seen, and the runs' mean IoUs, as one PNG."""
    trained = [row for row in rows if row.minutes is not None]
    figure = Figure(figsize=(11, 0.35 * len(rows) + 3), layout='constrained')
    curves, bars = figure.subplots(1, 2)
    for row in trained:
        log = read_log(lab, row.name)
        curves.plot([each['step'] * row.images_seen / row.steps for each in log],
                    [each['loss_per_pixel'] for each in log], label=row.name, linewidth=1)
    curves.set(xlabel='training images seen', ylabel='loss per pixel', ylim=(0, None))
    curves.legend(fontsize=7)
    curves.grid(alpha=0.3)
    places = range(len(rows), 0, -1)
    bars.barh(places, [100 * row.val_crf for row in rows], 0.8, color='#efc28a', label='with CRF')
    bars.barh(places, [100 * row.val for row in rows], 0.4, color='#2f6fa8', label='without CRF')
    bars.set_yticks(places, [row.name for row in rows], fontsize=7)
    bars.set(xlabel='mean IoU on val, percent')
    bars.legend(fontsize=7)
    bars.grid(alpha=0.3, axis='x')
    with utils.whole_file(path) as partial:
        figure.savefig(partial, dpi=110)


def write_page(lab, rows, best):
    """Writes STUDY.md and STUDY.png into --results_dir."""
    name = lab.args.study
    os.makedirs(lab.args.results_dir, exist_ok=True)
    draw(lab, rows, os.path.join(lab.args.results_dir, f'{name}.png'))
    lines = [f'# {lab.study.title}', '',
             f'Made by `tools/compare_recipes.py`. Machine: {tables.describe_cpu()}, {measure.count_cores()} cores, '
             f'{tables.describe_memory()} of memory, no GPU. Mean IoU in percent; minutes of the steps alone. Chosen '
             f'on the held-out training images: **{best}**.', '',
             '| run | flags | steps | images seen | held out | val | val with CRF | minutes |', '|' + '---|' * 8]
    lines += [format_row(row) for row in rows]
    lines += ['', f'![loss and mean IoU of the runs]({name}.png)', '', 'Commands:', '',
              *(f'    {command}' for command in lab.commands)]
    utils.save_text(os.path.join(lab.args.results_dir, f'{name}.md'), '\n'.join(lines) + '\n')


def format_row(row):
    def percent(value):
        return '' if value is None else f'{100 * value:.1f}'
    cells = [row.name, f'`{row.flags}`' if row.flags else '', row.steps, f'{row.images_seen:,}', percent(row.held_out),
             percent(row.val), percent(row.val_crf), '' if row.minutes is None else f'{row.minutes:.1f}']
    return '| ' + ' | '.join(map(str, cells)) + ' |'


def parse_args(argv=None):
    """The program's flags; see --help."""
    parser = utils.ArgumentParser('Compares recipes and models on one data set, and writes a table with curves.')
    parser.add_argument('--study', choices=STUDIES, default='camvid', help='what is compared; see STUDIES in the file')
    parser.add_argument('--data_dir', required=True, help="the data set, a folder in VOC's layout")
    parser.add_argument('--classes', help="names of its classes, one a line; without it, VOC's")
    parser.add_argument('--checkpoint_path', help='what each run starts from, see train.py')
    parser.add_argument('--output_dir', default='out/compare', help='folder for records and runs')
    parser.add_argument('--results_dir', default='results/compare', help='folder for STUDY.md and STUDY.png')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    train.quiet_tensorflow()
    lab = Lab(STUDIES[args.study], args)
    lab.convert()
    rows, best = compare(lab)
    write_page(lab, rows, best)
    print(f'table and curves in {args.results_dir}')


if __name__ == '__main__':
    utils.run_program(main)
