import os

import numpy as np
import pytest
from conftest import draw_pair, write_record

import utils
from datasets import classes, records
from report import page
from tools import overfit


@pytest.mark.slow
def test_overfit_scores_what_it_trains_on(record, tmp_path, capsys):
    overfit.main(['--dataset', record, '--output_dir', str(tmp_path), '--num_images', '2', '--max_steps', '5',
                  '--eval_steps', '2', '--crop_size', '32', '--fc_channels', '8'])
    assert records.count_examples(str(tmp_path / 'few.record')) == 2
    rows = page.read_table(str(tmp_path / 'train' / 'eval.csv'))
    assert [row['step'] for row in rows] == [2, 4, 5]
    assert f'mean IoU {rows[-1]["mean_iou"]:.4f} on the 2 images' in capsys.readouterr().out
    assert os.path.exists(tmp_path / 'train' / 'model.ckpt-5.index')
    assert 'Validation mean IoU over the steps: mean IoU 0.' in (tmp_path / 'index.html').read_text()
    with pytest.raises(utils.UserError, match='holds a run on other images'):
        overfit.main(['--dataset', record, '--output_dir', str(tmp_path), '--num_images', '3'])
    overfit.main(['--dataset', record, '--output_dir', str(tmp_path), '--num_images', '2', '--max_steps', '5',
                  '--fc_channels', '8'])
    assert 'nothing left to do' in capsys.readouterr().out


def test_g2_overfit_passes_num_gpus_on(record, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(overfit.train, 'main', found.extend)
    monkeypatch.setattr(overfit.page, 'read_table', lambda _: [{'mean_iou': 0.5}])
    overfit.main(['--dataset', record, '--output_dir', str(tmp_path), '--num_gpus', '2'])
    assert '--num_gpus=2' in found and not any(flag.startswith('--checkpoint_path') for flag in found)


def test_the_classes_are_those_of_the_record(tmp_path, monkeypatch):
    record = write_record(tmp_path / 'own.record', [draw_pair(40, 40, 0)])
    own = classes.make_class_set(['sky', 'road', 'tree'])
    classes.save_side_file(classes.side_file(record), own, 1, np.zeros(256, int))
    found = []
    monkeypatch.setattr(overfit.train, 'main', found.extend)
    monkeypatch.setattr(overfit.page, 'read_table', lambda _: [{'mean_iou': 0.5}])
    overfit.main(['--dataset', record, '--output_dir', str(tmp_path / 'out'), '--num_images', '1'])
    [path] = [flag.removeprefix('--classes=') for flag in found if flag.startswith('--classes=')]
    assert classes.read_classes(path) == own


def test_too_few_images_is_one_line(tmp_path):
    record = write_record(tmp_path / 'one.record', [draw_pair(40, 40, 0)])
    with pytest.raises(utils.UserError, match='--num_images 4: .*one.record holds only 1'):
        overfit.main(['--dataset', record, '--output_dir', str(tmp_path / 'out')])
