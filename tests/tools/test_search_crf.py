import contextlib
import io
import json
import math
import multiprocessing
import os
import runpy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SIZES, draw_pair, encode, write_examples

import evaluate
import predict
import train
import utils
from datasets import records
from inference import crf, weights
from inference.scores import confusion_matrix, mean_iou
from tools import search_crf
from utils import UserError

FACTS = {'dataset': 'a.record'}


def write_named(path, names, pairs):
    """A record whose examples have these names; returns its path as str."""
    return write_examples(path, [
        records.make_example(name.encode(), encode(image, format='JPEG', quality=95), encode(label, format='PNG'),
                             *label.shape)
        for name, (image, label) in zip(names, pairs)])


def noisy_map(seed, height=30, width=40):
    """Image of a red and a blue half, label 1 | 2, and a map that takes three pixels of ten for the other half's."""
    label = np.where(np.arange(width) < width // 2, 1, 2) * np.ones((height, 1), int)
    image = np.where(label[:, :, np.newaxis] == 1, (200, 30, 30), (30, 30, 200)).astype(np.uint8)
    seen = np.where(np.random.RandomState(seed).rand(height, width) < 0.3, 3 - label, label)
    return image, label.astype(np.uint8), np.where(np.eye(3)[seen] == 1, 0.6, 0.2).astype(np.float32)


@pytest.fixture(scope='module')
def noisy():
    """Three noisy maps."""
    return [({'image': image, 'label': label}, probabilities.astype(np.float16))
            for image, label, probabilities in map(noisy_map, range(3))]


# ------------------------------------------------------------------------------------------- the search


def test_the_search_finds_the_setting_that_suits_noise(noisy):
    """Without a CRF three pixels of ten are wrong: IoU 0.7 / 1.3. Kernels that reach far enough put them all right."""
    without_crf = mean_iou(sum(confusion_matrix(example['label'], probabilities.argmax(axis=-1), 3)
                               for example, probabilities in noisy))
    assert without_crf == pytest.approx(0.7 / 1.3, abs=0.03)
    trials = search_crf.search(noisy, 3, 12, 0, 2)
    assert [trial.kind for trial in trials] == ['defaults', "DeepLab's", *['random'] * 5, *['near the best'] * 5]
    assert search_crf.find_best(trials).mean_iou == 1
    for weak in (crf.Parameters(iterations=0), crf.Parameters(1, 0.5, 0.3, 0.5, 2, 0.3)):
        refined = [confusion_matrix(label, crf.refine(image, probabilities, weak), 3)
                   for image, label, probabilities in map(noisy_map, range(3))]
        assert mean_iou(sum(refined)) < 0.7


def test_the_search_depends_on_the_seed_alone(noisy):
    found = [search_crf.search(noisy, 3, 10, seed, num_workers)
             for seed, num_workers in ((5, 1), (5, 3), (6, 1))]
    assert found[0] == found[1] != found[2]


def test_what_is_proposed_lies_in_the_ranges_and_differs():
    trials, random = [], np.random.RandomState(0)
    for number in range(40):
        kind, parameters = search_crf.propose(trials, 40, random)
        trials.append(search_crf.Trial(kind, parameters, 1 / (2 + number)))  # the first stays the best
        crf.check_parameters(json.loads(json.dumps(parameters._asdict())))  # a file may hold it
        for value, (low, high) in zip(parameters, search_crf.RANGES):
            assert low <= value <= high
    assert len({trial.parameters for trial in trials}) == 40
    for trial in trials[21:]:
        assert trial.kind == 'near the best'
        assert 1 <= sum(a != b for a, b in zip(trial.parameters, crf.DEFAULTS)) <= 2


def test_a_killed_process_is_one_line(noisy, monkeypatch):
    def killing(trials, number, random):
        if trials:  # before the first there is no process yet
            multiprocessing.active_children()[0].kill()
        return original(trials, number, random)

    original = search_crf.propose
    monkeypatch.setattr(search_crf, 'propose', killing)
    with pytest.raises(UserError, match='^a process of the CRF was killed.*--num_workers$'):
        search_crf.search(noisy, 3, 5, 0, 1)


# ------------------------------------------------------------------------------------------- which images


@pytest.mark.parametrize('number, total, expected', [
    (100, 3, [0, 1, 2]), (9, 3, [0, 1, 2]), (1, 5, [0]), (2, 5, [0, 2]), (4, 10, [0, 2, 5, 7])])
def test_spread(number, total, expected):
    assert search_crf.spread(number, total) == expected


@pytest.fixture
def three_records(tmp_path, pairs):
    return {name: write_named(tmp_path / f'{name}.record', names, pairs)
            for name, names in (('train', 'abcd'), ('val', 'efg'), ('mixed', 'aeh'), ('held_out', 'hi'))}


def check(record, settings):
    search_crf.check_images(record, search_crf.read_names(record), settings)


def test_images_of_the_validation_are_refused(three_records):
    settings = {'dataset_train': three_records['train'], 'dataset_val': three_records['val']}
    for name, told in (('val', '3 of its 3'), ('mixed', '1 of its 3')):
        with pytest.raises(UserError) as caught:
            check(three_records[name], settings)
        message = f'{three_records[name]}: {told} images are in {three_records["val"]}, which the run is scored on'
        assert str(caught.value).startswith(message)
        assert '\n' not in str(caught.value) and str(caught.value).endswith('as --dataset')


def test_images_of_the_training_are_warned_of(three_records, capsys):
    settings = {'dataset_train': three_records['train'], 'dataset_val': three_records['val']}
    check(three_records['held_out'], settings)
    assert capsys.readouterr().err == ''
    check(three_records['train'], settings)
    assert f'{three_records["train"]}: 4 of its 4 images are in ' in capsys.readouterr().err


def test_records_that_are_no_longer_there(three_records, tmp_path, capsys):
    settings = {'dataset_train': three_records['train'], 'dataset_val': 'elsewhere/val.record'}
    check(three_records['held_out'], settings)
    assert capsys.readouterr().err.startswith('warning: the record that the run is scored on is missing: make sure')
    check(three_records['held_out'], {})
    assert capsys.readouterr().err.count('is missing: make sure yourself') == 2


# ------------------------------------------------------------------------------------------- the program


@pytest.fixture(scope='module')
def held_out(tmp_path_factory):
    names = [f'held{number}' for number in range(len(SIZES))]
    return write_named(tmp_path_factory.mktemp('records') / 'held_out.record', names,
                       [draw_pair(height, width, 10 + number) for number, (height, width) in enumerate(SIZES)])


def flags(trained, record, folder, *others):
    return ['--checkpoint_path', str(trained / 'train'), '--dataset', record, '--output_dir', str(folder), '--trials',
            '4', '--num_workers', '1', *others]


@pytest.fixture(scope='module')
def searched(trained, held_out, tmp_path_factory):
    """A folder that the script wrote; as a script, whose processes must not run it again."""
    folder = tmp_path_factory.mktemp('searched')
    script = os.path.join(os.path.dirname(train.__file__), 'tools', 'search_crf.py')
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [script, *flags(trained, held_out, folder)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(script, run_name='__main__')
    assert not ended.value.code, errors.getvalue()
    assert 'mean IoU: without CRF 0.' in printed.getvalue() and "DeepLab's 0." in printed.getvalue()
    assert 'warning' not in errors.getvalue()
    return folder


def test_what_the_script_writes(searched, trained, held_out):
    content = json.loads((searched / 'crf.json').read_text())
    found = content.pop('found')
    assert content == crf.read_parameters(str(searched / 'crf.json'))._asdict()
    checkpoint = weights.find_checkpoint(str(trained / 'train'))
    assert (found['dataset'], found['images'], found['checkpoint'], found['step']) == (held_out, 5, checkpoint, 3)
    assert (found['sha256'], found['trials'], found['seed']) == (weights.hash_checkpoint(checkpoint), 4, 0)
    lines = [line.split(',') for line in (searched / 'trials.csv').read_text().splitlines()]
    assert len(lines) == 5 and lines[0] == ['trial', 'kind', *crf.Parameters._fields, 'mean_iou']
    assert lines[1][1:8] == ['defaults', '5', '10', '3', '50', '20', '10']
    assert max(float(line[8]) for line in lines[1:]) == pytest.approx(found['mean_iou']['best'], abs=1e-6)


def test_the_scores_are_those_of_evaluate(wild, held_out, tmp_path):
    search_crf.main(['--checkpoint_path', wild, '--dataset', held_out, '--output_dir', str(tmp_path), '--trials', '2',
                     '--num_workers', '1'])
    scores = json.loads((tmp_path / 'crf.json').read_text())['found']['mean_iou']
    found = evaluate.evaluate(wild, held_out, crf.DEFAULTS).scores
    assert (found['crf'].confusion != found['plain'].confusion).any()
    assert scores['without_crf'] == pytest.approx(found['plain'].figures()['mean_iou'], abs=1e-4)
    assert scores['defaults'] == pytest.approx(found['crf'].figures()['mean_iou'], abs=0.002)


@pytest.mark.slow
def test_scales_and_number_of_images(trained, held_out, tmp_path):
    search_crf.main(flags(trained, held_out, tmp_path, '--scales', '0.5,1', '--flip', '--num_images', '2'))
    found = json.loads((tmp_path / 'crf.json').read_text())['found']
    assert (found['scales'], found['flip'], found['images']) == ([0.5, 1], True, 2)
    assert sorted(os.listdir(tmp_path)) == ['crf.json', 'trials.csv']


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_ends_the_search_at_once(trained, held_out, tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    monkeypatch.setattr(search_crf, 'predict_maps', None)
    with pytest.raises(FileExistsError):
        search_crf.main(flags(trained, held_out, tmp_path / 'file'))


def test_ctrl_c_shows_what_was_found_so_far(trained, held_out, tmp_path, monkeypatch, capsys):
    def interrupted(trials, number, random):
        if len(trials) == 2:
            raise KeyboardInterrupt
        return original(trials, number, random)

    original = search_crf.propose
    monkeypatch.setattr(search_crf, 'propose', interrupted)
    assert search_crf.main(flags(trained, held_out, tmp_path)) == 130
    assert 'stopped after 2 of 4 trials' in capsys.readouterr().out
    assert json.loads((tmp_path / 'crf.json').read_text())['found']['trials'] == 2


def test_validation_images_and_void_and_missing_records_are_one_line(trained, record, tmp_path):
    black, all_void = np.zeros((40, 40, 3), np.uint8), np.full((40, 40), 255, np.uint8)
    void = write_named(tmp_path / 'void.record', ['v'], [(black, all_void)])
    for path, told in ((record, '5 of its 5 images are in .* which the run is scored on'),
                       (void, 'the images have no annotated pixel'), (str(tmp_path / 'no.record'), 'no such file')):
        with pytest.raises(UserError, match=told):
            search_crf.main(flags(trained, path, tmp_path / 'out'))
    assert not (tmp_path / 'out' / 'crf.json').exists()


def test_that_no_crf_is_better_is_said(tmp_path, capsys):
    trials = [search_crf.Trial(kind, parameters, iou) for kind, parameters, iou in (
        ('defaults', crf.DEFAULTS, 0.5), ("DeepLab's", search_crf.DEEPLABS, 0.55))]
    search_crf.write_results(str(tmp_path), trials, 0.54, FACTS)
    assert capsys.readouterr().out == "mean IoU: without CRF 0.5400, defaults 0.5000, DeepLab's 0.5500, best 0.5500\n"
    search_crf.write_results(str(tmp_path), trials, 0.55, FACTS)
    assert 'none of 2 settings is better than no CRF' in capsys.readouterr().out
    assert crf.read_parameters(str(tmp_path / 'crf.json')) == search_crf.DEEPLABS
    assert search_crf.find_best(trials + [trials[1]._replace(kind='random')]) is trials[1]
    assert not math.isnan(json.loads((tmp_path / 'crf.json').read_text())['found']['mean_iou']['best'])


# ------------------------------------------------------------------------------------------- --crf_params elsewhere


@pytest.fixture
def without_iterations(tmp_path):
    """A file of parameters with which the CRF changes nothing."""
    path = str(tmp_path / 'none.json')
    utils.save_json(path, crf.Parameters(iterations=0)._asdict())
    return path


@pytest.mark.slow
def test_evaluate_takes_the_parameters(trained, held_out, tmp_path, without_iterations):
    evaluate.main(['--checkpoint_path', str(trained / 'train'), '--dataset', held_out, '--output_dir', str(tmp_path),
                   '--crf', '--crf_params', without_iterations])
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert metrics['crf']['confusion'] == metrics['confusion']
    assert metrics['scorecard']['crf_parameters'] == {**crf.DEFAULTS._asdict(), 'iterations': 0}


def test_predict_takes_the_parameters(without_iterations):
    image, label, probabilities = noisy_map(0)
    segmenter = SimpleNamespace(strips=lambda image: [(0, probabilities)])
    for others, expected in (([], label), (['--crf_params', without_iterations], probabilities.argmax(axis=-1))):
        args = predict.parse_args(['--images', 'a.png', '--crf', *others])
        maps = predict.predict(segmenter, image, args.max_side, args.crf_params)
        np.testing.assert_array_equal(maps['crfed'], expected)


@pytest.mark.parametrize('program, others', [(evaluate, []), (predict, ['--images', 'a.png'])])
def test_parameters_of_a_crf_that_nobody_asked_for(program, others, without_iterations, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        program.parse_args([*others, '--crf_params', without_iterations])
    assert caught.value.code == 2 and '--crf_params: changes nothing without --crf; add it' in capsys.readouterr().err
    assert program.parse_args([*others, '--crf', '--crf_params', without_iterations]).crf_params.iterations == 0
    assert program.parse_args(others).crf_params == crf.DEFAULTS
    with pytest.raises(UserError, match='--crf_params .*no.json: No such file'):
        program.parse_args([*others, '--crf', '--crf_params', str(tmp_path / 'no.json')])
