"""What the rows work on: records, a checkpoint, softmax maps for the CRF; made when the first row asks for them."""
import dataclasses
import functools
import os

from benchmarks import measure


@dataclasses.dataclass
class Inputs:
    """What the rows share."""
    data_dir: str  # in VOC's layout
    log_dir: str
    work_dir: str  # is removed at the end
    rounds: int  # of every row
    fc_channels: int = 4096
    crop_size: int = 224
    photo_size: tuple = (375, 500)  # height, width
    map_steps: int = 150  # of the network that makes the maps

    def path(self, *names):
        return os.path.join(self.work_dir, *names)

    def take_turns(self, contenders):
        return measure.take_turns(contenders, self.rounds, self.log_dir)

    @functools.cached_property
    def photos(self):
        """Paths of the photos of both splits, list of str; those of val come first."""
        found = []
        for split in ('val', 'train'):
            with open(os.path.join(self.data_dir, 'ImageSets', 'Segmentation', f'{split}.txt')) as file:
                found += [os.path.join(self.data_dir, 'JPEGImages', f'{name}.jpg') for name in file.read().split()]
        return found

    @functools.cached_property
    def records(self):
        """Paths of the training record and the validation record."""
        measure.run_script(self.log_dir, 'convert_fcn_dataset.py', data_dir=self.data_dir,
                           output_dir=self.path('records'))
        return [self.path('records', f'fcn_{role}.record') for role in ('train', 'val')]

    @functools.cached_property
    def checkpoint(self):
        """A checkpoint of full width, with random weights."""
        path = self.path('full', 'model.ckpt')
        measure.run(measure.call('checkpoint', 'ours.write_checkpoint', path=path, fc_channels=self.fc_channels),
                    self.log_dir)
        return path

    @property
    def map_photos(self):
        """The photos that have maps, list of paths."""
        return self.photos[:6]

    @functools.cached_property
    def maps(self):
        """Softmax maps of map_photos, dict of their kind to a folder; see refinement.load_maps.
        A network that has learnt images by heart is as sure as a well trained one: its maps are 'decided'. After a
        third of its steps, most labels still have a chance: these maps are 'undecided'."""
        folder, found, third = self.path('overfit'), {}, self.map_steps // 3
        measure.run_script(self.log_dir, 'tools/convert_vgg_weights.py', source='imagenet', output=self.path('trunk'))
        measure.run_script(self.log_dir, 'tools/overfit.py', dataset=self.records[1], output_dir=folder,
                           checkpoint_path=self.path('trunk'), num_images=6, fc_channels=min(512, self.fc_channels),
                           crop_size=min(128, self.crop_size), max_steps=self.map_steps, eval_steps=third)
        for kind, steps in (('decided', self.map_steps), ('undecided', third)):
            found[kind] = self.path(kind)
            measure.run_script(self.log_dir, 'predict.py', '--save_probabilities', '--images', *self.map_photos,
                               checkpoint_path=f'{folder}/train/model.ckpt-{steps}', output_dir=found[kind])
        return found
