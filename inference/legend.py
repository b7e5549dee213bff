"""A photo under its classes' colours, with a legend that names them."""
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import utils
from inference import fonts


def draw_overlay(image, labels, class_set):
    """Draws the colours of `labels`, uint8 [H, W], over a photo, uint8 RGB [H, W, 3], and a legend below it.
    Returns uint8 RGB, at least as large as the photo."""
    height, width = labels.shape
    legend = draw_legend(np.unique(labels), class_set, width, max(16, round((height * width) ** 0.5 / 40)))
    canvas = Image.new('RGB', (legend.shape[1], height + legend.shape[0]), 'white')
    canvas.paste(Image.fromarray(utils.overlay(image, labels, class_set.palette, class_set.has_background)))
    canvas.paste(Image.fromarray(legend), (0, height))
    return np.array(canvas)


def draw_legend(labels, class_set, width, text_size):
    """Draws a coloured square and the label of each class except a background, which an overlay does not colour.
    `text_size` is the height of the letters, `width` that of a row, both ints, in pixels; an entry that is wider has a
    row of its own. Returns uint8 RGB [H, W, 3], W >= width."""
    gap, texts = text_size // 2, fonts.choose(class_set.names)
    entries = [(*texts[index], class_set.colours[index]) for index in labels if index or not class_set.has_background]
    entries = entries or [('background only', fonts.DEJAVU, (255, 255, 255))]
    entries = [(text, ImageFont.truetype(font, text_size), colour) for text, font, colour in entries]
    extents = [text_size + gap + int(font.getlength(text)) + 2 * gap for text, font, _ in entries]
    width = max(width, gap + max(extents))
    corners = place_in_rows(extents, width, start=gap, row_height=text_size + gap)

    legend = Image.new('RGB', (width, corners[-1][1] + text_size + gap), 'white')
    draw = ImageDraw.Draw(legend)
    for (x, y), (text, font, colour) in zip(corners, entries):
        draw.rectangle((x, y, x + text_size, y + text_size), fill=colour, outline='black')
        draw.text((x + text_size + gap, y + text_size // 2), text, 'black', font, anchor='lm')
    return np.array(legend)


def place_in_rows(extents, width, start, row_height):
    """Top left corners (x, y) of entries of these widths, from left to right and row by row; ints, pixels."""
    corners, x, y = [], start, start
    for extent in extents:
        if x > start and x + extent > width:
            x, y = start, y + row_height
        corners.append((x, y))
        x += extent
    return corners
