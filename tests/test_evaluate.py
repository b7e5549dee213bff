"""evaluate.py against scores counted pixel by pixel; what it writes; records and checkpoints of other classes."""
import hashlib
import json
import math
import os
import re
import runpy
import shutil
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import CAMVID, load_network, write_record
from PIL import Image

import evaluate
from datasets import classes
from inference import averaging, crf
from inference.scores import Score
from inference.weights import find_checkpoint
from report.evaluation import Sample
from utils import UserError

VOC_NAMES = classes.VOC.names


def score_by_hand(checkpoint, pairs, refine):
    """Confusion matrix counted pixel by pixel from the network's predictions."""
    confusion = np.zeros((21, 21), np.int64)
    with tf.Graph().as_default(), tf.Session() as session:
        predictor = load_network(session, checkpoint)
        for image, label in pairs:
            probabilities = session.run(predictor.probabilities, {predictor.image: image[np.newaxis]})[0]
            prediction = crf.refine(image, probabilities) if refine else probabilities.argmax(axis=-1)
            for annotated, predicted in zip(label.ravel(), prediction.ravel(), strict=True):
                if annotated != 255:
                    confusion[annotated, predicted] += 1
    return confusion


@pytest.fixture
def flat_record(tmp_path):
    """Images of one colour, which JPEG keeps to the level, so that a test can hold them too."""
    random = np.random.RandomState(0)
    pairs = [(np.full((*size, 3), level, np.uint8), random.choice([0, 3, 255], size).astype(np.uint8))
             for size, level in (((40, 33), 60), ((20, 50), 200))]
    return write_record(tmp_path / 'flat.record', pairs), pairs


def test_evaluate_counts_every_pixel_of_every_image(trained, flat_record):
    record, pairs = flat_record
    checkpoint = find_checkpoint(str(trained / 'train'))
    scores = evaluate.evaluate(checkpoint, record, crf.DEFAULTS).scores
    assert list(scores) == ['plain', 'crf'] and list(evaluate.evaluate(checkpoint, record).scores) == ['plain']
    for name, confusion in ((name, score.confusion) for name, score in scores.items()):
        np.testing.assert_array_equal(confusion, score_by_hand(checkpoint, pairs, refine=name == 'crf'))
        assert confusion.sum() == sum((label != 255).sum() for _, label in pairs)


def test_mirrored_images_count_half(trained, flat_record):
    """By hand: the mean of what the network says to the image, and of what it says to the mirrored one, mirrored."""
    record, pairs = flat_record
    checkpoint = find_checkpoint(str(trained / 'train'))
    expected = np.zeros((21, 21), np.int64)
    with tf.Graph().as_default(), tf.Session() as session:
        predictor = load_network(session, checkpoint)
        for image, label in pairs:
            there, mirrored = (session.run(predictor.probabilities, {predictor.image: each[np.newaxis]})[0]
                               for each in (image, image[:, ::-1]))
            mean = (there + mirrored[:, ::-1]) / 2
            np.add.at(expected, (label[label != 255], mean.argmax(axis=-1)[label != 255]), 1)
    found = evaluate.evaluate(checkpoint, record, passes=averaging.Passes(flip=True))
    np.testing.assert_array_equal(found.scores['plain'].confusion, expected)


# ------------------------------------------------------------------------------------------- what is written


def score_of(rows, classes=21):
    """A Score of one image: rows of (annotated, predicted) pairs."""
    pairs = np.array(rows, np.uint8)
    score = Score(classes, boundary_width=1)
    score.add(np.ascontiguousarray(pairs[:, :, 0]), np.ascontiguousarray(pairs[:, :, 1]))
    return score


# The 3x3 example of inference/test_scores.py.
SCORE = [[(0, 0), (0, 1), (1, 1)], [(1, 1), (2, 2), (2, 0)], [(255, 0), (255, 2), (2, 2)]]


def test_summarise_a_3x3_example():
    summary = json.loads(json.dumps(evaluate.summarise(score_of(SCORE), ['a'], VOC_NAMES), allow_nan=False))
    for name, value in {'mean_iou': 5 / 9, 'pixel_accuracy': 5 / 7, 'mean_accuracy': 13 / 18,
                        'frequency_weighted_iou': 4 / 7, 'boundary_iou': 1 / 2}.items():
        assert summary[name] == pytest.approx(value, rel=1e-12)
    absent = dict.fromkeys(VOC_NAMES[3:])
    assert summary['per_class_iou'] == {'background': pytest.approx(1 / 3), 'aeroplane': pytest.approx(2 / 3),
                                        'bicycle': pytest.approx(2 / 3), **absent}
    assert summary['per_class_accuracy'] == {
        'background': 0.5, 'aeroplane': 1.0, 'bicycle': pytest.approx(2 / 3), **absent}
    assert summary['absent_classes'] == list(VOC_NAMES[3:])
    assert np.shape(summary['confusion']) == (21, 21) and summary['confusion'][2][:3] == [1, 0, 2]
    assert summary['images'] == 1 and summary['per_image'] == [{'filename': 'a', 'mean_iou': pytest.approx(5 / 9)}]


