import hashlib
import json
import math
import multiprocessing
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import CAMVID, write_record
from PIL import Image

import evaluate
import train
from datasets import classes
from inference import crf
from inference.scores import Score
from utils import UserError

VOC_NAMES = classes.VOC.names


def score_by_hand(folder, pairs, refine):
    """Confusion matrix counted pixel by pixel from the network's predictions."""
    confusion = np.zeros((21, 21), np.int64)
    with tf.Graph().as_default(), tf.Session() as session:
        predictor = train.load_predictor(session, train.find_checkpoint(str(folder / 'train')))
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


@pytest.mark.parametrize('with_crf', [False, True])
def test_evaluate_counts_every_pixel_of_every_image(trained, flat_record, with_crf):
    record, pairs = flat_record
    scores = evaluate.evaluate(train.find_checkpoint(str(trained / 'train')), record, with_crf).scores
    assert list(scores) == (['plain', 'crf'] if with_crf else ['plain'])
    for name, confusion in ((name, score.confusion) for name, score in scores.items()):
        np.testing.assert_array_equal(confusion, score_by_hand(trained, pairs, refine=name == 'crf'))
        assert confusion.sum() == sum((label != 255).sum() for _, label in pairs)


# ------------------------------------------------------------------------------------------- the CRF's processes


def random_predictions(number):
    """(example, probabilities) as of train.predict_record."""
    random = np.random.RandomState(0)
    for index in range(number):
        example = {'image': random.randint(0, 256, (12, 9 + index, 3)).astype(np.uint8), 'name': index}
        yield example, random.dirichlet(np.ones(21), (12, 9 + index)).astype(np.float32)


def test_refine_beside_is_refine_in_order_with_few_images_under_way():
    pulled = []

    def watched():
        for example, probabilities in random_predictions(9):
            pulled.append(example['name'])
            yield example, probabilities

    for index, ((example, maps), (_, probabilities)) in enumerate(
            zip(evaluate.refine_beside(watched(), num_workers=2), random_predictions(9), strict=True)):
        assert example['name'] == index and len(pulled) == min(index + 4, 9)  # twice the processes
        np.testing.assert_array_equal(maps['crf'], crf.refine(example['image'], probabilities))
        np.testing.assert_array_equal(maps['plain'], probabilities.argmax(axis=-1))
        assert maps['crf'].dtype == maps['plain'].dtype == np.uint8


def test_a_killed_crf_process_is_one_line():
    def predictions():
        for pair in random_predictions(3):
            yield pair
            multiprocessing.active_children()[0].kill()

    with pytest.raises(UserError, match='^a process of the CRF was killed.*--num_workers$'):
        list(evaluate.refine_beside(predictions(), num_workers=1))


def test_crf_processes_import_no_tensorflow(monkeypatch):
    """As if evaluate.py were the main program, which a process that starts afresh would run again."""
    main_program = sys.modules['__main__']
    monkeypatch.setattr(main_program, '__file__', evaluate.__file__, raising=False)
    monkeypatch.setattr(main_program, '__spec__', None)
    with crf.start_processes(1) as pool:
        pool.submit(crf.refine, np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 4), 0.25, np.float32)).result()
        assert not pool.submit(eval, '"tensorflow" in __import__("sys").modules').result()
    assert main_program.__file__ == evaluate.__file__


# ------------------------------------------------------------------------------------------- what is written


def score_of(rows, classes=21):
    """A Score of one image: rows of (annotated, predicted) pairs."""
    pairs = np.array(rows, np.uint8)
    score = Score(classes, boundary_width=1)
    score.add(np.ascontiguousarray(pairs[:, :, 0]), np.ascontiguousarray(pairs[:, :, 1]))
    return score


# The 3x3 example of test_utils.py.
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


