import os
import signal
import subprocess
import sys

import numpy as np

import crf


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
    np.testing.assert_array_equal(crf.refine(image, probabilities_of(noise, 0.9), iterations=0), noise)


def test_crf_of_one_pixel():
    np.testing.assert_array_equal(
        crf.refine(np.zeros((1, 1, 3), np.uint8), np.array([[[0.1, 0.7, 0.2]]], np.float32)), [[1]])


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
