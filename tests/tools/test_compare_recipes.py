import collections
import os
import pathlib
import shlex
import subprocess

import numpy as np
import pytest
from conftest import draw_pair
from PIL import Image

import convert_fcn_dataset
import evaluate
import train
import utils
from datasets import classes
from inference import crf
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
            for name in ('train', 'fit', 'held_out', 'val')}


def test_p7_an_eighth_of_a_long_and_of_a_short_film_is_held_out(tmp_path):
    films = [*(f'0001TP_{frame:03}' for frame in range(60)), *(f'0006R0_{frame:03}' for frame in range(5))]
    write_data(tmp_path / 'data', films, ['0016E5_000'])
    compare_recipes.write_lists(str(tmp_path / 'data'), str(tmp_path / 'voc'))
    lists = read_lists(tmp_path / 'voc')
    assert lists['held_out'] == [*films[52:60], films[64]] and lists['val'] == ['0016E5_000']
    assert lists['fit'] == [*films[:52], *films[60:64]] and lists['train'] == films
    assert (tmp_path / 'voc' / 'JPEGImages' / '0001TP_000.jpg').exists()


@pytest.mark.parametrize('lengths, expected', [
    ([60, 5], [8, 1]), ([5, 60], [1, 8]), ([4, 8, 12, 16], [1, 1, 2, 2]), ([64, 3], [8, 0]), ([60, 2, 1], [8, 0, 0]),
    ([60, 3, 3], [8, 0, 1]), ([40, 1, 3], [5, 0, 1]), ([5] * 9, [1] * 9), ([61], [8]), ([4], [1])])
@pytest.mark.parametrize('name', ['Seq05VD_f{:05}', 'a{}', '{:06}', '2007_{:06}', 'street-{}'])
def test_p7_no_film_is_emptied(lengths, expected, name):
    films = [[f'{"abcdefghi"[film]}_{name.format(frame)}' for frame in range(length)]
             for film, length in enumerate(lengths)]
    fit, held_out = compare_recipes.split_films([each for film in films for each in film])
    assert [sum(each in held_out for each in film) for film in films] == expected
    assert all(set(film) & set(fit) for film in films) and set(fit).isdisjoint(held_out)
    assert all(film[-1] in held_out for film, number in zip(films, expected) if number)


def test_p7_films_whose_frames_alternate():
    ids = [f'{film}_{frame}' for frame in range(8) for film in 'ab']
    assert compare_recipes.split_films(ids) == (ids[:14], ['a_7', 'b_7'])


@pytest.mark.parametrize('photos', [[f'20{year:02}00_{year}' for year in range(12)], list('lkjihgfedcba')])
def test_p7_without_films_the_last_eighth_of_the_list_is_held_out(photos):
    assert compare_recipes.split_films(photos) == (photos[:10], photos[10:])


@pytest.mark.parametrize('flags, number', [('--batch_size 6', 2), ('--recipe paper', 1), ('--batch_size 8', 4)])
def test_g2_trainings_use_the_gpus_that_divide_their_batch(tmp_path, monkeypatch, flags, number):
    lab, found = compare_recipes.Lab(compare_recipes.STUDIES['camvid'], str(tmp_path), num_gpus=4), []
    monkeypatch.setattr(lab, 'call', lambda _, program, *flags: found.append(train.parse_args(map(str, flags))))
    monkeypatch.setattr(lab, 'evaluate', lambda *_: {'mean_iou': 0.5})
    monkeypatch.setattr(lab, 'read_scores', lambda _: [0.0] * 4)
    lab.train_and_score('run', flags, 48)
    assert [(args.num_gpus, args.checkpoint_path) for args in found] == [(number, 'none')]


@pytest.mark.parametrize('study', compare_recipes.STUDIES.values(), ids=list(compare_recipes.STUDIES))
def test_the_flags_of_all_runs_are_flags_of_train(study):
    for flags in study.runs.values():
        assert train.parse_args([*compare_recipes.COMMON_FLAGS, *shlex.split(flags)]).fc_channels == 512


# Mean IoUs of the runs on the held-out images, on val, and on val with the CRF. `second` is the best.
SCORES = {'first': (0.2, 0.21, 0.22), 'second': (0.3, 0.31, 0.32), 'second_on_all': (0.4, 0.41, 0.42)}


def make_results(command):
    """Parses a command as its program does, and writes what compare_recipes.py reads of the program's results."""
    args = PROGRAMS[os.path.basename(command[1])].parse_args(command[2:])
    folder = pathlib.Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if 'convert' in command[1]:
        for name in ('fcn_train.record', 'fcn_val.record'):
            (folder / name).touch()
            # Of VOC's classes, three have 500,000 pixels at full size: a quarter of these at half size.
            pixels = [125_000, 124_999, 300_000, *[0] * 17, 200_000] + [0] * 235
            classes.save_side_file(folder / f'{name}.json', classes.VOC, 4, np.array(pixels))
    elif 'train' in command[1]:
        (folder / 'train').mkdir()
        (folder / 'train' / f'model.ckpt-{args.max_steps}.index').touch()
        (folder / 'train' / 'log.csv').write_text('step,loss_per_pixel,images_per_second\n1,1.5,0.05\n'
                                                  f'{args.max_steps},1.5,0.1\n')
    elif 'search' in command[1]:
        utils.save_json(str(folder / 'crf.json'), crf.DEFAULTS._asdict())
    else:
        held_out, val, val_crf = SCORES[folder.parent.name]
        mean_iou = held_out if folder.name == 'held_out' else val
        crf_iou = val_crf + ('searched' in folder.name) / 100 + ('mirrored' in folder.name) / 100
        ious = {**dict.fromkeys(classes.VOC.names, 0.5), 'background': 0.9, 'tvmonitor': None}
        utils.save_json(str(folder / 'metrics.json'), {'mean_iou': mean_iou, 'per_class_iou': ious, 'crf': {
            'mean_iou': crf_iou, 'per_class_iou': {**ious, 'bicycle': 0.8}}})


