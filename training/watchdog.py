"""Watches a training run and says what looks wrong with it, and what to try.

    watchdog = Watchdog(class_names)
    watchdog.see_loss(step, loss_per_pixel)

Pure Python and NumPy: train.py tells it what it measures anyway.
"""
import collections
import math

import numpy as np


class Watchdog:
    """Says what looks wrong with a run and what to try: each of three things once, in one line.

    1. Nearly all predicted pixels are of one class, although the annotation's are not.
    2. The loss rises, or stays where a network is that knows little more than the classes' frequencies.
    3. The loss of the validation images goes up and away from that of the training crops.

    It compares means over many steps, because the losses of single batches differ by half, and gives a run time:
    the first hundreds of steps on real data bring little, and with them one class alone is nothing to worry about.
    """

    WINDOW = 50  # steps that a mean loss is taken over
    PATIENCE = 500  # steps without a lower mean loss
    LEAST_FALL = 0.02  # of the lowest mean loss, what counts as lower
    RISE = 2  # times the lowest mean loss
    COLLAPSE_STEPS = 300  # so long may a network predict one class
    COLLAPSE_IMAGES = 3  # validation images that must be of one class together
    COLLAPSE_SHARE = 0.99  # of the predicted pixels in one class; annotated, it is less than COLLAPSE_ANNOTATED
    COLLAPSE_ANNOTATED = 0.95
    DRIFT = 2  # times the training loss, in two evaluations on end
    LEAST_LOSS = 0.5  # nats a pixel; what happens below is noise of a network that has learnt
    LEAST_DRIFT = 0.1  # nats a pixel, likewise

    def __init__(self, class_names, say=print):
        self.class_names, self.say = class_names, say
        self.said = set()
        self.losses = collections.deque(maxlen=self.WINDOW)
        self.steps_seen = 0
        self.lowest, self.lowest_step = math.inf, 0
        self.confusions = collections.deque()
        self.lowest_validation, self.training_then = math.inf, math.inf
        self.evaluations_apart = self.evaluations_lost = 0

    def warn(self, trouble, step, text):
        if trouble not in self.said:
            self.said.add(trouble)
            self.say(f'watchdog: step {step}: {text}')

    def see_loss(self, step, loss_per_pixel):
        """Takes in the loss of one training step; looks at it once a window."""
        self.losses.append(loss_per_pixel)
        self.steps_seen += 1
        if self.steps_seen % self.WINDOW:
            return
        mean, knows_nothing = float(np.mean(self.losses)), math.log(len(self.class_names))
        if mean > knows_nothing and self.steps_seen > self.WINDOW:
            self.warn('loss', step, f'the loss per pixel is {mean:.3g}, more than the {knows_nothing:.3g} of a network '
                                    'that knows nothing: try a much lower --learning_rate')
        elif mean > self.RISE * self.lowest and mean > self.LEAST_LOSS:
            self.warn('loss', step, f'the loss per pixel has risen to {mean:.3g}, from {self.lowest:.3g} around step '
                                    f'{self.lowest_step}: try a lower --learning_rate')
        elif mean < (1 - self.LEAST_FALL) * self.lowest:
            self.lowest, self.lowest_step = mean, step
        elif step - self.lowest_step >= self.PATIENCE and mean > knows_nothing / 3:
            self.warn('loss', step, f'the loss per pixel has not fallen since step {self.lowest_step} ({mean:.3g}): '
                                    'try a lower --learning_rate, pretrained weights with --checkpoint_path, or '
                                    'tools/overfit.py, which shows whether the labels fit the images')

    def see_predictions(self, step, confusion, num_images):
        """Takes in the confusion matrix of one or more validation images; looks at the latest few together."""
        self.confusions.append((num_images, confusion))
        while sum(number for number, _ in self.confusions) - self.confusions[0][0] >= self.COLLAPSE_IMAGES:
            self.confusions.popleft()
        recent = sum(confusion for _, confusion in self.confusions)
        if (step < self.COLLAPSE_STEPS or not recent.sum()
                or sum(number for number, _ in self.confusions) < self.COLLAPSE_IMAGES):
            return
        annotated, predicted = recent.sum(1) / recent.sum(), recent.sum(0) / recent.sum()
        most = int(predicted.argmax())
        if predicted[most] >= self.COLLAPSE_SHARE and annotated[most] < self.COLLAPSE_ANNOTATED:
            self.warn('collapse', step, f'{predicted[most]:.1%} of the predicted pixels are {self.class_names[most]}, '
                                        f'of the annotated ones {annotated[most]:.1%}: try a lower --learning_rate, or '
                                        'pretrained weights with --checkpoint_path')

    def see_validation_loss(self, step, loss_per_pixel):
        """Takes in the loss of the whole validation record; compares it with the latest training losses."""
        training, knows_nothing = float(np.mean(self.losses)), math.log(len(self.class_names))
        self.evaluations_lost = self.evaluations_lost + 1 if loss_per_pixel > knows_nothing else 0
        if self.evaluations_lost == 2:
            self.warn('loss', step, f'the loss per pixel is {loss_per_pixel:.3g} in validation, more than the '
                                    f'{knows_nothing:.3g} of a network that knows nothing: try a lower --learning_rate')
        if loss_per_pixel < self.lowest_validation:
            self.lowest_validation, self.training_then = loss_per_pixel, training
        apart = training < self.training_then and loss_per_pixel > max(self.DRIFT * training,
                                                                       training + self.LEAST_DRIFT)
        self.evaluations_apart = self.evaluations_apart + 1 if apart else 0
        if self.evaluations_apart == 2:
            self.warn('drift', step, f'the loss per pixel is {training:.3g} in training and {loss_per_pixel:.3g} in '
                                     f'validation, where it was {self.lowest_validation:.3g}: the network learns its '
                                     'training images by heart; take OUT/best, or try more images or --weight_decay')