def test_the_worst_and_the_best_are_kept_and_the_others_let_go():
    found = evaluate.Evaluation(classes.VOC, [], {}, [], [])
    for iou in (0.5, 0.1, math.nan, 0.9, 0.3, 0.7, 0.2, 0.8, 0.4, 0.6):
        evaluate.keep_extremes(found, evaluate.Sample(f'image{iou}', None, None, {}, {'plain': iou}))
    assert [sample.mean_ious['plain'] for sample in found.worst] == [0.1, 0.2, 0.3, 0.4]
    assert [sample.mean_ious['plain'] for sample in found.best] == [0.9, 0.8, 0.7, 0.6]


@pytest.mark.parametrize('filename, expected', [
    ('2007_000033', '2007_000033'), ('../a b/图 "<i>.jpg', '_a_b_i_jpg'), ('x' * 300, 'x' * 100)])
def test_safe_name(filename, expected):
    assert evaluate.safe_name(filename) == expected


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
    checkpoint = train.find_checkpoint(str(trained / 'train'))
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


@pytest.mark.parametrize('checkpoint, run_folder', [
    ('/runs/a/train/model.ckpt-3', '/runs/a'), ('runs/a/best/model.ckpt-3', 'runs/a'), ('train/model.ckpt-3', '.'),
    ('model.ckpt-3', None)])
def test_find_run_folder(checkpoint, run_folder):
    found = evaluate.find_run_folder(checkpoint)
    assert found == (run_folder and os.path.relpath(run_folder))


def test_mirrored_images_count_half(trained, flat_record):
    """By hand: the mean of what the network says to the image, and of what it says to the mirrored one, mirrored."""
    record, pairs = flat_record
    checkpoint = train.find_checkpoint(str(trained / 'train'))
    expected = np.zeros((21, 21), np.int64)
    with tf.Graph().as_default(), tf.Session() as session:
        predictor = train.load_predictor(session, checkpoint)
        for image, label in pairs:
            there, mirrored = (session.run(predictor.probabilities, {predictor.image: each[np.newaxis]})[0]
                               for each in (image, image[:, ::-1]))
            mean = (there + mirrored[:, ::-1]) / 2
            np.add.at(expected, (label[label != 255], mean.argmax(axis=-1)[label != 255]), 1)
    np.testing.assert_array_equal(evaluate.evaluate(checkpoint, record, False, flip=True).scores['plain'].confusion,
                                  expected)


@pytest.mark.parametrize('number', [1, 2, 254])
def test_a_confusion_matrix_of_any_number_of_classes(number, tmp_path):
    path, names = str(tmp_path / 'confusion.png'), ['$a$ {\\', '_^', *map(str, range(252))]
    evaluate.draw_confusion(path, 3 * np.eye(number, dtype=np.int64), names[:number], '')
    with Image.open(path) as picture:
        assert 600 < picture.height < picture.width < 5000


# ------------------------------------------------------------------------------------------- own classes


def test_an_evaluation_of_own_classes(camvid_run, camvid_record, pairs, tmp_path, capsys):
    shutil.copytree(camvid_run, tmp_path / 'run')
    evaluate.main(['--checkpoint_path', str(tmp_path / 'run'), '--dataset', camvid_record, '--crf',
                   '--scales', '0.5,1', '--flip'])
    printed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert printed[1:12] == list(CAMVID.names)
    metrics = json.loads((tmp_path / 'run' / 'evaluation' / 'metrics.json').read_text())
    assert list(metrics['per_class_iou']) == list(metrics['crf']['per_class_accuracy']) == list(CAMVID.names)
    labels = np.concatenate([label[label != 255] % 11 for _, label in pairs])
    assert np.sum(metrics['confusion'], axis=1).tolist() == np.bincount(labels).tolist()
    assert metrics['scorecard']['classes'] == list(CAMVID.names)
    assert (metrics['scorecard']['scales'], metrics['scorecard']['flip']) == ([0.5, 1], True)
    page = (tmp_path / 'run' / 'index.html').read_text()
    assert 'rgb(128, 0, 0)"></span>sky' in page and 'aeroplane' not in page


