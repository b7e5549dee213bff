"""Towers, and machines: several devices train as one."""
import csv
import ctypes
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import draw_pair, write_record

import train
import utils
import vgg
from datasets import batches as input_pipeline
from tools import measure_machines
from tools.measure_machines import find_ports
from training import checkpoints, cluster, recipes, towers
from utils import UserError

ROOT = os.path.dirname(train.__file__)
NETWORK = train.Network(fc_channels=8)
RATES = {'owner': 1e-4, 'paper': 1e-6, 'adamw': 1e-4, 'poly': 1e-2}  # at which one step moves weights visibly
CLASS_WEIGHTS = np.linspace(0.2, 3, 21).astype(np.float32)


@pytest.fixture(scope='module')
def uneven_record(tmp_path_factory):
    """Images that are void but for 16, 26, ... columns: parts of a batch differ in what counts."""
    pairs = [draw_pair(70, 80, number) for number in range(6)]
    for number, (_, label) in enumerate(pairs):
        label[:, 16 + 10 * number:] = 255
    return write_record(tmp_path_factory.mktemp('uneven') / 'uneven.record', pairs)


@pytest.fixture(scope='module')
def simple_record(tmp_path_factory):
    """Blocks of three classes that differ in brightness: quickly learnt."""
    random = np.random.RandomState(0)
    pairs = []
    for _ in range(8):
        label = np.kron(random.choice(3, (2, 3)), np.ones((32, 32), int)).astype(np.uint8)
        pairs.append((np.repeat(label[:, :, np.newaxis] * 120, 3, axis=2), label))
    return write_record(tmp_path_factory.mktemp('simple') / 'simple.record', pairs)


def take_steps(args, start, class_weights=None, steps=2):
    """Losses, losses per pixel and weights (dict by name) after steps from the weights `start`, or from random ones."""
    with tf.Graph().as_default():
        ops = train.build_training(args, NETWORK, 6, 0, class_weights,
                                   towers.place_here(args.num_gpus, args.batch_size))
        variables = tf.trainable_variables()
        with tf.Session(config=train.session_config(args)) as session:
            session.run(tf.global_variables_initializer())
            for variable in variables if start else ():
                variable.load(start[variable.op.name], session)
            before = {variable.op.name: session.run(variable) for variable in variables}
            found = [session.run([ops.loss, ops.loss_per_pixel, ops.train_op])[:2] for _ in range(steps)]
            return before, np.array(found), {variable.op.name: session.run(variable) for variable in variables}


@pytest.mark.parametrize('recipe, more', [
    *((recipe, []) for recipe in recipes.RECIPES), ('poly', ['--class_weights', 'median_frequency'])])
def test_two_towers_are_one_of_the_whole_batch(monkeypatch, uneven_record, recipe, more):
    monkeypatch.setattr(vgg, 'dropout', lambda inputs, *_: inputs)
    args = [train.parse_args(['--recipe', recipe, '--batch_size', '4', '--dataset_train', uneven_record,
                              '--learning_rate', str(RATES[recipe]), '--num_gpus', number, *more,
                              *(['--crop_size', '64'] if recipe != 'paper' else [])]) for number in '12']
    class_weights = CLASS_WEIGHTS if more else None
    start, losses, expected = take_steps(args[0], None, class_weights)
    _, found_losses, found = take_steps(args[1], start, class_weights)
    np.testing.assert_allclose(found_losses, losses, rtol=1e-5)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
        moved = np.linalg.norm(expected[name] - start[name])  # not so little that all would look alike
        assert np.linalg.norm(found[name] - expected[name]) <= 0.03 * moved + 1e-6, name


def test_the_towers_of_a_test_differ_in_what_counts(uneven_record):
    batches = input_pipeline.training_batches(uneven_record, 6, 4, 64, (0, 0, 0), seed=0)
    _, labels, _ = tf.data.make_one_shot_iterator(batches).get_next()
    with tf.Session() as session:
        counted = (session.run(labels) != 255).sum(axis=(1, 2))
    assert not 0.8 < counted[:2].sum() / counted[2:].sum() < 1.25


def test_towers_drop_different_places(monkeypatch, uneven_record):
    seeds = []
    monkeypatch.setattr(vgg, 'dropout', lambda inputs, layer, training, seed: seeds.append(seed) or inputs)
    args = train.parse_args(['--batch_size', '4', '--crop_size', '32', '--dataset_train', uneven_record, '--num_gpus',
                             '2', '--seed', '7'])
    train.build_training(args, NETWORK, 6, 0, placement=towers.place_here(2, 4))
    with tf.Session(config=train.session_config(args)) as session:
        session.run(tf.global_variables_initializer())
        found = session.run(seeds)
    assert [seed.tolist() for seed in found] == [[7, 0], [7, 0], [7, 1 << 32], [7, 1 << 32]]


