import os

import pytest
from conftest import draw_pair, write_record
from PIL import Image

import dataset
import utils
from tools import overfit


def test_overfit_trains_in_turns_and_draws_the_curve(record, tmp_path, capsys):
    overfit.main(['--dataset', record, '--output_dir', str(tmp_path), '--num_images', '2', '--max_steps', '4',
                  '--eval_steps', '2', '--crop_size', '32', '--fc_channels', '8'])
    assert dataset.count_examples(str(tmp_path / 'few.record')) == 2
    out = capsys.readouterr().out
    assert 'step 2: mean IoU 0.' in out and 'step 4: mean IoU 0.' in out
    assert os.path.exists(tmp_path / 'train' / 'model.ckpt-4.index')
    assert Image.open(tmp_path / 'curve.png').size == (700, 350)
    with pytest.raises(utils.UserError, match='holds a run already'):
        overfit.main(['--dataset', record, '--output_dir', str(tmp_path)])


def test_too_few_images_is_one_line(tmp_path):
    record = write_record(tmp_path / 'one.record', [draw_pair(40, 40, 0)])
    with pytest.raises(utils.UserError, match='--num_images 4: .*one.record holds only 1'):
        overfit.main(['--dataset', record, '--output_dir', str(tmp_path / 'out')])
