"""Mutates JPEGs, PNGs, records and checkpoints, and leads them through converter, reader and predict.py.

    python tests/fuzz.py --count 5000

Each input is made of the seed and its number alone. They are run one after the other in a process of their own, which
notes each before it begins: so a crash or a hang has a number, and the next process goes on after it. Counts by kind
and outcome come out as JSON; exit code 1 if anything crashed, hung, raised what is no clear line, or took too much
memory.
"""
import collections
import contextlib
import gc
import io
import json
import os
import random
import select
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.dirname(sys.path[0]))

import tensorflow.compat.v1 as tf
from conftest import draw_pair, encode, write_record

import convert_fcn_dataset
import predict
import train
import utils
from datasets import batches, classes, photos, records
from training import checkpoint_index

SECONDS_BOUND = 60  # for one input, or for all that comes before the first
MEMORY_BOUND = 2 ** 29  # bytes for one input, beyond what the process has before
NUMBERS = (0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fffffff, 0xffffffff)


# ------------------------------------------------------------------------------------------- mutations


def mutate(data, random):
    """Changes bytes in up to eight ways, and says nothing of the format."""
    data = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 8))):
        at, length = random.randrange(len(data) + 1), random.choice((1, 1, 4, 16, 200))
        way = random.randrange(6)
        if way == 0 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif way == 1:
            data[at:at + length] = random.randbytes(length)
        elif way == 2:
            data[at:at + 4] = struct.pack(random.choice('<>') + 'I', random.choice(NUMBERS))
        elif way == 3:
            del data[at:at + length]
        elif way == 4:
            data[at:at] = data[at:at + length] * random.choice((1, 2, 50))
        elif random.random() < 0.3:
            del data[at:]
    return bytes(data)


def mend_png(data):
    """A PNG with the right checksums, as far as its chunks can be told apart."""
    data, position = bytearray(data), 8
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position:position + 4], 'big')
        if end + 4 > len(data):
            break
        data[end:end + 4] = struct.pack('>I', zlib.crc32(data[position + 4:end]))
        position = end + 4
    return bytes(data)


def mend_index(index, handles):
    """A checkpoint's index with the right checksums of the blocks at `handles`, (offset, size) each."""
    index = bytearray(index)
    for offset, size in handles:
        end = offset + size + 1
        index[end:end + 4] = records.masked_crc(bytes(index[offset:end]))
    return bytes(index)


# ------------------------------------------------------------------------------------------- programs


class Converter:
    """A VOC folder whose one train image or mask is replaced."""

    def __init__(self, folder):
        self.out, self.voc = os.path.join(folder, 'out'), os.path.join(folder, 'VOC')
        for name in ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'):
            os.makedirs(os.path.join(self.voc, name))
        self.files = {'.jpg': encode(draw_pair(70, 50, 0)[0], format='JPEG'),
                      '.png': encode(draw_pair(70, 50, 0)[1], format='PNG')}
        for split, name in (('train', 'a'), ('val', 'b')):
            Path(self.voc, 'ImageSets/Segmentation', f'{split}.txt').write_text(name)
            self.write(name, '.jpg', self.files['.jpg'])
            self.write(name, '.png', self.files['.png'])

    def write(self, name, ending, data):
        Path(self.voc, 'JPEGImages' if ending == '.jpg' else 'SegmentationClass', name + ending).write_bytes(data)

    def run(self, ending, data):
        """Converts, and checks too."""
        self.write('a', ending, data)
        flags = ['--data_dir', self.voc, '--output_dir', self.out, '--num_workers', '1']
        try:
            with contextlib.suppress(utils.UserError):
                convert_fcn_dataset.main([*flags, '--check'])
            convert_fcn_dataset.main(flags)
        finally:
            self.write('a', ending, self.files[ending])