def test_machines_read_the_parts_of_one_batch(uneven_record):
    def read(part):
        batches = input_pipeline.training_batches(uneven_record, 6, 5, 48, (0, 0, 0), seed=3, start_step=2, part=part)
        return tf.data.make_one_shot_iterator(batches).get_next()

    whole, *parts = read(None), read((0, 2)), read((2, 5))
    with tf.Session() as session:
        for _ in range(4):
            expected, first, second = session.run([whole, *parts])
            for tensor, *pieces in zip(expected, first, second):
                np.testing.assert_array_equal(np.concatenate(pieces), tensor)


def test_a_batch_that_does_not_divide_is_named():
    with pytest.raises(UserError, match='--batch_size 4 is the total of 3 devices, and does not divide by 3'):
        towers.place_here(3, 4)


def test_one_device_is_left_to_tensorflow():
    assert towers.place_here(None, 5) == towers.place_here(1, 5) == towers.HERE


@pytest.mark.parametrize('flags, number', [([], 8), (['--num_gpus', '1'], 1), (['--num_gpus', '3'], 3)])
def test_a_session_takes_no_more_gpus_than_it_is_to(monkeypatch, flags, number):
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind=None: [None] * 8)
    assert dict(train.session_config(train.parse_args(flags)).device_count) == {'GPU': number}


def test_variables_go_where_least_is_held():
    with tf.device(towers.VariablesApart(['/device:CPU:0', '/device:CPU:1'])):
        sizes = [tf.get_variable(f'v{number}', [size]) for number, size in enumerate((5, 3, 1, 2, 1))]
    assert [variable.device[-1] for variable in sizes] == list('01110')


@pytest.mark.parametrize('recipe', ['adamw', 'poly'])
def test_variables_in_parts_train_as_whole_ones_and_share_checkpoints(monkeypatch, tmp_path, uneven_record, recipe):
    """fc6 in two parts: its checkpoint is that of a whole one, and restored, it goes on from there."""
    monkeypatch.setattr(vgg, 'dropout', lambda inputs, *_: inputs)
    args = train.parse_args(['--recipe', recipe, '--batch_size', '2', '--dataset_train', uneven_record,
                             '--learning_rate', str(RATES[recipe]), '--weight_decay', '0.1', '--num_gpus', '2',
                             '--crop_size', '32'])
    whole = towers.place_here(2, 2)
    found = {}
    for name, placement in (('whole', whole), ('parts', whole._replace(parameters=['/CPU:0', '/CPU:1']))):
        with tf.Graph().as_default():
            ops = train.build_training(args, NETWORK, 6, 0, placement=placement)
            train.build_predictor(NETWORK)
            assert sum('fc6/weights' in variable.op.name for variable in tf.trainable_variables()) == (
                1 if name == 'whole' else 2)
            saver = tf.train.Saver()
            with tf.Session(config=train.session_config(args)) as session:
                session.run(tf.global_variables_initializer())
                if found:
                    checkpoints.restore(session, str(tmp_path / 'start-0'), tf.global_variables())
                else:
                    saver.save(session, str(tmp_path / 'start'), 0, write_meta_graph=False)
                session.run([ops.train_op, ops.ids])
                saver.save(session, str(tmp_path / name), 1, write_meta_graph=False)
        reader = tf.train.load_checkpoint(str(tmp_path / f'{name}-1'))
        found[name] = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}
    assert found['whole'].keys() == found['parts'].keys()
    for key, value in found['whole'].items():
        np.testing.assert_allclose(found['parts'][key], value, rtol=1e-4, atol=1e-5, err_msg=key)


def test_the_chief_predicts_with_copies_of_variables_that_are_elsewhere():
    network = train.Network(fc_channels=8)
    elsewhere = towers.HERE._replace(home='/CPU:0', parameters=['/CPU:1', '/CPU:2'])
    towers.cut_fc6(2)
    near = train.build_predictor(network)
    far, fetch_weights = towers.build_at_home(elsewhere, lambda: train.build_predictor(network))
    assert towers.build_at_home(towers.HERE, lambda: 'built') == ('built', [])
    assert len(fetch_weights) == len(train.network_variables()) - 1  # fc6's two parts are one copy
    assert not any('copy' in variable.name for variable in tf.global_variables())
    image = np.random.RandomState(0).randint(0, 256, (1, 40, 50, 3))
    kernel = tf.trainable_variables('vgg_16/fc8/conv_pool3/weights')[0]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for seed in range(2):
            session.run(kernel.assign(np.random.RandomState(seed).normal(0, 0.1, kernel.shape.as_list())))
            session.run(fetch_weights)
            found, expected = (session.run(one.probabilities, {one.image: image}) for one in (far, near))
            np.testing.assert_allclose(found, expected, atol=1e-6)
            assert expected.std() > 1e-3


