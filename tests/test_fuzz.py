"""Mutated pictures and records through converter and reader: each is used, or refused in one line.

FUZZ_COUNT=5000 tries more than the default number.
"""
import contextlib
import os
import random
from pathlib import Path

import pytest
import tensorflow.compat.v1 as tf
from conftest import draw_pair, encode, write_examples

import convert_fcn_dataset
from datasets import records
from datasets.batches import Sampling, build_reader, run_input, training_batches
from utils import UserError

COUNT = int(os.environ.get('FUZZ_COUNT', 30))
IMAGE, LABEL = draw_pair(70, 50, 0)
JPEG, PNG = encode(IMAGE, format='JPEG', progressive=True), encode(LABEL, format='PNG')


def mutate(data, chance):
    """Changes, repeats or removes bytes in one to four places."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(data) + 1), chance.choice((1, 4, 16, 200))
        data[at:at + length] = chance.choice((
            chance.randbytes(length), b'\xff' * length, bytes(length), b'', data[at:at + length] * 2))
    return bytes(data[:chance.choice((len(data), len(data), chance.randrange(len(data) + 1)))])


@pytest.mark.parametrize('name', ['JPEGImages/a.jpg', 'SegmentationClass/a.png'])
def test_mutated_pictures_are_converted_or_refused_in_one_line(tmp_path, name, capfd):
    lists = tmp_path / 'ImageSets' / 'Segmentation'
    for folder in (tmp_path / 'JPEGImages', tmp_path / 'SegmentationClass', lists):
        folder.mkdir(parents=True)
    for split, image_id in (('train', 'a'), ('val', 'b')):
        (lists / f'{split}.txt').write_text(image_id)
        (tmp_path / 'JPEGImages' / f'{image_id}.jpg').write_bytes(JPEG)
        (tmp_path / 'SegmentationClass' / f'{image_id}.png').write_bytes(PNG)
    whole, refused = (tmp_path / name).read_bytes(), 0
    for number in range(COUNT):
        (tmp_path / name).write_bytes(mutate(whole, random.Random(number)))
        flags = ['--data_dir', str(tmp_path), '--output_dir', str(tmp_path / 'out'), '--num_workers', '1']
        with contextlib.suppress(UserError):
            convert_fcn_dataset.main([*flags, '--check'])
        capfd.readouterr()
        try:
            convert_fcn_dataset.main(flags)
        except UserError:
            refused += 1
            assert sum(line.startswith(str(tmp_path / name)) for line in capfd.readouterr().err.splitlines()) == 1
    assert refused > COUNT / 2


def mutated_record(path, number):
    """A record that is itself mutated, or whose only example has a mutated image, label or message."""
    chance, part = random.Random(number), number % 4
    parts = [mutate(data, chance) if part == place else data for place, data in enumerate((JPEG, PNG))]
    example = records.make_example(b'a', *parts, 70, 50)
    write_examples(path, [mutate(example, chance) if part == 2 else example])
    if part == 3:
        Path(path).write_bytes(mutate(Path(path).read_bytes(), chance))


@pytest.mark.slow
def test_mutated_records_are_read_or_refused_in_one_line(tmp_path):
    path, refused = str(tmp_path / 'a.record'), 0
    write_examples(path, [records.make_example(b'a', JPEG, PNG, 70, 50)])
    reader = build_reader(path, 1)
    crops = tf.data.make_initializable_iterator(training_batches(Sampling(path, 1, 1, 32, (1.0, 2.0, 3.0), 0)))
    next_crops = crops.get_next()
    with tf.Session() as session:
        for number in range(2 * COUNT):
            mutated_record(path, number)
            try:
                records.count_examples(path)
                session.run([reader.initializer, crops.initializer])
                run_input(session, (reader.next_example, next_crops), path)
            except UserError as error:
                refused += 1
                assert str(error).startswith(path) and '\n' not in str(error)
    assert refused > COUNT / 2
