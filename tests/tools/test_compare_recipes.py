import json
import os
import subprocess

import numpy as np
import pytest
from conftest import draw_pair
from PIL import Image

import convert_fcn_dataset
import evaluate
import train
import utils
from tools import compare_recipes, search_crf

PROGRAMS = {'convert_fcn_dataset.py': convert_fcn_dataset, 'train.py': train, 'evaluate.py': evaluate,
            'search_crf.py': search_crf}


def write_data(folder, train_ids, val_ids):
    """A folder in VOC's layout, whose images tests paint from their labels."""
    for name in ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'):
        (folder / name).mkdir(parents=True)
    for number, name in enumerate([*train_ids, *val_ids]):
        image, label = draw_pair(64, 80, number)
        Image.fromarray(image).save(folder / 'JPEGImages' / f'{name}.jpg')
        Image.fromarray(label).save(folder / 'SegmentationClass' / f'{name}.png')
    for split, ids in (('train', train_ids), ('val', val_ids)):
        (folder / 'ImageSets' / 'Segmentation' / f'{split}.txt').write_text('\n'.join(ids) + '\n')


def read_lists(folder):
    return {name: (folder / 'ImageSets' / 'Segmentation' / f'{name}.txt').read_text().split()
            for name in ('fit', 'held_out', 'val')}


def test_the_last_sixth_of_each_film_is_held_out(tmp_path):
    films = [*(f'0001TP_{frame:03}' for frame in range(13)), *(f'0006R0_{frame:03}' for frame in range(6))]
    write_data(tmp_path / 'data', films, ['0016E5_000'])
    compare_recipes.write_lists(str(tmp_path / 'data'), str(tmp_path / 'voc'))
    lists = read_lists(tmp_path / 'voc')
    assert lists['held_out'] == ['0001TP_011', '0001TP_012', '0006R0_005'] and lists['val'] == ['0016E5_000']
    assert sorted(lists['fit'] + lists['held_out']) == films
    assert (tmp_path / 'voc' / 'JPEGImages' / '0001TP_000.jpg').exists()


def test_without_films_the_last_sixth_of_the_list_is_held_out(tmp_path):
    photos = [f'20{year:02}00_{year}' for year in range(12)]
    write_data(tmp_path / 'data', photos, ['x'])
    compare_recipes.write_lists(str(tmp_path / 'data'), str(tmp_path / 'voc'))
    assert read_lists(tmp_path / 'voc') == {'fit': photos[:10], 'held_out': photos[10:], 'val': ['x']}


def test_a_study_trains_chooses_and_writes_the_table(tmp_path, monkeypatch, capsys):
    """All programs for real, in this process, on a few drawn images; the second call has nothing to do but the page."""
    write_data(tmp_path / 'data', [f'image{number}_{number}' for number in range(6)], ['other1', 'other2'])
    flags = ['--fc_channels', '8', '--val_steps', '0', '--summary_steps', '0']
    study = compare_recipes.Study('Drawn images', 0.5, 4, 6, 3, flags, {
        'first': '--batch_size 2 --crop_size 16', 'second': '--recipe paper --learning_rate 1e-7'})
    monkeypatch.setitem(compare_recipes.STUDIES, 'drawn', study)
    calls = []

    def run(command):
        calls.append([os.path.basename(command[1]), *command[2:]])
        program = PROGRAMS[calls[-1][0]]
        extra = ['--num_workers', '1'] if program is search_crf else []
        return subprocess.CompletedProcess(command, program.main([*command[2:], *extra]) or 0)
    monkeypatch.setattr(subprocess, 'run', run)
    args = ['--study', 'drawn', '--data_dir', str(tmp_path / 'data'), '--output_dir', str(tmp_path / 'out'),
            '--results_dir', str(tmp_path / 'results')]
    compare_recipes.main(args)

    lab = compare_recipes.Lab(study, compare_recipes.parse_args(args))
    steps = {name: max(row['step'] for row in compare_recipes.read_log(lab, name)) for name in ('first', 'second')}
    assert steps == {'first': 2, 'second': 4}  # four images each, by batches of 2 and 1
    scores = {name: json.loads((tmp_path / 'out/drawn' / name / 'held_out/metrics.json').read_text())['mean_iou']
              for name in steps}
    best = max(scores, key=scores.get)
    page = (tmp_path / 'results' / 'drawn.md').read_text()
    assert f'**{best}**' in page and f'| {best}_longer | ' in page and '| 6 |' in page
    val = json.loads((tmp_path / f'out/drawn/{best}/val/metrics.json').read_text())
    assert f'| {100 * scores[best]:.1f} | {100 * val["mean_iou"]:.1f} | {100 * val["crf"]["mean_iou"]:.1f} |' in page
    assert val['scorecard']['images'] == 2 and np.prod(Image.open(tmp_path / 'results' / 'drawn.png').size) > 10 ** 5
    assert all(f'    python {" ".join(call[:1])}' in page for call in calls if call[0] != 'search_crf.py')

    done = len(calls)
    compare_recipes.main(args)
    assert len(calls) == done and (tmp_path / 'results' / 'drawn.md').read_text() == page


def test_a_program_that_fails_ends_the_study(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, 'run', lambda command: subprocess.CompletedProcess(command, 1))
    args = compare_recipes.parse_args(['--data_dir', 'x', '--output_dir', str(tmp_path)])
    lab = compare_recipes.Lab(compare_recipes.STUDIES['camvid'], args)
    with pytest.raises(utils.UserError, match='train.py has failed, see above'):
        lab.train('owner', '', 16)


def test_missing_data_is_named(tmp_path):
    with pytest.raises(utils.UserError, match='train.txt: No such file or directory: --data_dir must be a folder in'):
        compare_recipes.main(['--data_dir', str(tmp_path), '--output_dir', str(tmp_path / 'out')])


def test_the_minutes_of_a_log():
    """10 steps of 2 images at 4 images/s and 5 more at 1: 5 s and 10 s."""
    log = [{'step': 10.0, 'images_per_second': 4.0}, {'step': 15.0, 'images_per_second': 1.0}]
    assert compare_recipes.count_minutes(log, 2) == pytest.approx(15 / 60)
