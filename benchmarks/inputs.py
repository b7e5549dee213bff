"""What the rows work on: a data set, its records, a checkpoint of full width, softmax maps for the CRF.

Each is made when the first row asks for it, while nothing is measured.
"""
import contextlib
import functools
import os
import shlex
import subprocess
import sys
from typing import NamedTuple

from benchmarks import measure
from utils import UserError


class Data(NamedTuple):
    """A folder in VOC's layout; the list and the masks of its training images; what it is called on the page."""
    folder: str
    train_split: str
    train_label_dir: str
    origin: str

    def splits(self):
        """(path of the list, folder of the masks, list of ids) of the training and the validation images."""
        found = []
        for split, label_dir in ((self.train_split, self.train_label_dir), ('val', 'SegmentationClass')):
            list_path = os.path.join(self.folder, 'ImageSets', 'Segmentation', f'{split}.txt')
            with open(list_path) as file:
                found.append((list_path, os.path.join(self.folder, label_dir), file.read().split()))
        return found

    def photos(self):
        """Paths of all photos, list of str."""
        return [os.path.join(self.folder, 'JPEGImages', f'{name}.jpg') for *_, ids in self.splits() for name in ids]


def find_data(data_dir, output_dir):
    """The Data of a folder, with SBD's masks if it has them; of pictures that are drawn now if the folder is None."""
    if data_dir is None:
        folder, origin = os.path.join(output_dir, 'VOC'), 'pictures drawn by tools/make_sample_dataset.py'
        run_script('tools/make_sample_dataset.py', output_dir=folder, num_train=800, num_val=200)
        return Data(folder, 'train', 'SegmentationClass', origin)
    lists = os.path.join(data_dir, 'ImageSets', 'Segmentation')
    if not os.path.isdir(lists):
        raise UserError(f'--data_dir {data_dir}: ImageSets/Segmentation is missing; name a folder in the layout of VOC')
    has_sbd = os.path.exists(os.path.join(lists, 'trainaug.txt'))
    masks = ('trainaug', 'SegmentationClassAug') if has_sbd else ('train', 'SegmentationClass')
    return Data(os.path.abspath(data_dir), *masks, data_dir)


def as_arguments(flags):
    """{'max_steps': 3} to ['--max_steps', '3']."""
    return [str(part) for name, value in flags.items() for part in (f'--{name}', value)]


def run_script(script, **flags):
    """Runs one of the suite's programs.

    Raises:
        UserError: it failed.
    """
    command = [script, *as_arguments(flags)]
    print(f'  python {shlex.join(command)}', flush=True)
    done = subprocess.run([sys.executable, *command], cwd=measure.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f'{script} failed: {done.stderr.strip()[-300:]}')


class Inputs:
    """What the rows share.

    Args:
        data: Data. plan: rows.Plan. log_dir: str. work_dir: str, folder that is removed at the end.
    """

    def __init__(self, data, plan, log_dir, work_dir):
        self.data, self.plan, self.log_dir, self.work_dir = data, plan, log_dir, work_dir
        self.notes = []  # lines for the page

    def path(self, *names):
        """A path in the work folder."""
        return os.path.join(self.work_dir, *names)

    def take_turns(self, contenders, rounds):
        """measure.take_turns with the plan's number of rounds, or else the row's."""
        return measure.take_turns(contenders, self.plan.rounds or rounds, self.log_dir)

    def run_once(self, function, **settings):
        """The Round of a contender that does a single one."""
        contender = measure.Contender(function, function, settings)
        with contextlib.closing(measure.Worker(contender, self.log_dir)) as worker:
            return worker.run_round()

    def convert_flags(self, folder):
        """Flags of convert_fcn_dataset.py, dict."""
        return {'data_dir': self.data.folder, 'train_split': self.data.train_split,
                'train_label_dir': self.data.train_label_dir, 'output_dir': self.path(folder)}

    @functools.cached_property
    def records(self):
        """Paths of the training record and the validation record."""
        run_script('convert_fcn_dataset.py', **self.convert_flags('records'))
        return [self.path('records', f'fcn_{role}.record') for role in ('train', 'val')]

    @functools.cached_property
    def checkpoint(self):
        """A checkpoint of full width, with random weights."""
        self.run_once('ours.write_checkpoint', path=self.path('full', 'model.ckpt'), fc_channels=self.plan.fc_channels)
        return self.path('full', 'model.ckpt')

    @functools.cached_property
    def maps(self):
        """Softmax maps of real images, dict of their kind to a folder; see refinement.write_maps."""
        found = {}
        for kind, (checkpoint, record) in self.train_few_images().items():
            found[kind] = self.path(f'maps_{kind}')
            os.makedirs(found[kind])
            done = self.run_once('refinement.write_maps', checkpoint=checkpoint, record=record, folder=found[kind])
            self.notes.append('- {} softmax maps of the CRF rows: {} images; highest probability of a pixel '
                              '{highest:.2f} on average, {labels:.1f} labels take part'.format(
                                  kind, done.items, **done.extra))
        return found

    def train_few_images(self):
        """Trains a narrow network on a few validation images: dict of kind to (checkpoint, record).

        A network that has learnt images by heart is as sure as a well trained one: its maps are 'decided'. After a
        third of its steps, most labels still have a chance: these maps are 'undecided'.
        """
        folder, plan, third = self.path('overfit'), self.plan, self.plan.map_steps // 3
        run_script('tools/convert_vgg_weights.py', source='hed', output=self.path('trunk'))
        run_script('tools/overfit.py', dataset=self.records[1], checkpoint_path=self.path('trunk'), output_dir=folder,
                   num_images=plan.maps, fc_channels=plan.map_channels, crop_size=plan.map_crop,
                   max_steps=plan.map_steps, eval_steps=third)
        return {kind: (f'{folder}/train/model.ckpt-{steps}', f'{folder}/few.record')
                for kind, steps in (('decided', plan.map_steps), ('undecided', third))}
