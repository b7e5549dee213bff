"""The CRF against pydensecrf alone, in this process and in others; files of its parameters."""
import json
import multiprocessing
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lives import PATIENCE
from pydensecrf import densecrf
from pydensecrf.utils import unary_from_softmax

from inference import averaging, crf
from utils import UserError

ROOT = Path(__file__).resolve().parents[2]


def two_colours(height=40, width=60):
    """A red left half and a blue right half, and their label map 1 | 2."""
    labels = np.where(np.arange(width) < width // 2, 1, 2) * np.ones((height, 1), int)
    image = np.where(labels[:, :, np.newaxis] == 1, (200, 30, 30), (30, 30, 200)).astype(np.uint8)
    return image, labels


def probabilities_of(labels, certainty):
    """Softmax map float32 [H, W, 3] that gives each pixel's label the probability `certainty`."""
    return np.where(np.eye(3)[labels] == 1, certainty, (1 - certainty) / 2).astype(np.float32)


def test_crf_moves_a_border_to_where_the_colour_changes():
    image, labels = two_colours()
    prediction = np.roll(labels, 3, axis=1)
    prediction[:, :3] = 1  # the border lies 3 pixels too far to the right
    assert (prediction != labels).sum() == 3 * 40
    refined = crf.refine(image, probabilities_of(prediction, 0.6))
    assert refined.dtype == np.uint8 and refined.shape == (40, 60)
    np.testing.assert_array_equal(refined, labels)


def test_crf_removes_specks():
    image, labels = two_colours()
    prediction = labels.copy()
    prediction[5, 5], prediction[30, 50] = 0, 1
    np.testing.assert_array_equal(crf.refine(image, probabilities_of(prediction, 0.6)), labels)


def test_crf_without_iterations_is_the_most_probable_class():
    image, labels = two_colours()
    noise = np.random.RandomState(0).randint(0, 3, labels.shape)
    np.testing.assert_array_equal(crf.refine(image, probabilities_of(noise, 0.9), crf.Parameters(iterations=0)), noise)


def test_crf_of_one_pixel():
    np.testing.assert_array_equal(
        crf.refine(np.zeros((1, 1, 3), np.uint8), np.array([[[0.1, 0.7, 0.2]]], np.float32)), [[1]])


def refine_with_all_labels(image, probabilities, parameters):
    """pydensecrf alone."""
    height, width, number_of_classes = probabilities.shape
    field = densecrf.DenseCRF2D(width, height, number_of_classes)
    field.setUnaryEnergy(unary_from_softmax(np.ascontiguousarray(np.moveaxis(probabilities, -1, 0))))
    iterations, gaussian_xy, gaussian_compat, bilateral_xy, bilateral_rgb, bilateral_compat = parameters
    field.addPairwiseGaussian(sxy=gaussian_xy, compat=gaussian_compat)
    field.addPairwiseBilateral(sxy=bilateral_xy, srgb=bilateral_rgb, rgbim=np.ascontiguousarray(image),
                               compat=bilateral_compat)
    return np.array(field.inference(iterations)).argmax(axis=0).reshape(height, width)


@pytest.mark.parametrize('parameters, least_changed, least_equal', [
    ((5, 10, 3, 50, 20, 10), 0.15, 0.9999), ((10, 3, 3, 140, 5, 5), 0.07, 0.9995),
    ((5, 3, 1, 30, 10, 1), 0.0005, 0.9999)])
def test_leaving_labels_out_gives_what_all_of_them_give(parameters, least_changed, least_equal):
    """Blobs of 4 of 21 classes, 4 pixels from where they belong, on a noisy image of their colours.

    Each pixel's probabilities have a noise of their own, which no network's have: DeepLab's parameters part there.
    """
    rng = np.random.RandomState(0)
    labels = np.kron(rng.choice([0, 3, 8, 20], (6, 8)), np.ones((15, 15), int))
    image = np.clip(labels[:, :, np.newaxis] * [12, 5, 9] + rng.normal(0, 15, (90, 120, 3)), 0, 255).astype(np.uint8)
    scores = rng.normal(0, 0.7, (90, 120, 21)) + 4 * np.eye(21)[np.roll(labels, 4, axis=0)]
    probabilities = (np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)).astype(np.float32)
    refined = crf.refine(image, probabilities, crf.Parameters(*parameters))
    assert set(np.unique(refined)) <= {0, 3, 8, 20}
    assert (refined != probabilities.argmax(axis=-1)).mean() > least_changed  # the CRF has work to do
    assert (refined == refine_with_all_labels(image, probabilities, parameters)).mean() >= least_equal


