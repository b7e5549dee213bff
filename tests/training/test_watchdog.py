import re

import numpy as np
import pytest

from datasets import classes
from training.watchdog import Watchdog


def watch(losses):
    """The watchdog's lines about a sequence of losses, list of str."""
    said = []
    watchdog = Watchdog(classes.VOC.names, said.append)
    for step, loss in enumerate(losses, start=1):
        watchdog.see_loss(step, float(loss))
    return said


def noisy(level, seed=0):
    """Losses of mean `level`, float [N], with the noise of small batches."""
    return level * np.random.RandomState(seed).lognormal(mean=-0.08, sigma=0.4, size=len(level))


STEPS = np.arange(1, 2001)
DEMO = np.maximum(3.04 * np.exp(-STEPS[:400] / 80), 0.17)  # nearly that of `make demo`
REAL = np.where(STEPS < 300, 1.4, np.maximum(1.4 * np.exp(-(STEPS - 300) / 800), 0.2))  # VOC begins like this


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('level', [DEMO, REAL, np.concatenate([DEMO, np.full(2000, 0.17)]), np.full(2000, 0.02)])
def test_the_watchdog_is_silent_on_a_healthy_loss(level, seed):
    assert watch(noisy(level, seed)) == []


@pytest.mark.parametrize('level, at, says', [
    (np.full(1500, 1.4), range(550, 1001), 'the loss per pixel has not fallen since step '),
    (np.concatenate([DEMO[:200], np.full(200, 1.6)]), range(250, 301), r'the loss per pixel has risen to 1\.[3-9]'),
    (np.concatenate([[3.04], np.full(300, 40)]), [100], 'more than the 3.04 of a uniform prediction'),
])
def test_the_watchdog_warns_once_that_the_loss_does_not_fall(level, at, says):
    said = watch(noisy(level))
    assert len(said) == 1 and '--learning_rate' in said[0] and '\n' not in said[0]
    found = re.fullmatch(rf'watchdog: step (\d+): .*{says}.*', said[0])
    assert found and int(found.group(1)) in at


def confusion_of(annotated, predicted):
    """The confusion matrix of 1000 pixels, given the shares of background; all others are person."""
    confusion = np.zeros((21, 21), np.int64)
    confusion[0, 0] = round(1000 * min(annotated, predicted))
    confusion[0, 15] = round(1000 * annotated) - confusion[0, 0]
    confusion[15, 0] = round(1000 * predicted) - confusion[0, 0]
    confusion[15, 15] = 1000 - confusion.sum()
    return confusion


@pytest.mark.parametrize('step, annotated, predicted, num_images, expected', [
    (300, 0.75, 0.995, 236, '99.5% of the predicted pixels are background, but only 75.0% of the annotated ones'),
    (300, 0.25, 0.0, 236, '100.0% of the predicted pixels are person, but only 75.0% of the annotated ones'),
    (300, 0.75, 0.98, 236, None),
    (299, 0.75, 0.995, 236, None),  # in the first steps a single class is normal
    (300, 0.97, 0.995, 236, None),  # the annotation is nearly all of that class as well
    (300, 0.75, 0.995, 2, None),  # too few images
])
def test_the_watchdog_and_predictions_of_one_class(step, annotated, predicted, num_images, expected):
    said = []
    watchdog = Watchdog(classes.VOC.names, said.append)
    watchdog.see_predictions(step, confusion_of(annotated, predicted), num_images)
    assert [line.split(': ')[2] for line in said] == ([expected] if expected else [])
    if expected:
        watchdog.see_predictions(step + 1, confusion_of(annotated, predicted), num_images)
        assert len(said) == 1 and '--learning_rate' in said[0]


def test_the_watchdog_looks_at_the_last_three_validation_images_together():
    said = []
    watchdog = Watchdog(classes.VOC.names, said.append)
    for step, predicted in ((300, 0.5), (350, 1), (400, 1), (450, 0.9), (500, 1), (550, 1)):
        watchdog.see_predictions(step, confusion_of(0.75, predicted), num_images=1)
    assert said == []
    watchdog.see_predictions(600, confusion_of(0.75, 1), num_images=1)
    assert len(said) == 1 and said[0].startswith('watchdog: step 600: 100.0%')


@pytest.mark.parametrize('training, validation, at', [
    ([1.0, 0.5, 0.3, 0.2, 0.1], [1.1, 0.7, 0.8, 0.9, 1.0], 4),
    ([1.0, 0.5, 0.3, 0.2, 0.1], [1.1, 0.7, 0.6, 0.55, 0.5], None),  # still falling
    ([1.0, 0.5, 0.3, 0.2, 0.1], [1.1, 0.7, 0.8, 0.6, 0.8], None),  # up twice, but not consecutively
    ([1.0, 0.9, 0.95, 1.0, 1.0], [1.1, 1.0, 2.5, 2.5, 2.5], None),  # training gets no better: another problem
    ([0.02, 0.015, 0.01, 0.01, 0.01], [0.05, 0.03, 0.04, 0.05, 0.06], None),  # next to nothing
])
def test_the_watchdog_and_overfitting(training, validation, at):
    said = []
    watchdog = Watchdog(classes.VOC.names, said.append)
    for number, (loss, validation_loss) in enumerate(zip(training, validation, strict=True)):
        for step in range(1, 51):
            watchdog.see_loss(number * 50 + step, loss)
        watchdog.see_validation_loss(number * 50 + 50, validation_loss)
    assert [line.split(': ')[1] for line in said] == ([f'step {50 * at}'] if at else [])
