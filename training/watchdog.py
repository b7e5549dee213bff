"""Watches a training run, and prints what looks wrong and what to try.

    watchdog = Watchdog(class_names)
    watchdog.see_loss(step, loss_per_pixel)

Uses NumPy alone: train.py hands it figures that it measures anyway.
"""
import collections
import math

import numpy as np


class Watchdog:
    """Warns of each of three problems at most once, in one line.

    1. collapse: nearly all pixels are predicted as one class, although the annotation has several.
    2. loss: the training loss rises, stays high, or exceeds that of a uniform prediction, log(number of classes).
    3. drift: the validation loss rises away from the training loss (overfitting).

    It compares means over many steps, because the losses of single batches differ by half. In the first few hundred
    steps on real data a slow loss and a single predicted class are normal, so it warns of them later only.
    """

    WINDOW = 50  # steps of a mean loss
    PATIENCE = 500  # steps without a lower mean loss
    LEAST_FALL = 0.02  # a mean loss counts as lower if it is lower by this share
    RISE = 2  # a mean loss has risen if it is this many times the lowest one
    COLLAPSE_STEPS = 300  # until here, predictions of a single class are normal
    COLLAPSE_IMAGES = 3  # validation images that are examined together
    COLLAPSE_SHARE = 0.99  # share of one class in the predicted pixels, if the annotation has less of it:
    COLLAPSE_ANNOTATED = 0.95
    DRIFT = 2  # the validation loss is this many times the training loss, in two consecutive evaluations
    LEAST_LOSS = 0.5  # nats per pixel; changes below are the noise of a trained network
    LEAST_DRIFT = 0.1  # nats per pixel, likewise

    def __init__(self, class_names, say=print):
        self.class_names, self.say = class_names, say
        self.uniform_loss = math.log(len(class_names))
        self.warned = set()
        self.losses = collections.deque(maxlen=self.WINDOW)
        self.steps_seen = 0
        self.lowest, self.lowest_step = math.inf, 0
        self.confusions = collections.deque()
        self.lowest_validation, self.training_then = math.inf, math.inf
        self.evaluations_apart = 0

    def warn(self, problem, step, text):
        if problem not in self.warned:
            self.warned.add(problem)
            self.say(f'watchdog: step {step}: {text}')

    def see_loss(self, step, loss_per_pixel):
        """Takes the loss of one training step; checks the mean once per window."""
        self.losses.append(loss_per_pixel)
        self.steps_seen += 1
        if self.steps_seen % self.WINDOW:
            return
        mean = float(np.mean(self.losses))
        if mean > self.uniform_loss and self.steps_seen > self.WINDOW:
            self.warn('loss', step, f'the loss per pixel is {mean:.3g}, more than the {self.uniform_loss:.3g} of a '
                                    'uniform prediction: try a much lower --learning_rate')
        elif mean > self.RISE * self.lowest and mean > self.LEAST_LOSS:
            self.warn('loss', step, f'the loss per pixel has risen to {mean:.3g}, from {self.lowest:.3g} around step '
                                    f'{self.lowest_step}: try a lower --learning_rate')
        elif mean < (1 - self.LEAST_FALL) * self.lowest:
            self.lowest, self.lowest_step = mean, step
        elif step - self.lowest_step >= self.PATIENCE and mean > self.uniform_loss / 3:
            self.warn('loss', step, f'the loss per pixel has not fallen since step {self.lowest_step} ({mean:.3g}): '
                                    'try a lower --learning_rate, pretrained weights with --checkpoint_path, or '
                                    'tools/overfit.py, which shows whether the labels fit the images')

    def see_predictions(self, step, confusion, num_images):
        """Takes the confusion matrix (see inference.scores) of validation images; checks the latest few together."""
        self.confusions.append((num_images, confusion))
        while sum(number for number, _ in self.confusions) - self.confusions[0][0] >= self.COLLAPSE_IMAGES:
            self.confusions.popleft()
        recent = sum(confusion for _, confusion in self.confusions)
        seen = sum(number for number, _ in self.confusions)
        if step < self.COLLAPSE_STEPS or seen < self.COLLAPSE_IMAGES or not recent.sum():
            return
        annotated, predicted = recent.sum(1) / recent.sum(), recent.sum(0) / recent.sum()
        most = int(predicted.argmax())
        if predicted[most] >= self.COLLAPSE_SHARE and annotated[most] < self.COLLAPSE_ANNOTATED:
            self.warn('collapse', step, f'{predicted[most]:.1%} of the predicted pixels are {self.class_names[most]}, '
                                        f'but only {annotated[most]:.1%} of the annotated ones: try a lower '
                                        '--learning_rate, or pretrained weights with --checkpoint_path')

    def see_validation_loss(self, step, loss_per_pixel):
        """Takes the loss of the complete validation record; compares it with the latest mean training loss."""
        training = float(np.mean(self.losses))
        if loss_per_pixel < self.lowest_validation:
            self.lowest_validation, self.training_then = loss_per_pixel, training
        apart = training < self.training_then and loss_per_pixel > max(self.DRIFT * training,
                                                                       training + self.LEAST_DRIFT)
        self.evaluations_apart = self.evaluations_apart + 1 if apart else 0
        if self.evaluations_apart == 2:
            self.warn('drift', step, f'the loss per pixel is {training:.3g} in training and {loss_per_pixel:.3g} in '
                                     f'validation, where it was {self.lowest_validation:.3g}: the network overfits; '
                                     'use the weights in OUT/best, or try more images or --weight_decay')
