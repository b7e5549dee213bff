"""How well predictions agree with annotations: confusion matrix, IoU and accuracy, along borders too."""
import cv2
import numpy as np

BOUNDARY_WIDTH = 5  # pixels on each side of a border that the boundary IoU counts
FIGURES = {'mean_iou': 'mean IoU', 'pixel_accuracy': 'pixel accuracy', 'mean_accuracy': 'mean accuracy',
           'frequency_weighted_iou': 'frequency-weighted IoU', 'boundary_iou': f'boundary IoU ({BOUNDARY_WIDTH} px)'}


def confusion_matrix(labels, predictions, number_of_classes):
    """Counts the pixels of an annotation and a prediction, both uint8 [H, W], by class.
    Annotated values of number_of_classes and above (255 is void) are not counted. Returns int64 [C, C]; row: annotated
    class, column: predicted class."""
    counted = labels < number_of_classes
    pairs = labels[counted].astype(np.int64) * number_of_classes + predictions[counted]
    return np.bincount(pairs, minlength=number_of_classes ** 2).reshape(number_of_classes, number_of_classes)


def iou_per_class(confusion):
    """Intersection over union of each class, float64 [C]; nan where neither annotation nor prediction has the class.
    Source: PASCAL VOC, true positives / (true + false positives + false negatives) over the pixels of all images
    together."""
    return _divide(np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion))


def accuracy_per_class(confusion):
    """Share of each class's annotated pixels that are predicted correctly, float64 [C]; nan if there are none."""
    return _divide(np.diag(confusion), confusion.sum(1))


def mean_iou(confusion):
    """Mean of iou_per_class over the classes that occur; nan if none does."""
    return _mean_of_known(iou_per_class(confusion))


def mean_accuracy(confusion):
    """Mean of accuracy_per_class over the annotated classes; nan if there is none."""
    return _mean_of_known(accuracy_per_class(confusion))


def pixel_accuracy(confusion):
    """Share of the annotated pixels that are predicted correctly; nan if there are none."""
    return float(_divide(np.diag(confusion).sum(), confusion.sum()))


def frequency_weighted_iou(confusion):
    """Mean of iou_per_class, each class weighted by its share of the annotated pixels; nan if there are none.
    Source: section 5 of Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", which also
    defines pixel accuracy and mean accuracy."""
    return float(_divide(np.nansum(confusion.sum(1) * iou_per_class(confusion)), confusion.sum()))


def _divide(hits, counts):
    with np.errstate(invalid='ignore'):  # 0 / 0 is nan
        return hits / counts


def _mean_of_known(values):
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float('nan')


def boundary_band(labels, number_of_classes, width):
    """The annotated pixels near a border between two classes ("trimap" in the literature), bool [H, W].

    In `labels`, uint8 [H, W], values of number_of_classes and above are void. VOC's annotators left the borders
    themselves void: each void pixel first takes the class of the nearest annotated one, so that the border runs along
    the middle of the void. The band leaves void pixels out. `width` is a distance in pixels, float; the two pixels that
    touch at a border have distance 0 from it, so width 1 is these alone.

    Source: Kohli, Ladicky, Torr, "Robust Higher Order Potentials for Enforcing Label Consistency", IJCV 2009; section 5
    of Kraehenbuehl and Koltun, NIPS 2011, evaluates the dense CRF in it.
    """
    annotated = labels < number_of_classes
    _, nearest = cv2.distanceTransformWithLabels(np.uint8(~annotated), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    class_of = np.zeros(nearest.max() + 1, np.uint8)
    class_of[nearest[annotated]] = labels[annotated]
    filled = class_of[nearest]
    neighbours = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    at_border = cv2.dilate(filled, neighbours) != cv2.erode(filled, neighbours)
    distances = cv2.distanceTransform(np.uint8(~at_border), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return annotated & (distances < width)


def cross_entropy(labels, probabilities):
    """Sum over the annotated pixels of -ln(probability of the annotated class), float, nats; at most 87.3 a pixel.
    labels: uint8 [H, W], void from C on; probabilities: float32 [H, W, C]. Divided by the number of annotated pixels it
    is the loss per pixel of training."""
    annotated = labels < probabilities.shape[-1]
    of_label = probabilities[annotated, labels[annotated]]
    # A probability of 0 has underflowed: it counts as the smallest normal float32.
    return float(-np.log(np.maximum(of_label, np.finfo(np.float32).tiny), dtype=np.float64).sum())


class Score:
    """Adds up the confusion matrices of a set of images."""

    def __init__(self, number_of_classes, boundary_width=BOUNDARY_WIDTH):
        self.boundary_width = boundary_width  # see boundary_band
        self.confusion = np.zeros((number_of_classes, number_of_classes), np.int64)  # over all pixels
        self.boundary_confusion = np.zeros_like(self.confusion)  # over those of boundary_band
        self.image_ious = []  # the mean_iou of each image; nan for one that is all void

    def add(self, labels, predictions):
        """Adds one image's annotation and prediction, both uint8 [H, W]. Returns the image's mean_iou."""
        number_of_classes = len(self.confusion)
        confusion = confusion_matrix(labels, predictions, number_of_classes)
        band = boundary_band(labels, number_of_classes, self.boundary_width)
        self.confusion += confusion
        self.boundary_confusion += confusion_matrix(labels[band], predictions[band], number_of_classes)
        self.image_ious.append(mean_iou(confusion))
        return self.image_ious[-1]

    def figures(self):
        """The scores over all pixels, dict with the keys of FIGURES to float in 0..1; nan without pixels."""
        return {'mean_iou': mean_iou(self.confusion),
                'pixel_accuracy': pixel_accuracy(self.confusion),
                'mean_accuracy': mean_accuracy(self.confusion),
                'frequency_weighted_iou': frequency_weighted_iou(self.confusion),
                'boundary_iou': mean_iou(self.boundary_confusion)}