def test_pictures_are_in_the_colours_of_own_classes(tmp_path):
    class_set = classes.make_class_set(('sky', 'road'), [(10, 200, 250), (90, 80, 70)])
    label = np.zeros((40, 40), np.uint8)
    label[20:], label[18:22] = 1, 255
    sample = evaluate.Sample('a', np.zeros((40, 40, 3), np.uint8), label, {'plain': np.zeros_like(label)}, {})
    evaluate.write_sample(str(tmp_path), 'a', sample, class_set)
    annotation, prediction, errors = (np.array(Image.open(tmp_path / f'a_{name}.jpg')).astype(int)
                                      for name in ('annotation', 'prediction', 'error'))
    for picture, row, colour in ((annotation, 5, (10, 200, 250)), (annotation, 35, (90, 80, 70)),
                                 (prediction, 35, (10, 200, 250)), (errors, 5, (178, 178, 178)),
                                 (errors, 35, (220, 30, 30))):
        assert np.abs(picture[row, 20] - colour).max() <= 3


@pytest.fixture
def no_network(monkeypatch):
    """Fails if a network is built."""
    monkeypatch.setattr(train, 'load_predictor', lambda *args: pytest.fail('a network was built'))


def write_names(path, names):
    path.write_text('\n'.join(names))
    return str(path)


def test_a_record_of_other_classes_is_named_before_anything_is_predicted(camvid_run, camvid_record, record, trained,
                                                                        tmp_path, no_network):
    checkpoint, other = (train.find_checkpoint(str(run / 'train')) for run in (camvid_run, trained))
    for found, path, message in (
            (checkpoint, record, f'{record}, without {record}.json, has 21 classes, of which number 0 is background; '
                                 f'{checkpoint} has 11 classes, of which number 0 is sky: take'),
            (other, camvid_record, f'{camvid_record} has 11 classes, of which number 0 is sky; {other} has 21')):
        with pytest.raises(UserError, match=re.escape(message)):
            evaluate.evaluate(found, path, False)
    names = write_names(tmp_path / 'other.txt', ['heaven', *CAMVID.names[1:]])
    with pytest.raises(UserError, match=f'--classes {names} .* number 0 is heaven; the run of .* is sky'):
        evaluate.evaluate(checkpoint, camvid_record, False, classes_file=names)
    names = write_names(tmp_path / 'ten.txt', CAMVID.names[:10])
    with pytest.raises(UserError, match='10 classes'):
        evaluate.evaluate(checkpoint, camvid_record, False, classes_file=names)


def test_a_label_beyond_own_classes_is_no_void(camvid_run, tmp_path):
    """A record whose side file says 11 classes, although a pixel has the value 11."""
    record = write_record(tmp_path / 'a.record', [(np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 11, np.uint8))])
    classes.save_side_file(classes.side_file(record), CAMVID, 1, np.zeros(256, int))
    with pytest.raises(UserError, match='a.record: cannot be read or decoded .*write it again'):
        evaluate.evaluate(train.find_checkpoint(str(camvid_run)), record, False)


def test_a_checkpoint_away_from_its_run_takes_the_classes_flag(camvid_run, camvid_record, tmp_path):
    for path in (camvid_run / 'train').glob('model.ckpt-5.*'):
        shutil.copy(path, tmp_path)
    checkpoint = str(tmp_path / 'model.ckpt-5')
    with pytest.raises(UserError, match='has 11 classes, VOC 21; name them by --classes FILE'):
        evaluate.evaluate(checkpoint, camvid_record, False)
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
    with pytest.raises(UserError, match='other.ckpt: variable vgg_16/fc6/weights is missing'):
        evaluate.evaluate(str(tmp_path / 'other.ckpt'), record, False)


def test_the_script(trained, record, tmp_path):
    done = subprocess.run([sys.executable, os.path.join(os.path.dirname(train.__file__), 'evaluate.py'),
                           '--checkpoint_path', str(trained / 'train'), '--dataset', record, '--crf',
                           '--output_dir', str(tmp_path)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'mean IoU' in done.stdout and 'with CRF' in done.stdout
    assert {'metrics.json', 'confusion.png', 'confusion_crf.png'} <= set(os.listdir(tmp_path))