# ------------------------------------------------------------------------------------------- TF_CONFIG


@pytest.mark.parametrize('text', [
    'no JSON', '[]', '{"cluster": 5}', '{"cluster": {"chief": ["a:1"]}}',
    '{"cluster": {"chief": ["a:1"]}, "task": {"type": "worker", "index": 0}}',
    '{"cluster": {"chief": ["a:1"]}, "task": {"type": "chief", "index": 1}}',
    '{"cluster": {"chief": ["a:1"]}, "task": {"type": "chief", "index": -1}}',
    '{"cluster": {"chief": ["a:1", "b:1"]}, "task": {"type": "chief", "index": 0}}',
    '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}',
    '{"cluster": {"chief": ["a:1"], "evaluator": ["b:1"]}, "task": {"type": "chief", "index": 0}}',
    '{"cluster": {"chief": ["a:65536"]}, "task": {"type": "chief", "index": 0}}',
    '{"cluster": {"chief": ["a"]}, "task": {"type": "chief", "index": 0}}'])
def test_a_tf_config_that_cannot_be_used_is_named(monkeypatch, text):
    monkeypatch.setenv('TF_CONFIG', text)
    with pytest.raises(UserError, match=r'^TF_CONFIG.*unset it to train on this machine alone$'):
        cluster.read_cluster()


@pytest.mark.parametrize('text', ['', '{}', '{"cluster": {}}'])
def test_without_a_cluster_this_machine_is_alone(monkeypatch, text):
    monkeypatch.setenv('TF_CONFIG', text)
    assert cluster.read_cluster() is None


def test_a_cluster_is_read(monkeypatch):
    monkeypatch.setenv('TF_CONFIG', '{"cluster": {"chief": ["a:1"], "worker": ["b:2", "[::1]:3"]}, '
                                    '"task": {"type": "worker", "index": 1}}')
    assert cluster.read_cluster() == ({'chief': ['a:1'], 'worker': ['b:2', '[::1]:3'], 'ps': []}, 'worker', 1)


@pytest.mark.parametrize('number', [0, 2])
def test_a_cluster_has_one_chief(monkeypatch, number):
    """None, as Keras's convention has it, where worker 0 is the chief."""
    monkeypatch.setenv('TF_CONFIG', json.dumps({'cluster': {'worker': ['a:1', 'b:1'], 'chief': ['c:1'] * number},
                                                'task': {'type': 'worker', 'index': 0}}))
    with pytest.raises(UserError, match=f'^TF_CONFIG has {number} chiefs, and must have one'):
        cluster.read_cluster()


# ------------------------------------------------------------------------------------------- what a chief looks at


def test_who_cannot_be_reached():
    port, = find_ports(1)
    assert cluster.find_fault(f'127.0.0.1:{port}') == 'Connection refused'
    with socket.create_server(('127.0.0.1', port)):
        assert cluster.find_fault(f'127.0.0.1:{port}') is None


def test_a_process_that_falls_silent_is_told_of_once(capsys):
    port, = find_ports(1)
    of_two = cluster.Cluster({'chief': ['a:1'], 'worker': [f'127.0.0.1:{port}'], 'ps': []}, 'chief', 0)
    with socket.create_server(('127.0.0.1', port)) as worker, cluster.watch(of_two, seconds=0.01):
        time.sleep(0.1)
        assert capsys.readouterr().out == ''
        worker.close()
        time.sleep(0.2)
    assert capsys.readouterr().out == f'worker 0 at 127.0.0.1:{port} cannot be reached (Connection refused)\n'


def test_records_that_differ_are_told_apart(tmp_path):
    first, second, third = (draw_pair(40, 40, number) for number in range(3))
    found = []
    for number, pairs in enumerate(([first, second], [first, second], [first, third], [first], [first] * 3)):
        with tf.Session() as session:
            found.append(tuple(session.run(input_pipeline.fingerprint(write_record(tmp_path / str(number), pairs)))))
    assert [count for count, _ in found] == [2, 2, 2, 1, 3]
    assert found[0] == found[1] and len(set(found)) == 4