class Reader:
    """Counts a record, then reads it whole and as a training batch."""

    def __init__(self, folder):
        self.path = os.path.join(folder, 'fuzz.record')
        write_record(self.path, [draw_pair(70, 50, 0), draw_pair(40, 90, 1)])
        self.record = Path(self.path).read_bytes()
        with tf.Graph().as_default():
            whole = tf.data.make_initializable_iterator(batches.whole_images(self.path))
            crops = tf.data.make_initializable_iterator(
                batches.training_batches(self.path, 2, 2, 32, (1.0, 2.0, 3.0), 0))
            self.steps = ((whole.initializer, whole.get_next()), (crops.initializer, crops.get_next()))
            self.session = tf.Session()

    def run(self, record):
        Path(self.path).write_bytes(record)
        num_examples = batches.count_examples(self.path)
        for initializer, batch in self.steps:
            self.session.run(initializer)
            for _ in range(min(num_examples, 3)):
                train.run_input(self.session, batch, self.path)

    def run_example(self, random):
        """One example with a mutated JPEG, PNG or message, in a record whose checksums are right."""
        image, label = encode(draw_pair(70, 50, 0)[0], format='JPEG'), encode(draw_pair(70, 50, 0)[1], format='PNG')
        part = random.randrange(3)
        image = mutate(image, random) if part == 0 else image
        label = mend_png(mutate(label, random)) if part == 1 else label
        example = records.make_example(b'a', image, label, 70, 50)
        file = io.BytesIO()
        records.write_example(file, mutate(example, random) if part == 2 else example)
        self.run(file.getvalue())


class Predictor:
    """A narrow network, photos, and its checkpoint."""

    def __init__(self, folder):
        self.photo, self.out = os.path.join(folder, 'photo'), os.path.join(folder, 'out')
        self.checkpoint = os.path.join(folder, 'narrow.ckpt')
        with tf.Graph().as_default():
            self.predictor = train.build_predictor(train.Network(fc_channels=8))
            self.session = tf.Session(config=train.session_config())
            self.session.run(tf.global_variables_initializer())
            tf.train.Saver(train.network_variables()).save(self.session, self.checkpoint, write_meta_graph=False)
        self.index_path, self.data_path = self.checkpoint + '.index', self.checkpoint + '.data-00000-of-00001'
        self.index = Path(self.index_path).read_bytes()
        self.blocks = self.find_blocks()

    def find_blocks(self):
        _, position = checkpoint_index.read_handle(self.index[-48:], 0)
        top, _ = checkpoint_index.read_handle(self.index[-48:], position)
        return [top, *(checkpoint_index.read_handle(handle, 0)[0]
                       for _, handle in checkpoint_index.read_block(self.index, top))]

    def run_photo(self, data):
        Path(self.photo).write_bytes(data)
        args = predict.parse_args(['--images', self.photo, '--output_dir', self.out, '--max_side', '200'])
        problems = predict.predict_all(self.session, self.predictor, [photos.Photo(self.photo, 'photo')],
                                       classes.VOC, args)
        if problems:
            raise utils.UserError(problems[0])

    def load(self):
        checkpoint = train.find_checkpoint(self.checkpoint)
        with tf.Graph().as_default(), tf.Session(config=train.session_config()) as session:
            train.load_predictor(session, checkpoint)

    def run_index(self, index):
        Path(self.index_path).write_bytes(index)
        try:
            self.load()
        finally:
            Path(self.index_path).write_bytes(self.index)

    def run_index_with_right_checksums(self, random):
        """Bytes inside the blocks change, so that they stay where they are."""
        index = bytearray(self.index)
        for _ in range(random.choice((1, 1, 2, 4))):
            offset, size = random.choice(self.blocks)
            index[offset + random.randrange(size)] = random.choice((0, 1, 0x7f, 0x80, 0xff, random.randrange(256)))
        self.run_index(mend_index(index, self.blocks))

    def run_data(self, random):
        size = os.path.getsize(self.data_path)
        places = {random.randrange(size) for _ in range(random.choice((1, 4, 100)))}
        with open(self.data_path, 'r+b') as file:
            before = {}
            for place in places:
                file.seek(place)
                before[place] = file.read(1)
                file.seek(place)
                file.write(random.randbytes(1))
            file.flush()
            try:
                self.load()
            finally:
                for place, byte in before.items():
                    file.seek(place)
                    file.write(byte)


def make_programs(folder):
    """Dict of kind to a function of a random.Random that makes an input and runs it."""
    converter, reader, predictor = (kind(tempfile.mkdtemp(dir=folder)) for kind in (Converter, Reader, Predictor))
    jpegs = [converter.files['.jpg'], encode(draw_pair(64, 48, 3)[0], format='JPEG', progressive=True)]
    pngs = [converter.files['.png'], encode(draw_pair(64, 48, 3)[0], format='PNG')]

    def mutated_png(random):
        data = mutate(random.choice(pngs), random)
        return mend_png(data) if random.random() < 0.7 else data

    return {
        'JPEG through converter': lambda random: converter.run('.jpg', mutate(random.choice(jpegs), random)),
        'PNG through converter': lambda random: converter.run('.png', mutated_png(random)),
        'JPEG through predict': lambda random: predictor.run_photo(mutate(random.choice(jpegs), random)),
        'PNG through predict': lambda random: predictor.run_photo(mutated_png(random)),
        'record through reader': lambda random: reader.run(mutate(reader.record, random)),
        'example through reader': reader.run_example,
        'index through predict': lambda random: predictor.run_index(mutate(predictor.index, random)),
        'index, checksums right': predictor.run_index_with_right_checksums,
        'data through predict': predictor.run_data,
    }