@pytest.mark.parametrize('jobs', [1, 2])
def test_a_study_trains_chooses_and_writes_the_table(tmp_path, monkeypatch, jobs):
    """The second call has nothing to do but the page."""
    write_data(tmp_path / 'data', [f'image{number}_{number}' for number in range(6)], ['other1', 'other2'])
    study = compare_recipes.Study('Drawn images', 0.5, 'train', 'SegmentationClass', 4, 6, 3, {
        'first': '--batch_size 2 --crop_size 16', 'second': '--recipe paper --checkpoint_path {runs}/first'})
    monkeypatch.setitem(compare_recipes.STUDIES, 'drawn', study)
    calls = []
    monkeypatch.setattr(subprocess, 'run', lambda command: calls.append(command) or subprocess.CompletedProcess(
        command, make_results(command) or 0))
    args = ['--study', 'drawn', '--data_dir', str(tmp_path / 'data'), '--output_dir', str(tmp_path / 'out'),
            '--checkpoint_path', 'vgg_16.ckpt', '--jobs', str(jobs)]
    compare_recipes.main(args)

    page = (tmp_path / 'out' / 'drawn.md').read_text()
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in page.splitlines() if line.startswith('| ')]
    # Images by batches of 2 and of 1. Minutes: 2 images at 0.05/s and 2 at 0.1/s; 1 and 3; 1 and 5.
    # The frequent classes are background, bicycle and tvmonitor, which no image has: 0.9, 0.5 and 0; with CRF 0.8.
    first, second = '--batch_size 2 --crop_size 16', f'--recipe paper --checkpoint_path {tmp_path}/out/drawn/first'
    assert rows[1:4] == [
        ['first', f'`{first}`', '2', '4', '1.0', '20.0', '21.0', '46.7', '22.0', '56.7'],
        ['second', f'`{second}`', '4', '4', '0.8', '30.0', '31.0', '46.7', '32.0', '56.7'],
        ['second: searched CRF', f'`--crf_params {tmp_path}/out/drawn/second/crf_search/crf.json`', '4', '4', '', '',
         '31.0', '46.7', '33.0', '56.7']]
    assert [(row[0], row[2:]) for row in rows[4:7]] == [
        ('second_on_all', ['6', '6', '1.2', '', '41.0', '46.7', '42.0', '56.7']),
        ('second_on_all: searched CRF', ['6', '6', '', '', '41.0', '46.7', '43.0', '56.7']),
        ('second_on_all: searched CRF, three scales and mirrored', ['6', '6', '', '', '41.0', '46.7', '44.0', '56.7'])]
    assert rows[6][1].endswith('second/crf_search/crf.json --scales 0.75,1,1.25 --flip`')
    assert rows[7] == ['second_on_all', 'IoU', 'IoU with CRF'] and rows[10] == ['bicycle', '50.0', '80.0']
    assert '**second**' in page and np.prod(Image.open(tmp_path / 'out' / 'drawn.png').size) > 10 ** 5
    programs = [os.path.basename(call[1]) for call in calls]
    assert collections.Counter(programs) == {'convert_fcn_dataset.py': 2, 'train.py': 3, 'search_crf.py': 1,
                                             'evaluate.py': 8}
    starts, records = [], []
    for call in calls:
        program = os.path.relpath(call[1], compare_recipes.ROOT)
        assert page.count(f'    {shlex.join(["python", program, *call[2:]])}\n') == 1
        if program == 'train.py':
            flags = train.parse_args(call[2:])
            starts.append(flags.checkpoint_path)
            records.append(os.path.relpath(flags.dataset_train, tmp_path / 'out' / 'drawn'))
    assert starts == ['vgg_16.ckpt', *[f'{tmp_path}/out/drawn/first'] * 2]
    assert records == ['fit/fcn_train.record', 'fit/fcn_train.record', 'train/fcn_train.record']

    compare_recipes.main(args)
    assert len(calls) == 14 and (tmp_path / 'out' / 'drawn.md').read_text() == page


def test_a_program_that_fails_ends_the_study(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, 'run', lambda command: subprocess.CompletedProcess(command, 1))
    lab = compare_recipes.Lab(compare_recipes.STUDIES['camvid'], str(tmp_path))
    with pytest.raises(utils.UserError, match='default.*index: train.py has failed, see above'):
        lab.train_and_score('default', '', 16)


def test_missing_data_is_named(tmp_path):
    with pytest.raises(utils.UserError, match='train.txt: No such file or directory; --data_dir must be a folder in'):
        compare_recipes.main(['--data_dir', str(tmp_path), '--output_dir', str(tmp_path / 'out')])
