"""The curves' numbers and colours."""
import re

import numpy as np

from report import curves


def test_running_mean_of_four_values():
    np.testing.assert_allclose(curves.running_mean(np.array([1., 2, 6, 4]), 1), [1, 3, 4, 4])
    np.testing.assert_allclose(curves.running_mean(np.array([1., 2, 6, 4, 7]), 9), [1, 3, 4, 17 / 3, 7])


def test_a_line_has_the_rows_with_a_number():
    rows = [{'step': 1.0, 'loss': 5.0}, {'step': 2.0, 'loss': None}, {'step': 3.0, 'loss': 4.0}]
    line, = curves.make_lines(('training', 'plain', rows, 'loss'), ('validation', 'crf', rows, 'mean_iou'))
    assert line.steps.tolist() == [1, 3] and line.values.tolist() == [5, 4] and not line.noisy


def test_dark_curves_differ_only_in_their_colours(tmp_path):
    rows = [{'step': float(step), 'loss': 1 / step, 'other': 1.0} for step in range(1, 30)]
    lines = curves.make_lines(('training', 'plain', rows, 'loss', True), ('validation', 'crf', rows, 'other'))
    curves.write_curves([curves.Curve('loss', 'Loss', lines, '')], str(tmp_path))
    light, dark = ((tmp_path / f'loss-{theme}.svg').read_text() for theme in ('light', 'dark'))
    assert len(set(curves.COLOURS['light'].values())) == len(curves.COLOURS['light'])
    assert re.sub('#[0-9a-f]{6}', '', light) == re.sub('#[0-9a-f]{6}', '', dark)
    for key in ('plain', 'crf', 'muted', 'line'):
        assert curves.COLOURS['light'][key] in light and curves.COLOURS['light'][key] not in dark
        assert curves.COLOURS['dark'][key] in dark


def test_thinning_keeps_both_ends():
    assert curves.thin([1, 2, 3], 3) == [1, 2, 3]
    assert curves.thin(list(range(101)), 3) == [0, 50, 100]
