"""What is found beside a checkpoint."""
import os

import pytest

from inference import weights
from utils import UserError


@pytest.mark.parametrize('checkpoint, run_folder', [
    ('/runs/a/train/model.ckpt-3', '/runs/a'), ('runs/a/best/model.ckpt-3', 'runs/a'), ('train/model.ckpt-3', '.')])
def test_results_go_into_the_run_of_the_checkpoint(checkpoint, run_folder):
    assert weights.find_run_folder(checkpoint) == os.path.relpath(run_folder)
    folder = weights.choose_output_dir(checkpoint, None, 'evaluation')
    assert os.path.normpath(folder) == os.path.relpath(os.path.join(run_folder, 'evaluation'))
    assert weights.choose_output_dir(checkpoint, 'elsewhere', 'evaluation') == 'elsewhere'


def test_a_checkpoint_outside_a_run_needs_an_output_dir():
    assert weights.find_run_folder('model.ckpt-3') is None
    with pytest.raises(UserError, match='^model.ckpt-3 is not in the folder of a run; give --output_dir$'):
        weights.choose_output_dir('model.ckpt-3', None, 'evaluation')