# ------------------------------------------------------------------------------------------- the process that may crash


def memory(field):
    """Bytes by a field of /proc/self/status: VmRSS is held now, VmHWM was at the most since clear_refs."""
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def run_child(first, count, seed, folder):
    """Runs the inputs first..count-1; writes a line before and one after each to stdout."""
    says, sys.stdout, sys.stderr = sys.stdout, open(os.devnull, 'w'), open(os.devnull, 'w')
    programs = list(make_programs(folder).items())
    for kind, program in programs:  # what is loaded at the first use counts for no input
        with contextlib.suppress(utils.UserError):
            program(random.Random(kind))
    for number in range(first, count):
        kind, program = programs[number % len(programs)]
        print(json.dumps({'number': number, 'kind': kind}), file=says, flush=True)
        with open('/proc/self/clear_refs', 'w') as file:
            file.write('5')
        before = memory('VmRSS')
        try:
            program(random.Random(f'{seed} {number}'))
            outcome = 'taken'
        except utils.UserError as error:
            outcome = 'refused' if '\n' not in str(error) else 'more than a line'
        except Exception as error:
            outcome = f'{type(error).__name__}: {error}'[:300]
        print(json.dumps({'outcome': outcome, 'memory': memory('VmHWM') - before}), file=says, flush=True)
        if number % 50 == 0:
            gc.collect()


# ------------------------------------------------------------------------------------------- the process that counts


def fuzz(first, count, seed):
    """Runs the inputs first..count-1 in as many processes as it takes.

    Returns:
        dict: 'counts' of kind to outcome to number, 'bad' (list of [number, kind, outcome]), 'peak_bytes', 'seconds'.
    """
    counts, bad, peak, started = collections.defaultdict(collections.Counter), [], 0, time.monotonic()
    while first < count:
        with tempfile.TemporaryDirectory() as folder:
            child = subprocess.Popen([sys.executable, __file__, '--child', str(first), str(count), str(seed), folder],
                                     stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            begun = None
            for event in read_events(child):
                if 'number' in event:
                    begun = event
                else:
                    outcome, taken = event['outcome'], event['memory']
                    outcome = 'too much memory' if taken > MEMORY_BOUND else outcome
                    peak = max(peak, taken)
                    note(counts, bad, begun, outcome)
                    first, begun = begun['number'] + 1, None
            child.kill()
            code = child.wait()
        if begun:
            note(counts, bad, begun, 'hang' if code == -9 else f'crash, exit code {code}')
            first = begun['number'] + 1
        elif first < count:
            raise RuntimeError(f'the process ended before input {first}, exit code {code}')
    return {'counts': counts, 'bad': bad, 'peak_bytes': peak, 'seconds': round(time.monotonic() - started)}


def read_events(child):
    """Yields what a child says, as dicts, until it ends or says nothing for too long."""
    buffered = b''
    while True:
        ready, _, _ = select.select([child.stdout], [], [], SECONDS_BOUND)
        data = os.read(child.stdout.fileno(), 1 << 16) if ready else b''
        if not data:
            return
        *lines, buffered = (buffered + data).split(b'\n')
        yield from map(json.loads, lines)


def note(counts, bad, begun, outcome):
    """Counts an outcome; lists it too unless the input was taken or refused in one line."""
    counts[begun['kind']][outcome] += 1
    if outcome not in ('taken', 'refused'):
        bad.append([begun['number'], begun['kind'], outcome])


def main():
    if sys.argv[1:2] == ['--child']:
        first, count, seed = map(int, sys.argv[2:5])
        run_child(first, count, seed, sys.argv[5])
        return None
    parser = utils.ArgumentParser('Leads mutated files through converter, reader and predict.py.')
    parser.add_argument('--first', type=utils.non_negative_int, default=0, help='number of the first input')
    parser.add_argument('--count', type=utils.positive_int, default=5000, help='number after the last input')
    parser.add_argument('--seed', type=utils.non_negative_int, default=0, help='another seed, other inputs')
    args = parser.parse_args()
    found = fuzz(args.first, args.count, args.seed)
    print(json.dumps(found, indent=1))
    return 1 if found['bad'] else None


if __name__ == '__main__':
    utils.run_program(main)