def test_a_label_takes_part_that_is_probable_in_a_single_pixel():
    probabilities = np.empty((10, 10, 4), np.float32)
    probabilities[:] = [0.93, 0.02, 0.025, 0.025]
    assert crf.find_labels(probabilities).tolist() == [0]
    probabilities[7, 2] = 0.91, 0.02, 0.04, 0.03
    assert crf.find_labels(probabilities).tolist() == [0, 2, 3]
    assert crf.find_labels(probabilities, threshold=0.035).tolist() == [0, 2]


def test_where_no_label_is_probable_the_most_probable_takes_part():
    probabilities = np.full((5, 5, 60), 1 / 61, np.float32)
    probabilities[:, :, 17] = 2 / 61
    assert crf.find_labels(probabilities, threshold=0.05).tolist() == [17]
    image = np.zeros((5, 5, 3), np.uint8)
    assert (crf.refine(image, probabilities) == 17).all()


def test_labels_leave_when_an_iteration_has_made_them_improbable():
    """Of four labels the second is outvoted at once by its neighbours, the last two are alone in a half each."""
    softmax = np.full((10, 10, 4), 0.05, np.float32)
    softmax[:, :5, 2], softmax[:, 5:, 3] = 0.85, 0.85
    softmax[4, 2] = 0.05, 0.45, 0.45, 0.05
    field = densecrf.DenseCRF2D(10, 10, 4)
    field.addPairwiseGaussian(sxy=1, compat=8)
    labels, marginals = crf.infer(field, softmax.reshape(-1, 4), 2)
    assert labels.tolist() == [2, 3] and marginals.shape == (100, 2)
    np.testing.assert_allclose(marginals.sum(axis=-1), 1, rtol=1e-5)
    assert marginals.reshape(10, 10, 2)[4, 2, 0] > 0.9


@pytest.mark.parametrize('number', [2, 3, 4])
def test_few_labels_have_the_marginals_of_pydensecrf(number):
    softmax = np.random.RandomState(0).dirichlet(np.ones(number), 120).astype(np.float32)
    fields = [densecrf.DenseCRF2D(12, 10, number) for _ in range(2)]
    for field in fields:
        field.addPairwiseGaussian(sxy=2, compat=1)
    labels, marginals = crf.infer(fields[0], softmax, 3, threshold=1e-6)
    fields[1].setUnaryEnergy(unary_from_softmax(np.ascontiguousarray(softmax.T)))
    assert labels.tolist() == list(range(number))
    np.testing.assert_allclose(marginals, np.array(fields[1].inference(3)).T, rtol=1e-4)


# ------------------------------------------------------------------------------------------- many images


def random_predictions(number):
    """(example, probabilities) as of predictor.predict_record."""
    random = np.random.RandomState(0)
    for index in range(number):
        example = {'image': random.randint(0, 256, (12, 9 + index, 3)).astype(np.uint8), 'name': index}
        yield example, random.dirichlet(np.ones(21), (12, 9 + index)).astype(np.float32)


def test_refine_all_refines_in_order_with_few_images_in_memory():
    pulled = []

    def watched():
        for example, probabilities in random_predictions(9):
            pulled.append(example['name'])
            yield example, probabilities

    for index, ((example, maps), (_, probabilities)) in enumerate(
            zip(crf.refine_all(watched(), num_workers=2), random_predictions(9), strict=True)):
        assert example['name'] == index and len(pulled) == min(index + 4, 9)  # twice the processes
        np.testing.assert_array_equal(maps['crf'], crf.refine(example['image'], probabilities))
        np.testing.assert_array_equal(maps['plain'], probabilities.argmax(axis=-1))
        assert maps['crf'].dtype == maps['plain'].dtype == np.uint8


def test_large_images_are_refined_at_a_smaller_size_and_enlarged(monkeypatch):
    monkeypatch.setattr(crf, 'MAX_SIDE', 8)
    [(example, probabilities)] = random_predictions(1)
    [(_, maps)] = crf.refine_all([(example, probabilities)])
    np.testing.assert_array_equal(maps['plain'], probabilities.argmax(axis=-1))
    np.testing.assert_array_equal(maps['crf'], crf.refine(example['image'], probabilities))
    small = crf.refine(averaging.shrink(example['image'], 8), averaging.resize_probabilities(probabilities, (8, 6)))
    np.testing.assert_array_equal(maps['crf'], averaging.resize_labels(small, (12, 9)))