def test_a_class_that_is_only_predicted_has_an_iou_but_no_accuracy():
    summary = evaluate.summarise(score_of([[(0, 5)]]), ['a'], VOC_NAMES)
    assert summary['per_class_iou']['bottle'] == 0 and summary['per_class_accuracy']['bottle'] is None
    assert 'bottle' not in summary['absent_classes'] and summary['boundary_iou'] is None


def test_print_scores(capsys):
    evaluate.print_scores({'plain': score_of(SCORE), 'crf': score_of([[(0, 0), (1, 1)]])}, VOC_NAMES)
    rows = {line[:24].strip(): line[24:].split() for line in capsys.readouterr().out.splitlines()}
    assert rows == {
        '': ['IoU', 'accuracy', 'IoU', 'with', 'CRF', 'acc.', 'with', 'CRF'],
        'background': ['0.3333', '0.5000', '1.0000', '1.0000'], 'aeroplane': ['0.6667', '1.0000', '1.0000', '1.0000'],
        'bicycle': ['0.6667', '0.6667', 'absent', 'absent'],
        **{name: ['absent'] * 4 for name in VOC_NAMES[3:]},
        'mean IoU': ['0.5556', '1.0000'], 'pixel accuracy': ['0.7143', '1.0000'], 'mean accuracy': ['0.7222', '1.0000'],
        'frequency-weighted IoU': ['0.5714', '1.0000'], 'boundary IoU (5 px)': ['0.5000', '1.0000']}


@pytest.mark.parametrize('refined, line', [
    ([[(0, 0), (1, 1)]], ''), (SCORE, ''),
    ([[(0, 0), (0, 0), (1, 1), (1, 0)]], 'the CRF lowers the mean IoU from 1.0000 to 0.5833: search')])
def test_a_crf_that_lowers_the_mean_iou_is_named(capsys, refined, line):
    """Class 0: 2 of 3 pixels, class 1: 1 of 2."""
    plain = SCORE if refined is SCORE else [[(0, 0), (1, 1)]]
    evaluate.warn_of_crf({'plain': score_of(plain), 'crf': score_of(refined)})
    evaluate.warn_of_crf({'plain': score_of(plain)})
    out = capsys.readouterr().out
    assert out.startswith(line) and bool(out) == bool(line)


def test_the_worst_and_the_best_are_kept_and_the_others_let_go():
    extremes = {'worst': [], 'best': []}
    for iou in (0.5, 0.1, math.nan, 0.9, 0.3, 0.7, 0.2, 0.8, 0.4, 0.6):
        evaluate.keep_extremes(extremes, Sample(f'image{iou}', None, None, {}, {'plain': iou}))
    assert {end: [sample.mean_ious['plain'] for sample in samples] for end, samples in extremes.items()} == {
        'worst': [0.1, 0.2, 0.3, 0.4], 'best': [0.9, 0.8, 0.7, 0.6]}


@pytest.fixture(scope='module')
def evaluated(trained, record, tmp_path_factory):
    """A folder that an evaluation with CRF wrote, over the remains of earlier ones."""
    folder = tmp_path_factory.mktemp('evaluated')
    for name in ('worst_1_other_img.jpg', 'best_4_other_error_crfed.jpg', 'my_worst_1_img.jpg', 'worst_1_notes.txt'):
        (folder / name).write_text('')
    evaluate.main(['--checkpoint_path', str(trained / 'train'), '--dataset', record, '--crf', '--num_workers', '2',
                   '--output_dir', str(folder)])
    return folder


