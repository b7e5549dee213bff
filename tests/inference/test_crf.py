import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pydensecrf import densecrf
from pydensecrf.utils import unary_from_softmax

from datasets import classes
from inference import crf
from report import validation
from utils import UserError


def two_colours(height=40, width=60):
    """A red left half and a blue right half, and their label map 1 | 2."""
    labels = np.where(np.arange(width) < width // 2, 1, 2) * np.ones((height, 1), int)
    image = np.where(labels[:, :, np.newaxis] == 1, (200, 30, 30), (30, 30, 200)).astype(np.uint8)
    return image, labels


def probabilities_of(labels, certainty):
    """Softmax map float32 [H, W, 3] that gives `certainty` to each pixel's label."""
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


def test_a_pool_gives_what_refine_gives():
    image, labels = two_colours()
    rng = np.random.RandomState(0)
    scores = rng.normal(0, 1, (*labels.shape, 21)) + 6 * np.eye(21)[np.where(labels == labels.max(), 20, 3)]
    probabilities = (np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)).astype(np.float32)
    with crf.start_processes(1) as pool:
        refined = crf.submit(pool, image, probabilities).result()
    assert refined.dtype == np.uint8 and set(np.unique(refined)) == {3, 20}
    np.testing.assert_array_equal(refined, crf.refine(image, probabilities))


def test_a_pool_refines_with_other_parameters():
    image, labels = two_colours()
    noise = np.random.RandomState(0).randint(0, 3, labels.shape)
    with crf.start_processes(1) as pool:
        refined = crf.submit(pool, image, probabilities_of(noise, 0.9), crf.Parameters(iterations=0)).result()
    np.testing.assert_array_equal(refined, noise)


def test_validation_pictures_take_parameters(tmp_path):
    image, labels = two_colours()
    noisy = np.where(np.random.RandomState(1).rand(40, 60) < 0.9, labels, 0)
    probabilities = probabilities_of(noisy, 0.6)
    for parameters, expected in ((crf.DEFAULTS, labels), (crf.Parameters(iterations=0), noisy)):
        validation.write_validation(str(tmp_path), 1, image, labels.astype(np.uint8), probabilities,
                                    classes.make_class_set(('a', 'b', 'c')), parameters)
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / 'val_1_prediction_crfed.png')), expected)


# ------------------------------------------------------------------------------------------- a file of parameters

DEEPLABS = {'iterations': 10, 'gaussian_xy': 3, 'gaussian_compat': 3, 'bilateral_xy': 140, 'bilateral_rgb': 5,
            'bilateral_compat': 4.5}


def test_read_parameters(tmp_path):
    path = tmp_path / 'crf.json'
    path.write_text(json.dumps({**DEEPLABS, 'found': {'trials': 3}}))
    parameters = crf.read_parameters(str(path))
    assert parameters == (10, 3, 3, 140, 5, 4.5) and parameters._asdict() == DEEPLABS
    assert crf.read_parameters(None) == (5, 10, 3, 50, 20, 10)


@pytest.mark.parametrize('changes, told', [
    ({'bilateral_xy': None}, 'bilateral_xy is missing'),
    ({'sigma': 3}, "knows a parameter 'sigma', which there is not"),
    ({'iterations': 2.5}, 'iterations is 2.5, not a whole number from 0 to 1000'),
    ({'iterations': True}, 'iterations is true, not a whole number from 0 to 1000'),
    ({'iterations': 10 ** 9}, 'iterations is 1000000000, not a whole number from 0 to 1000'),
    ({'gaussian_xy': 0}, 'gaussian_xy is 0, not a number from 0.1 to 10000'),
    ({'gaussian_xy': 1e-30}, 'gaussian_xy is 1e-30, not a number from 0.1 to 10000'),
    ({'gaussian_compat': -1}, 'gaussian_compat is -1, not a number from 0 to 10000'),
    ({'bilateral_rgb': float('nan')}, 'bilateral_rgb is NaN, not a number from 0.1 to 10000'),
    ({'bilateral_rgb': float('inf')}, 'bilateral_rgb is Infinity, not a number from 0.1 to 10000'),
    ({'bilateral_compat': '10'}, 'bilateral_compat is "10", not a number from 0 to 10000'),
    ({'bilateral_compat': [[1]]}, 'bilateral_compat is [[1]], not a number from 0 to 10000')])
def test_parameters_that_are_none_are_one_line(tmp_path, changes, told):
    path = tmp_path / 'crf.json'
    path.write_text(json.dumps({name: value for name, value in {**DEEPLABS, **changes}.items() if value is not None}))
    with pytest.raises(UserError) as caught:
        crf.read_parameters(str(path))
    assert str(caught.value) == f'--crf_params {path}: {told}; name a file that tools/search_crf.py wrote'


@pytest.mark.parametrize('content, told', [
    (b'', 'is no JSON'), (b'{"iterations": 5', 'is no JSON'),
    (b'\xff\xfe', 'is no JSON'), (b'[' * 10 ** 5, 'is no JSON'),
    (b'[1]', 'is no JSON object'), (b'null', 'is no JSON object'), (b'{}', 'iterations is missing')])
def test_files_that_hold_no_parameters_are_one_line(tmp_path, content, told):
    path = tmp_path / 'crf.json'
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        crf.read_parameters(str(path))
    assert str(caught.value) == f'--crf_params {path}: {told}; name a file that tools/search_crf.py wrote'


def test_a_file_of_parameters_that_is_none(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    for name, told in (('missing.json', 'No such file or directory'), ('pipe', 'is no file'), ('', 'is no file')):
        path = os.path.join(tmp_path, name)
        with pytest.raises(UserError) as caught:
            crf.read_parameters(path)
        assert str(caught.value) == f'--crf_params {path}: {told}; name a file that tools/search_crf.py wrote'


@pytest.mark.parametrize('extreme', [crf.LIMITS._replace(**{name: bounds[side]
                                                            for name, bounds in crf.LIMITS._asdict().items()})
                                     for side in (0, 1)])
def test_the_limits_of_parameters_are_bearable(extreme):
    """An iteration count of 1000 is bearable, and takes long; it is cut here."""
    image, labels = two_colours()
    refined = crf.refine(image, probabilities_of(labels, 0.9), extreme._replace(iterations=min(extreme.iterations, 5)))
    assert refined.shape == labels.shape and refined.max() <= 2


def test_processes_end_with_a_killed_parent():
    """kill -9 of the parent leaves no process behind."""
    program = ('import os, signal, crf\n'
               'with crf.start_processes(1) as pool:\n'
               '    print(pool.submit(os.getpid).result(), flush=True)\n'
               '    os.kill(os.getpid(), signal.SIGKILL)\n')
    # The worker inherits stdout: the pipe's end says that both are gone.
    done = subprocess.run([sys.executable, '-c', program], cwd=os.path.dirname(crf.__file__), stdout=subprocess.PIPE,
                          timeout=60)
    assert done.returncode == -signal.SIGKILL and int(done.stdout) > 0