def test_a_worker_with_another_record_is_named(monkeypatch, record):
    """Both on one server here: what each finds is made up."""
    address = f'127.0.0.1:{find_ports(1)[0]}'
    server = tf.train.Server({'chief': [address]}, 'chief', 0)
    monkeypatch.setattr(cluster, 'ask', lambda *_: tf.Session(server.target))
    marks = iter([(5, 1), (5, 1), (5, 1), (3, 2)])
    monkeypatch.setattr(input_pipeline, 'fingerprint',
                        lambda _: [tf.constant(number) for number in next(marks)])
    of_two = cluster.Cluster({'chief': [address], 'worker': ['b:1'], 'ps': ['c:1']}, 'chief', 0)
    cluster.check_records(of_two, record, whole=False)
    with pytest.raises(UserError, match='worker 0 at b:1 has another file of that name, with 3 examples'):
        cluster.check_records(of_two, record, whole=False)


def test_a_signal_that_came_with_a_loss_ends_the_chief_too():
    elsewhere = towers.HERE._replace(target=tf.train.Server.create_local_server().target)
    with pytest.raises(utils.Stopped, match='stopped by SIGTERM'), utils.StopSignals() as signals:
        signals.hold()
        with cluster.open_session(elsewhere, tf.ConfigProto(), signals):
            os.kill(os.getpid(), signal.SIGTERM)
            raise tf.errors.UnavailableError(None, None, 'lost')


# ------------------------------------------------------------------------------------------- what it costs


def test_the_weights_on_paper_are_the_networks():
    train.fcn(tf.zeros([1, 32, 32, 3]), NETWORK)
    assert measure_machines.count_weights(8) == sum(v.shape.num_elements() for v in tf.trainable_variables())
    assert round(measure_machines.count_weights(4096) / 1e6, 1) == 134.5


def test_time_on_the_line():
    assert measure_machines.seconds_moved(125e6, 3, 1e9, servers=1) == pytest.approx(2.0)  # 0.5 GB to two, and back
    assert measure_machines.seconds_moved(125e6, 4, 1e9, servers=4) == pytest.approx(0.75)
    rows = measure_machines.paper_rows(156.25e6, 10, [10])  # 0.625 GB, half a second each way at 10 Gbit/s
    assert rows[0][:5] == ['10 Gbit/s', '10', 'on one', '10', '10'] and rows[1][4] == f'{20 / 1.5:.4g}'


# ------------------------------------------------------------------------------------------- several processes


class Processes:
    """train.py as chief, worker and parameter server on this machine; all are killed at the end of the `with`.

    Args:
        folder: pathlib.Path, for what they print. flags: list of str, of train.py.
    """

    def __init__(self, folder, flags):
        self.folder, self.flags, self.running = folder, flags, {}
        self.cluster = {job: [f'127.0.0.1:{port}'] for job, port in zip(('chief', 'worker', 'ps'), find_ports(3))}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for job in list(self.running):
            self.kill(job)

    def start(self, *jobs):
        for job in jobs:
            config = json.dumps({'cluster': self.cluster, 'task': {'type': job, 'index': 0}})
            with open(self.folder / f'{job}.txt', 'a') as file:
                self.running[job] = subprocess.Popen(
                    [sys.executable, '-u', 'train.py', *self.flags], cwd=ROOT, stdout=file, stderr=file,
                    env={**os.environ, 'TF_CONFIG': config, 'CUDA_VISIBLE_DEVICES': ''}, preexec_fn=end_with_parent)

    def kill(self, job):
        process = self.running.pop(job)
        process.kill()
        process.wait()

    def wait(self, job, seconds=120):
        """The exit code of a process that ends by itself."""
        try:
            return self.running[job].wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f'{job} does not end: {self.text(job)[-3000:]}')

    def wait_for_step(self, step, seconds=120):
        """Waits until log.csv of the run in `folder` has a step of at least that number."""
        deadline = time.monotonic() + seconds
        while not any(number >= step for number in read_steps(self.folder)):
            assert self.running['chief'].poll() is None and time.monotonic() < deadline, self.text('chief')[-3000:]
            time.sleep(0.1)

    def text(self, job):
        return (self.folder / f'{job}.txt').read_text()