def test_metrics_json(evaluated, trained, record, pairs):
    metrics = json.loads((evaluated / 'metrics.json').read_text())
    assert metrics['images'] == metrics['crf']['images'] == 5 and set(metrics['crf']) < set(metrics)
    assert [each['filename'] for each in metrics['per_image']] == [f'image{number}' for number in range(5)]
    for figures in (metrics, metrics['crf']):
        confusion = np.array(figures['confusion'])
        assert confusion.sum() == sum((label != 255).sum() for _, label in pairs)
        np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(
            np.concatenate([label.ravel() for _, label in pairs]), minlength=256)[:21])
        with np.errstate(invalid='ignore'):
            ious = np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion))
        assert figures['mean_iou'] == pytest.approx(np.nanmean(ious), rel=1e-12)
    ranked = sorted(metrics['per_image'], key=lambda each: each['mean_iou'])
    for end, expected in (('worst', ranked[:4]), ('best', ranked[:-5:-1])):
        assert [each['mean_iou'] for each in metrics[end]] == [each['mean_iou'] for each in expected]
        for rank, each in enumerate(metrics[end], start=1):
            assert each['stem'] == f'{end}_{rank}_{each["filename"]}'
            number = int(each['filename'][-1])
            assert each['mean_iou'] == metrics['per_image'][number]['mean_iou']
            assert each['crf_mean_iou'] == metrics['crf']['per_image'][number]['mean_iou']


def test_the_scorecard(evaluated, trained, record):
    card = json.loads((evaluated / 'metrics.json').read_text())['scorecard']
    checkpoint = find_checkpoint(str(trained / 'train'))
    files = b''.join(open(checkpoint + ending, 'rb').read() for ending in ('.index', '.data-00000-of-00001'))
    assert card['sha256'] == hashlib.sha256(files).hexdigest()
    assert (card['dataset'], card['images'], card['checkpoint'], card['step']) == (record, 5, checkpoint, 3)
    assert (card['vgg_weights_from'], card['seed'], card['settings']['batch_size']) == ('random start', 0, 2)
    assert (card['classes'], card['scales'], card['flip']) == (list(VOC_NAMES), [1], False)
    assert card['crf_parameters'] == {'iterations': 5, 'gaussian_xy': 10, 'gaussian_compat': 3, 'bilateral_xy': 50,
                                      'bilateral_rgb': 20, 'bilateral_compat': 10}
    assert card['packages']['numpy'] == np.__version__ and card['packages']['tensorflow'] == tf.__version__


def test_pictures_of_the_worst_and_best(evaluated, pairs):
    metrics = json.loads((evaluated / 'metrics.json').read_text())
    kinds = ('img', 'annotation', 'prediction', 'prediction_crfed', 'error', 'error_crfed')
    stems = {each['stem']: each['filename'] for each in metrics['worst'] + metrics['best']}
    assert len(stems) == 8
    assert sorted(os.listdir(evaluated)) == sorted(
        [f'{stem}_{kind}.jpg' for stem in stems for kind in kinds]
        + ['metrics.json', 'confusion.png', 'confusion_crf.png', 'my_worst_1_img.jpg', 'worst_1_notes.txt'])
    for stem, filename in stems.items():
        label = pairs[int(filename[-1])][1]
        for kind in kinds:
            picture = np.array(Image.open(evaluated / f'{stem}_{kind}.jpg')).astype(int)
            assert picture.shape == (*label.shape, 3)
            if kind in ('annotation', 'error', 'error_crfed') and (label == 255).any():
                assert np.abs(picture[label == 255] - (224, 224, 192)).mean() < 12
    assert np.array(Image.open(evaluated / 'confusion.png')).std() > 10


def test_an_evaluation_without_crf_takes_the_crfs_pictures_away(trained, flat_record, tmp_path):
    (tmp_path / 'confusion_crf.png').write_text('')
    evaluate.main(['--checkpoint_path', str(trained / 'train'), '--dataset', flat_record[0],
                   '--output_dir', str(tmp_path)])
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert metrics['crf'] is None and metrics['scorecard']['crf_parameters'] is None
    assert all(each['crf_mean_iou'] is None for each in metrics['worst'] + metrics['best'])
    assert not any('crf' in name for name in os.listdir(tmp_path))


# ------------------------------------------------------------------------------------------- own classes


@pytest.mark.slow
def test_an_evaluation_of_own_classes(camvid_run, camvid_record, pairs, tmp_path, capsys):
    shutil.copytree(camvid_run, tmp_path / 'run')
    evaluate.main(['--checkpoint_path', str(tmp_path / 'run'), '--dataset', camvid_record, '--crf',
                   '--scales', '0.5,1', '--flip'])
    printed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert printed[4:15] == list(CAMVID.names)
    metrics = json.loads((tmp_path / 'run' / 'evaluation' / 'metrics.json').read_text())
    assert list(metrics['per_class_iou']) == list(metrics['crf']['per_class_accuracy']) == list(CAMVID.names)
    labels = np.concatenate([label[label != 255] % 11 for _, label in pairs])
    assert np.sum(metrics['confusion'], axis=1).tolist() == np.bincount(labels).tolist()
    assert metrics['scorecard']['classes'] == list(CAMVID.names)
    assert (metrics['scorecard']['scales'], metrics['scorecard']['flip']) == ([0.5, 1], True)
    page = (tmp_path / 'run' / 'index.html').read_text()
    assert 'rgb(128, 0, 0)"></span>sky' in page and 'aeroplane' not in page


