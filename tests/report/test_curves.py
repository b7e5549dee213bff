"""The curves' numbers and colours."""
import re

import numpy as np

from report import curves


def test_a_line_has_the_rows_with_a_number():
    rows = [{'step': 1.0, 'loss': 5.0}, {'step': 2.0, 'loss': None}, {'step': 3.0, 'loss': 4.0}]
    line, = curves.make_lines(('training', 'plain', rows, 'loss'), ('validation', 'crf', rows, 'mean_iou'))
    assert line.steps.tolist() == [1, 3] and line.values.tolist() == [5, 4] and not line.noisy


def test_a_curve_has_the_colours_of_the_page():
    rows = [{'step': float(step), 'loss': 1 / step, 'other': 1.0} for step in range(1, 30)]
    lines = curves.make_lines(('training', 'plain', rows, 'loss', True), ('validation', 'crf', rows, 'other'))
    svg = curves.draw_curve(curves.Curve('Loss', lines))
    assert svg.startswith('<svg') and '<script' not in svg
    assert {'plain', 'crf', 'muted', 'line'} <= set(re.findall(r'var\(--(\w+)\)', svg))
    assert not set(re.findall('#[0-9a-f]{6}', svg)) & set(curves.COLOURS['light'].values())


def test_thinning_keeps_both_ends():
    assert curves.thin(np.array([1, 2, 3]), 5).tolist() == [1, 2, 3]
    assert curves.thin(np.arange(101), 3).tolist() == [0, 50, 100]
