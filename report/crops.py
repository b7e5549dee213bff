"""Training crops on the results page: what the network gets, after augmentation, and the same under its labels."""
import os

import numpy as np

import utils
from inference import averaging

NUM_CROPS = 16
COLUMNS = 4
MAX_SIDE = 512  # pixels of a crop on the sheet; complete images may be large
GAP = 4


def write_crops(folder, examples, class_set):
    """Writes FOLDER/crops_img.jpg and FOLDER/crops_overlay.jpg, sheets of examples, list of (image uint8 [H, W, 3] RGB,
    label [H, W], 255 = void)."""
    overlays = [utils.overlay(image, label, class_set.palette, class_set.has_background) for image, label in examples]
    for name, pictures in (('img', [image for image, _ in examples]), ('overlay', overlays)):
        sheet = draw_sheet([averaging.shrink(picture, MAX_SIDE) for picture in pictures])
        utils.save_image(os.path.join(folder, f'crops_{name}.jpg'), sheet)


def draw_sheet(pictures):
    """Pictures, uint8 [H, W, 3] of any sizes, in rows of COLUMNS on white; uint8 [H', W', 3]."""
    height, width = np.max([picture.shape[:2] for picture in pictures], axis=0) + GAP
    sheet = np.full((-(-len(pictures) // COLUMNS) * height - GAP, COLUMNS * width - GAP, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // COLUMNS * height, number % COLUMNS * width
        sheet[top:top + picture.shape[0], left:left + picture.shape[1]] = picture
    return sheet