@pytest.fixture
def no_network(monkeypatch):
    """Fails if a network is built."""
    monkeypatch.setattr(evaluate, 'load_predictor', lambda *args: pytest.fail('a network was built'))


def write_names(path, names):
    path.write_text('\n'.join(names))
    return str(path)


def test_a_record_of_other_classes_is_named_before_anything_is_predicted(camvid_run, camvid_record, record, trained,
                                                                        tmp_path, no_network):
    checkpoint, other = (find_checkpoint(str(run / 'train')) for run in (camvid_run, trained))
    for found, path, message in (
            (checkpoint, record, f'{record}, without {record}.json (copy it as well, or give --classes FILE), has 21 '
                                 'classes, of which number 0 is background; '
                                 f'{checkpoint} has 11 classes, of which number 0 is sky: take'),
            (other, camvid_record, f'{camvid_record} has 11 classes, of which number 0 is sky; {other} has 21')):
        with pytest.raises(UserError, match=re.escape(message)):
            evaluate.evaluate(found, path)
    names = write_names(tmp_path / 'other.txt', ['heaven', *CAMVID.names[1:]])
    with pytest.raises(UserError, match=f'--classes {names} .* number 0 is heaven; the run of .* is sky'):
        evaluate.evaluate(checkpoint, camvid_record, classes_file=names)
    names = write_names(tmp_path / 'ten.txt', CAMVID.names[:10])
    with pytest.raises(UserError, match='10 classes'):
        evaluate.evaluate(checkpoint, camvid_record, classes_file=names)


def test_a_label_beyond_own_classes_is_no_void(camvid_run, tmp_path):
    """A record whose side file says 11 classes, although a pixel has the value 11."""
    record = write_record(tmp_path / 'a.record', [(np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 11, np.uint8))])
    classes.save_side_file(classes.side_file(record), CAMVID, 1, np.zeros(256, int))
    with pytest.raises(UserError, match='a.record: cannot be read or decoded .*write it again'):
        evaluate.evaluate(find_checkpoint(str(camvid_run)), record)


def test_a_checkpoint_away_from_its_run_takes_the_classes_flag(camvid_run, camvid_record, tmp_path):
    for path in (camvid_run / 'train').glob('model.ckpt-5.*'):
        shutil.copy(path, tmp_path)
    checkpoint = str(tmp_path / 'model.ckpt-5')
    with pytest.raises(UserError, match='has 11 classes, VOC 21; name them by --classes FILE'):
        evaluate.evaluate(checkpoint, camvid_record)
    names = write_names(tmp_path / 'classes.txt', CAMVID.names)
    evaluate.main(['--checkpoint_path', checkpoint, '--dataset', camvid_record, '--classes', names, '--output_dir',
                   str(tmp_path / 'out')])
    assert json.loads((tmp_path / 'out' / 'metrics.json').read_text())['scorecard']['classes'] == list(CAMVID.names)


# ------------------------------------------------------------------------------------------- the program


def test_a_checkpoint_of_another_network_is_named(tmp_path, record):
    with tf.Graph().as_default(), tf.Session() as session:
        variable = tf.get_variable('vgg_16/conv1/conv1_1/weights', [3, 3, 3, 64])
        session.run(variable.initializer)
        tf.train.Saver().save(session, str(tmp_path / 'other.ckpt'))
    with pytest.raises(UserError, match='other.ckpt: variable vgg_16/fc8/weights is missing'):
        evaluate.evaluate(str(tmp_path / 'other.ckpt'), record)


def test_the_script(trained, flat_record, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['evaluate.py', '--checkpoint_path', str(trained / 'train'), '--dataset',
                                      flat_record[0], '--output_dir', str(tmp_path / 'new')])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(evaluate.__file__, run_name='__main__')
    assert not ended.value.code and 'mean IoU' in capsys.readouterr().out
    assert {'metrics.json', 'confusion.png'} <= set(os.listdir(tmp_path / 'new'))