def test_a_killed_crf_process_is_one_line():
    def predictions():
        for pair in random_predictions(3):
            yield pair
            multiprocessing.active_children()[0].kill()

    with pytest.raises(UserError, match='^a process of the CRF was killed.*--num_workers$'):
        list(crf.refine_all(predictions(), num_workers=1))


def test_crf_processes_import_no_tensorflow(monkeypatch):
    """As if evaluate.py were the main program, whose file a fresh process would run again."""
    main_program, program = sys.modules['__main__'], str(ROOT / 'evaluate.py')
    monkeypatch.setattr(main_program, '__file__', program, raising=False)
    monkeypatch.setattr(main_program, '__spec__', None)
    with crf.start_processes(1) as pool:
        pool.submit(crf.refine, np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 4), 0.25, np.float32)).result()
        assert not pool.submit(eval, '"tensorflow" in __import__("sys").modules').result()
    assert main_program.__file__ == program


def test_processes_end_with_a_killed_parent():
    """kill -9 of the parent leaves no process behind."""
    program = ('import os, signal\nfrom inference import crf\n'
               'with crf.start_processes(1) as pool:\n'
               '    print(pool.submit(os.getpid).result(), flush=True)\n'
               '    os.kill(os.getpid(), signal.SIGKILL)\n')
    # The worker inherits stdout: the pipe's end says that both are gone.
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, stdout=subprocess.PIPE, timeout=PATIENCE)
    assert done.returncode == -signal.SIGKILL and int(done.stdout) > 0


# ------------------------------------------------------------------------------------------- a file of parameters

DEEPLABS = {'iterations': 10, 'gaussian_xy': 3, 'gaussian_compat': 3, 'bilateral_xy': 140, 'bilateral_rgb': 5,
            'bilateral_compat': 4.5}


def test_read_parameters(tmp_path):
    path = tmp_path / 'crf.json'
    path.write_text(json.dumps({**DEEPLABS, 'found': {'trials': 3}}))
    parameters = crf.read_parameters(str(path))
    assert parameters == (10, 3, 3, 140, 5, 4.5) and parameters._asdict() == DEEPLABS
    assert crf.read_parameters(None) == (5, 10, 3, 50, 20, 10)


ALL = 'must have the parameters ' + ', '.join(DEEPLABS) + ', and no others'


@pytest.mark.parametrize('changes, told', [
    ({'bilateral_xy': None}, ALL), ({'sigma': 3}, ALL),
    ({'iterations': 2.5}, 'iterations is 2.5, not an integer from 0 to 1000'),
    ({'iterations': 10 ** 9}, 'iterations is 1000000000, not an integer from 0 to 1000'),
    ({'gaussian_xy': 0}, 'gaussian_xy is 0, not a number from 0.1 to 10000'),
    ({'gaussian_compat': -1}, 'gaussian_compat is -1, not a number from 0 to 10000'),
    ({'bilateral_rgb': float('nan')}, 'bilateral_rgb is NaN, not a number from 0.1 to 10000'),
    ({'bilateral_compat': '10'}, 'bilateral_compat is "10", not a number from 0 to 10000')])
def test_parameters_that_cannot_be_used_are_one_line(tmp_path, changes, told):
    path = tmp_path / 'crf.json'
    path.write_text(json.dumps({name: value for name, value in {**DEEPLABS, **changes}.items() if value is not None}))
    with pytest.raises(UserError) as caught:
        crf.read_parameters(str(path))
    assert str(caught.value) == f'--crf_params {path}: {told}; name a file that tools/search_crf.py wrote'


@pytest.mark.parametrize('content, told', [
    (b'', 'Expecting value'), (b'{"iterations": 5', "Expecting ',' delimiter"),
    (b'\xff\xfe', "'utf-8' codec can't decode"), (b'[1]', 'must have the parameters'),
    (None, 'No such file or directory')])
def test_a_file_without_parameters_is_one_line(tmp_path, content, told):
    path = tmp_path / 'crf.json'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        crf.read_parameters(str(path))
    assert re.fullmatch(f'--crf_params {path}: {re.escape(told)}.*; name a file that tools/search_crf.py wrote',
                        str(caught.value))


@pytest.mark.parametrize('extreme', [crf.LIMITS._replace(**{name: bounds[side]
                                                            for name, bounds in crf.LIMITS._asdict().items()})
                                     for side in (0, 1)])
def test_the_limits_of_parameters_are_bearable(extreme):
    """An iteration count of 1000 is bearable, and takes long; it is cut here."""
    image, labels = two_colours()
    refined = crf.refine(image, probabilities_of(labels, 0.9), extreme._replace(iterations=min(extreme.iterations, 5)))
    assert refined.shape == labels.shape and refined.max() <= 2