def end_with_parent():
    """Has this process killed when the one that started it is: Linux's PR_SET_PDEATHSIG, which is 1."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def read_steps(folder, name='log.csv'):
    try:
        with open(folder / 'train' / name, newline='') as file:
            return [int(row['step']) for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


def read_mean_iou(folder):
    with open(folder / 'train' / 'eval.csv', newline='') as file:
        return float(list(csv.DictReader(file))[-1]['mean_iou'])


def make_flags(record, folder, max_steps, *more):
    return ['--dataset_train', record, '--dataset_val', record, '--output_dir', str(folder), '--fc_channels', '8',
            '--batch_size', '2', '--crop_size', '32', '--max_steps', str(max_steps), '--summary_steps', '0', *more]


def test_workers_and_the_chief_may_die(tmp_path, record):
    """A worker, then the chief are killed and started again; all that is written is written once."""
    flags = make_flags(record, tmp_path, 60, '--log_steps', '1', '--save_steps', '5', '--val_steps', '20',
                       '--eval_steps', '30')
    with Processes(tmp_path, flags) as processes:
        processes.start('ps', 'worker', 'chief')
        processes.wait_for_step(7)
        processes.kill('worker')
        processes.start('worker')
        processes.wait_for_step(32)
        processes.kill('chief')  # its worker and server wait for it
        reached = max(read_steps(tmp_path))
        processes.start('chief')
        assert [processes.wait(job) for job in ('chief', 'worker', 'ps')] == [0, 0, 0]
    told = processes.text('chief')
    assert 'a worker is lost' in told
    resumed = [int(step) for step in re.findall(r'resumed from \S*model\.ckpt-(\d+)', told)]
    assert len(resumed) == 2 and 5 <= resumed[0] < 32 and reached - 6 <= resumed[1] <= reached + 1
    assert read_steps(tmp_path) == list(range(1, 61)) and read_steps(tmp_path, 'eval.csv') == [30, 60]
    with open(tmp_path / 'train' / 'log.csv', newline='') as file:
        assert all(math.isfinite(float(row['loss'])) for row in csv.DictReader(file))
    assert {name.split('_')[1] for name in os.listdir(tmp_path / 'eval')} == {'20', '40', '60'}
    assert sorted(checkpoints.list_steps(tmp_path / 'train')) == [50, 55, 60]
    for job in ('worker', 'ps'):
        assert not re.search('checkpoint|step|eval', processes.text(job).replace('127.0.0.1', ''))
    assert (tmp_path / 'index.html').exists()


def test_a_parameter_server_that_dies_ends_the_run(tmp_path, record):
    with Processes(tmp_path, make_flags(record, tmp_path, 1000, '--log_steps', '1', '--val_steps', '0')) as processes:
        processes.start('ps', 'worker', 'chief')
        processes.wait_for_step(3)
        processes.kill('ps')
        assert [processes.wait(job, 60) for job in ('chief', 'worker')] == [1, 1]
    for job in ('chief', 'worker'):
        last = processes.text(job).splitlines()[-1]
        assert last.startswith('train.py: error: ') and 'parameter server 0 at 127.0.0.1:' in last


def test_three_processes_learn_what_one_learns(tmp_path, simple_record):
    """Each from the same weights, for the same images: the examples are the same, what dropout drops is not."""
    def flags(name, steps, *more):
        return make_flags(simple_record, tmp_path / name, steps, '--log_steps', '50', '--val_steps', '0',
                          '--batch_size', '4', '--crop_size', '64', '--fc_channels', '64', *more)

    train.main(flags('start', 1))
    further = ['--eval_steps', '80', '--learning_rate', '3e-4', '--checkpoint_path', str(tmp_path / 'start')]
    train.main(flags('one', 80, *further))
    with Processes(tmp_path, flags('three', 80, *further)) as processes:
        processes.start('ps', 'worker', 'chief')
        assert [processes.wait(job, 150) for job in ('chief', 'worker', 'ps')] == [0, 0, 0]
    one, three = (read_mean_iou(tmp_path / name) for name in ('one', 'three'))
    assert one > 0.8 and abs(one - three) < 0.03


def test_a_chief_that_is_stopped_keeps_its_step_and_ends_all(tmp_path, record):
    """Without a parameter server: the chief holds the variables."""
    with Processes(tmp_path, make_flags(record, tmp_path, 1000, '--log_steps', '1', '--val_steps', '0')) as processes:
        del processes.cluster['ps']
        processes.start('worker', 'chief')
        processes.wait_for_step(3)
        processes.running['chief'].terminate()
        assert [processes.wait(job, 60) for job in ('chief', 'worker')] == [143, 1]
    last = processes.text('worker').splitlines()[-1]
    assert last.startswith('train.py: error: the chief has ended the run: stopped by SIGTERM after step ')
    step, = checkpoints.list_steps(tmp_path / 'train')
    assert step == max(read_steps(tmp_path))
