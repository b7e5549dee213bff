"""The pictures of an evaluation; tests/test_evaluate.py has those of a complete one."""
import numpy as np
import pytest
from PIL import Image

from datasets import classes
from report import evaluation


@pytest.mark.parametrize('filename, expected', [
    ('2007_000033', '2007_000033'), ('../a b/图 "<i>.jpg', '_a_b_i_jpg'), ('x' * 300, 'x' * 100)])
def test_safe_name(filename, expected):
    assert evaluation.safe_name(filename) == expected


@pytest.mark.parametrize('number', [1, 61])
def test_a_confusion_matrix_of_any_number_of_classes(number, tmp_path):
    path, names = str(tmp_path / 'confusion.png'), ['$a$ {\\', '_^', *map(str, range(252))]
    evaluation.draw_confusion(path, 3 * np.eye(number, dtype=np.int64), names[:number], '')
    with Image.open(path) as picture:
        assert 600 < picture.height < picture.width < 5000


def test_pictures_are_in_the_colours_of_own_classes(tmp_path):
    class_set = classes.make_class_set(('sky', 'road'), [(10, 200, 250), (90, 80, 70)])
    label = np.zeros((40, 40), np.uint8)
    label[20:], label[18:22] = 1, 255
    sample = evaluation.Sample('a', np.zeros((40, 40, 3), np.uint8), label, {'plain': np.zeros_like(label)}, {})
    evaluation.write_sample(str(tmp_path), 'a', sample, class_set)
    annotation, prediction, errors = (np.array(Image.open(tmp_path / f'a_{name}.jpg')).astype(int)
                                      for name in ('annotation', 'prediction', 'error'))
    for picture, row, colour in ((annotation, 5, (10, 200, 250)), (annotation, 35, (90, 80, 70)),
                                 (prediction, 35, (10, 200, 250)), (errors, 5, (178, 178, 178)),
                                 (errors, 35, (220, 30, 30))):
        assert np.abs(picture[row, 20] - colour).max() <= 3
