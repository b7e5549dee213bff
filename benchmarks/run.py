"""Measures the suite, row by row, and writes results/benchmarks.md with its plots.

    python -m benchmarks --data_dir VOCdevkit/VOC2012
    python -m benchmarks --rows crf predict --rounds 3

Takes some 20 minutes on two cores. PyTorch is an opponent where it is installed (pip install torch==2.13.0).
"""
import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import tqdm

import convert_fcn_dataset
import utils
from benchmarks import measure, tables
from benchmarks.rows import ROWS, Plan
from utils import UserError

WRONG_FOLDER = 'name a folder in the layout of VOC by --data_dir'
DRAWN = {'train': 800, 'val': 200}  # pictures of the drawn data set

# ------------------------------------------------------------------------------------------- data


@dataclasses.dataclass(frozen=True)
class Data:
    """A folder in VOC's layout, and which of its lists and masks are used."""
    folder: str
    train_split: str = 'train'
    train_label_dir: str = 'SegmentationClass'
    origin: str = ''

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def splits(self):
        """(path of the list, folder of the masks) of train and val."""
        return [(self.path('ImageSets', 'Segmentation', f'{split}.txt'), self.path(label_dir))
                for split, label_dir in ((self.train_split, self.train_label_dir), ('val', 'SegmentationClass'))]

    def ids(self):
        """Two lists of str: ids of train and val."""
        return [convert_fcn_dataset.read_ids(list_path, WRONG_FOLDER) for list_path, _ in self.splits()]

    def num_images(self):
        return sum(map(len, self.ids()))

    def sources(self):
        """All files that conversion reads, list of str; the photos first."""
        photos = [self.path('JPEGImages', name + '.jpg') for ids in self.ids() for name in ids]
        masks = [os.path.join(label_dir, name + '.png')
                 for ids, (_, label_dir) in zip(self.ids(), self.splits()) for name in ids]
        return photos + masks

    def describe(self):
        num_train, num_val = map(len, self.ids())
        return (f'{self.origin or self.folder}: {num_train} training images (list {self.train_split}, masks '
                f'{self.train_label_dir}), {num_val} validation images')


def find_data(data_dir, output_dir, num_drawn):
    """The VOC folder, or, if none is given, a drawn data set (drawn now if it is not there)."""
    if data_dir is None:
        folder = os.path.join(output_dir, f'VOC_{num_drawn["train"]}_{num_drawn["val"]}')
        if not os.path.exists(os.path.join(folder, 'ImageSets', 'Segmentation', 'val.txt')):
            print(f'no VOC folder: drawing {sum(num_drawn.values())} pictures in {folder}', flush=True)
            run_script('tools/make_sample_dataset.py', '--output_dir', folder, '--num_train', num_drawn['train'],
                       '--num_val', num_drawn['val'])
        return Data(folder, origin='no VOC folder was there, so pictures drawn by tools/make_sample_dataset.py')
    if not os.path.isdir(data_dir):
        raise UserError(f'--data_dir {data_dir} is not a folder: name the one that holds JPEGImages, or none, to '
                        'measure on drawn pictures')
    data = Data(os.path.abspath(data_dir), 'trainaug', 'SegmentationClassAug', data_dir)
    if not all(map(os.path.exists, data.splits()[0])):
        data = Data(os.path.abspath(data_dir), origin=data_dir)
    data.ids()
    return data


def run_script(script, *arguments, quiet=False):
    """Runs one of the suite's programs; UserError if it fails."""
    command = [sys.executable, os.path.join(measure.ROOT, script), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL if quiet else None,
                          stderr=subprocess.DEVNULL if quiet else None)
    if done.returncode:
        raise UserError(f'{shlex.join(command)} failed with exit code {done.returncode}')


# ------------------------------------------------------------------------------------------- what rows need


class Bench:
    """What the rows share; things that take time to make are made when the first row asks, outside all measuring.

    Attributes:
        data: Data. plan: rows.Plan.
        work_dir: str, folder of what is removed at the end.
        appetite: float, images/s of the training step, once it is known.
    """

    def __init__(self, data, plan, output_dir, work_dir, checkpoint_path=None):
        self.data, self.plan, self.output_dir, self.work_dir = data, plan, output_dir, work_dir
        self.checkpoint_path = checkpoint_path
        self.appetite = None
        self.row = ''
        self.sources_of_maps = []

    def take_turns(self, contenders, rounds, warm_up=True):
        """measure.take_turns with the plan's number of rounds; else the row's, or fewer if its time is over."""
        deadline = math.inf if self.plan.rounds else time.perf_counter() + 60 * ROWS[self.row].minutes
        return measure.take_turns(contenders, self.plan.rounds or rounds, self.log_dir(), say, deadline, warm_up)

    def run_all(self, contender, count):
        """The first `count` Rounds of a Contender, list."""
        with contextlib.closing(measure.Worker(contender, os.path.join(self.log_dir(), 'grow.log'))) as worker:
            found = []
            for number in range(1, count + 1):
                found.append(worker.run_round())
                say(f'  {number}/{count}: {found[-1].items} in {found[-1].seconds:.2f} s')
            return found

    def log_dir(self):
        """Folder of what the processes of this row print."""
        folder = os.path.join(self.output_dir, 'logs', self.row)
        os.makedirs(folder, exist_ok=True)
        return folder

    @functools.cached_property
    def records(self):
        """Paths of the train and the val record."""
        say('  converting the data')
        folder = os.path.join(self.work_dir, 'records')
        run_script('convert_fcn_dataset.py', '--data_dir', self.data.folder, '--train_split', self.data.train_split,
                   '--train_label_dir', self.data.train_label_dir, '--output_dir', folder, quiet=True)
        return [os.path.join(folder, f'fcn_{role}.record') for role in ('train', 'val')]

    @functools.cached_property
    def checkpoint(self):
        """A checkpoint of full width, weights at random."""
        say('  writing a checkpoint of full width')
        path = os.path.join(self.work_dir, 'full', 'model.ckpt')
        measure.run_apart('training', 'write_checkpoint', os.path.join(self.log_dir(), 'checkpoint.log'), path=path,
                          fc_channels=self.plan.fc_channels)
        return path

    @functools.cached_property
    def maps(self):
        """Softmax maps of real images, dict of their kind to (folder, count), see refinement.write_maps.

        The network that is trained for it knows its few images by heart, so its maps are as decided as a well trained
        network's; those of its first third of steps are undecided, with many labels in play.
        """
        if self.checkpoint_path:
            return {'given': self.write_maps('given', self.checkpoint_path, self.records[1])}
        folder = self.train_model()
        record, checkpoint = (os.path.join(folder, *names) for names in (('few.record',), ('train', 'model.ckpt')))
        return {kind: self.write_maps(kind, f'{checkpoint}-{steps}', record)
                for kind, steps in (('decided', self.plan.model_steps), ('undecided', self.plan.model_steps // 3))}

    def write_maps(self, kind, checkpoint, record):
        """(folder, count) of the softmax maps of a record's images by a checkpoint."""
        say(f'  predicting images: {kind} maps')
        folder = os.path.join(self.work_dir, f'maps_{kind}')
        os.makedirs(folder)
        written = measure.run_apart('refinement', 'write_maps', os.path.join(self.log_dir(), f'maps_{kind}.log'),
                                    checkpoint=checkpoint, record=record, count=self.plan.maps, folder=folder)
        self.sources_of_maps.append(f'{kind} softmax maps of the CRF rows: {written.items} images, predicted by '
                                    f'{os.path.relpath(checkpoint)}; {written.extra}')
        return folder, written.items

    def train_model(self):
        """Has a narrow network learn some validation images by heart, from HED's trunk; returns the run's folder.

        It is kept for the next time, in OUT/model_*.
        """
        plan = self.plan
        with open(self.records[1], 'rb') as file:
            digest = hashlib.file_digest(file, 'sha256').hexdigest()[:8]
        folder = os.path.join(self.output_dir, f'model_{digest}_{plan.maps}_{plan.model_channels}_{plan.model_steps}')
        if os.path.exists(os.path.join(folder, 'curve.png')):  # what overfit.py writes last
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        trunk = os.path.join(self.work_dir, 'trunk.ckpt')
        say(f'  training the network of the CRF rows in {folder}')
        run_script('tools/convert_vgg_weights.py', '--source', 'hed', '--output', trunk, quiet=True)
        run_script('tools/overfit.py', '--dataset', self.records[1], '--checkpoint_path', trunk, '--output_dir', folder,
                   '--num_images', plan.maps, '--fc_channels', plan.model_channels, '--crop_size', plan.model_crop,
                   '--max_steps', plan.model_steps, '--eval_steps', plan.model_steps // 3)
        return folder


def say(text):
    """Prints beside the progress bar."""
    tqdm.tqdm.write(text)
    sys.stdout.flush()


# ------------------------------------------------------------------------------------------- all rows


def run_rows(bench, names):
    """Runs rows in the table's order; one that fails does not end the others.

    Returns:
        lines: list of tables.Line. drawn: list of tables.Table. problems: list of str, `row: reason`.
    """
    lines, drawn, problems = [], [], []
    chosen = {name: row for name, row in ROWS.items() if name in names}
    with tqdm.tqdm(total=sum(row.minutes for row in chosen.values()), desc='rows', bar_format=(
            '{desc}: {percentage:3.0f}% | {elapsed} gone, {remaining} left{postfix}')) as bar:
        for name, row in chosen.items():
            started = time.perf_counter()
            say(f'{name}:')
            bench.row = name
            try:
                found = row.function(bench)
                lines += found.lines
                drawn += found.tables
                for line in found.lines:
                    say(tables.format_line(line))
            except UserError as error:
                problems.append(f'{name}: {error}')
                say(f'  failed: {error}')
            say(f'  {time.perf_counter() - started:.0f} s')
            bar.update(row.minutes)
    return lines, drawn, problems


def measure_all(args, plan, num_drawn=DRAWN):
    """Measures the rows of args.rows and writes the page, to results/ if it is whole, else to args.output_dir.

    Returns:
        str, the page's path.

    Raises:
        UserError: a row failed, which is named; the page has the others.
    """
    os.makedirs(args.output_dir, exist_ok=True)
    data = find_data(args.data_dir, args.output_dir, num_drawn)
    command = shlex.join(['python', '-m', 'benchmarks', *args.typed])
    with tempfile.TemporaryDirectory(prefix='work-', dir=args.output_dir) as work_dir:
        bench = Bench(data, plan, args.output_dir, os.path.abspath(work_dir), args.checkpoint_path)
        surroundings = tables.describe_surroundings(command, [data.describe()])
        started = time.perf_counter()
        lines, drawn, problems = run_rows(bench, args.rows)
    minutes = (time.perf_counter() - started) / 60
    surroundings += [f'- {line}' for line in bench.sources_of_maps] + [f'- took {minutes:.1f} minutes']
    whole = set(args.rows) == set(ROWS) and not problems
    folder = os.path.join(measure.ROOT, 'results') if whole else args.output_dir
    page = tables.write_page(folder, surroundings, lines, drawn,
                             {name: ROWS[name].method for name in ROWS if name in args.rows})
    print(f'written: {page}')
    if problems:
        raise UserError(f'{len(problems)} of {len(args.rows)} rows failed: {"; ".join(problems)}')
    return page


def parse_args(argv=None):
    """The program's flags; see --help."""
    parser = utils.ArgumentParser('Measures the suite against other ways of doing the same work.')
    parser.prog = 'benchmarks'
    parser.add_argument('--data_dir', help='folder in the layout of VOC; without it VOCdevkit/VOC2012, and if that is '
                                           'not there, drawn pictures')
    parser.add_argument('--output_dir', default=os.path.join('out', 'bench'), help='folder for logs and what is kept')
    parser.add_argument('--rows', nargs='+', choices=list(ROWS), default=list(ROWS), metavar='ROW',
                        help=f'measure these alone, into --output_dir: {", ".join(ROWS)}')
    parser.add_argument('--rounds', type=utils.positive_int, help="of every row, instead of each row's own number")
    parser.add_argument('--checkpoint_path', help='checkpoint of train.py, or its folder, whose predictions the CRF '
                                                  'rows refine; without it, a network is trained first')
    args = parser.parse_args(argv)
    args.typed = sys.argv[1:] if argv is None else list(argv)
    if args.data_dir is None and os.path.isdir(os.path.join('VOCdevkit', 'VOC2012')):
        args.data_dir = os.path.join('VOCdevkit', 'VOC2012')
    return args


def main(argv=None):
    args = parse_args(argv)
    args.output_dir = os.path.abspath(args.output_dir)
    if args.checkpoint_path:
        args.checkpoint_path = os.path.abspath(args.checkpoint_path)
        if not any(map(os.path.exists, (args.checkpoint_path, args.checkpoint_path + '.index'))):
            raise UserError(f'--checkpoint_path {args.checkpoint_path}: no checkpoint there')
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is in work_dir goes
    os.environ['CUDA_VISIBLE_DEVICES'] = '-1'  # of all processes: what is compared runs on the cores
    measure_all(args, Plan(rounds=args.rounds))
