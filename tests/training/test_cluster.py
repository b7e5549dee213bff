"""Several machines train as one: here several processes on this one."""
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import tensorflow.compat.v1 as tf
from conftest import read_log, short_run
from lives import PATIENCE, ROOT, end_with_parent

import train
import utils
import vgg
from inference.predictor import build_predictor
from inference.weights import network_variables
from training import checkpoints, cluster, towers
from utils import UserError

NARROW = tuple((name, repeats, channels // 8) for name, repeats, channels in vgg.BLOCKS)


def find_ports(number):
    """TCP ports that are free, list of int."""
    sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


# ------------------------------------------------------------------------------------------- TF_CONFIG


@pytest.mark.parametrize('text, reason', [
    ('no JSON', 'Expecting value: line 1'),
    ('[]', ''),
    ('{"cluster": 5}', ''),
    ('{"cluster": {"chief": ["a:1"]}}', "'task' is missing"),
    ('{"cluster": {"chief": ["a:1"]}, "task": {"type": "worker", "index": 0}}', 'its cluster has no worker 0'),
    ('{"cluster": {"chief": ["a:1"]}, "task": {"type": "chief", "index": 1}}', 'its cluster has no chief 1'),
    ('{"cluster": {"chief": ["a:1"]}, "task": {"type": "chief", "index": -1}}', 'its cluster has no chief -1'),
    ('{"cluster": {"chief": ["a:1", "b:1"]}, "task": {"type": "chief", "index": 0}}', 'it has 2 chiefs instead of one'),
    ('{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}', 'it has 0 chiefs instead of one'),
    ('{"cluster": {"chief": ["a:1"], "evaluator": ["b:1"]}, "task": {"type": "chief", "index": 0}}',
     'evaluator is not a task type'),
    ('{"cluster": {"chief": ["a"]}, "task": {"type": "chief", "index": 0}}', "'a' is not host:port")])
def test_a_malformed_tf_config_is_explained(monkeypatch, text, reason):
    monkeypatch.setenv('TF_CONFIG', text)
    with pytest.raises(UserError, match=rf'^TF_CONFIG cannot be used \({reason}.*unset it to train on this machine a'):
        cluster.read_cluster()


@pytest.mark.parametrize('text', ['', '{}', '{"cluster": {}}'])
def test_without_a_cluster_this_machine_trains_alone(monkeypatch, text):
    monkeypatch.setenv('TF_CONFIG', text)
    assert cluster.read_cluster() is None
    placements = []
    cluster.run(placements.append, tf.ConfigProto(), cluster.Job('no.record', 4, False, num_gpus=2))
    assert placements == [towers.place_here(2, 4)]


def test_a_cluster_is_read(monkeypatch):
    monkeypatch.setenv('TF_CONFIG', '{"cluster": {"chief": ["a:1"], "worker": ["b:2", "[::1]:3"]}, '
                                    '"task": {"type": "worker", "index": 1}}')
    found = cluster.read_cluster()
    assert found.addresses == {'chief': ['a:1'], 'worker': ['b:2', '[::1]:3'], 'ps': []}
    assert found.task == ('worker', 1, '[::1]:3')
    assert found.tasks('chief', 'worker') == [('chief', 0, 'a:1'), ('worker', 0, 'b:2'), ('worker', 1, '[::1]:3')]
    assert found.task.device == '/job:worker/replica:0/task:1'


@pytest.mark.parametrize('jobs, task, expected', [
    ({'worker': ['a:1', 'b:1', 'c:1']}, ('worker', 0), ('chief', 0, 'a:1')),
    ({'worker': ['a:1', 'b:1', 'c:1']}, ('worker', 1), ('worker', 0, 'b:1')),
    ({'worker': ['a:1', 'b:1', 'c:1'], 'chief': []}, ('worker', '2'), ('worker', 1, 'c:1')),
    ({'worker': ['a:1', 'b:1', 'c:1'], 'ps': ['d:1']}, ('ps', 0), ('ps', 0, 'd:1'))])
def test_g7_the_chief_of_a_managed_cluster(monkeypatch, jobs, task, expected):
    """Worker 0 where there are workers only."""
    monkeypatch.setenv('TF_CONFIG', json.dumps({'cluster': jobs, 'task': dict(zip(('type', 'index'), task)),
                                                'environment': 'cloud'}))
    found = cluster.read_cluster()
    assert found.task == expected
    assert found.addresses == {'chief': ['a:1'], 'worker': ['b:1', 'c:1'], 'ps': jobs.get('ps', [])}


def test_g7_a_single_worker_is_a_chief_alone(monkeypatch):
    monkeypatch.setenv('TF_CONFIG', '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}')
    assert cluster.read_cluster().task == ('chief', 0, 'a:1') and not cluster.read_cluster().tasks('worker', 'ps')
    monkeypatch.setenv('TF_CONFIG', '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}')
    with pytest.raises(UserError, match='its cluster has no worker 1'):
        cluster.read_cluster()


# ------------------------------------------------------------------------------------------- what a chief checks


def test_an_unreachable_task_is_found():
    port, = find_ports(1)
    assert cluster.find_fault(cluster.Task('worker', 0, f'127.0.0.1:{port}')) == 'Connection refused'


def test_a_signal_during_a_loss_ends_the_chief():
    elsewhere = towers.HERE._replace(target=tf.train.Server.create_local_server().target)
    with pytest.raises(utils.Stopped, match='stopped by SIGTERM'), utils.StopSignals() as signals:
        signals.hold()
        with cluster.open_session(elsewhere, tf.ConfigProto(), signals):
            os.kill(os.getpid(), signal.SIGTERM)
            raise tf.errors.UnavailableError(None, None, 'lost')


# ------------------------------------------------------------------------------------------- several processes


class Processes:
    """train.py as chief, worker and parameter server on this machine; all are killed at the end of the `with`.
    Their network has NARROW's channels.

    Args:
        folder: pathlib.Path, for what they print. flags: list of str, of train.py.
    """
    PROGRAM = f'import train, utils, vgg; vgg.BLOCKS = {NARROW}; utils.run_program(train.main)'

    def __init__(self, folder, flags):
        self.command = [sys.executable, '-u', '-c', self.PROGRAM, *flags]
        self.folder, self.running = folder, {}
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
                    self.command, cwd=ROOT, stdout=file, stderr=file,
                    env={**os.environ, 'TF_CONFIG': config, 'CUDA_VISIBLE_DEVICES': ''}, preexec_fn=end_with_parent)

    def kill(self, job):
        process = self.running.pop(job)
        process.kill()
        process.wait()

    def wait(self, job):
        """The exit code of a process that ends by itself."""
        try:
            return self.running[job].wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail(f'{job} does not end: {self.text(job)[-3000:]}')

    def wait_for_step(self, step):
        """Waits until log.csv of the run in `folder` has a step of at least that number."""
        deadline = time.monotonic() + PATIENCE
        while not any(number >= step for number in read_column(self.folder, 'step')):
            assert self.running['chief'].poll() is None and time.monotonic() < deadline, self.text('chief')[-3000:]
            time.sleep(0.1)

    def text(self, job):
        return (self.folder / f'{job}.txt').read_text()

    def last_error(self, job):
        """The line in which a program names its error; TensorFlow may print more after it."""
        return [line for line in self.text(job).splitlines() if ': error: ' in line][-1]


def read_column(folder, column, name='log.csv'):
    """A column of a run's table, list of float; empty while there is no table."""
    try:
        return [float(row[column]) for row in read_log(folder, name)]
    except FileNotFoundError:
        return []


@pytest.mark.slow
def test_workers_and_the_chief_may_die(tmp_path, record):
    """A worker, then the chief are killed and restarted; everything is written exactly once."""
    flags = short_run(record, tmp_path, '--max_steps', 150, '--log_steps', 1, '--save_steps', 5, '--val_steps', 50,
                      '--eval_steps', 75)
    with Processes(tmp_path, flags) as processes:
        processes.start('ps', 'worker', 'chief')
        processes.wait_for_step(7)
        processes.kill('worker')
        processes.start('worker')
        processes.wait_for_step(80)
        processes.kill('chief')  # its worker and server wait for it
        reached = max(read_column(tmp_path, 'step'))
        processes.start('chief')
        assert [processes.wait(job) for job in ('chief', 'worker', 'ps')] == [0, 0, 0]
    printed = processes.text('chief')
    assert 'a machine is lost' in printed
    resumed = [int(step) for step in re.findall(r'resumed from \S*model\.ckpt-(\d+)', printed)]
    assert len(resumed) == 2 and 5 <= resumed[0] < 80 and reached - 6 <= resumed[1] <= reached + 1
    assert read_column(tmp_path, 'step') == list(range(1, 151))
    assert read_column(tmp_path, 'step', 'eval.csv') == [75, 150]
    assert all(map(math.isfinite, read_column(tmp_path, 'loss')))
    assert {name.split('_')[1] for name in os.listdir(tmp_path / 'eval')} == {'50', '100', '150'}
    assert sorted(checkpoints.list_steps(tmp_path / 'train')) == [140, 145, 150]
    for job in ('worker', 'ps'):
        assert not re.search('checkpoint|step|eval', processes.text(job).replace('127.0.0.1', ''))
    assert (tmp_path / 'index.html').exists()


@pytest.mark.slow
def test_a_cluster_trains_as_one_process_though_its_parameter_server_dies(tmp_path, record, monkeypatch):
    """From the same weights, the chief and its worker compute what two towers of one process compute."""
    monkeypatch.setattr(vgg, 'BLOCKS', NARROW)
    start = str(tmp_path / 'start')
    with tf.Graph().as_default(), tf.Session() as session:
        build_predictor(train.fcn, train.Network(fc_channels=8))
        session.run(tf.global_variables_initializer())
        tf.train.Saver(network_variables()).save(session, start, 0, write_meta_graph=False)

    def flags(folder, steps, *more):
        return short_run(record, folder, '--max_steps', steps, '--log_steps', '1', '--learning_rate', '1e-3',
                         '--checkpoint_path', f'{start}-0', *more)

    train.main(flags(tmp_path / 'one', 8, '--num_gpus', '2'))
    with Processes(tmp_path, flags(tmp_path, 60, '--save_steps', '5')) as processes:
        processes.start('ps', 'worker', 'chief')
        processes.wait_for_step(8)
        processes.kill('ps')
        processes.start('ps')
        assert [processes.wait(job) for job in ('chief', 'worker', 'ps')] == [0, 0, 0]
    assert 'a machine is lost' in processes.text('chief')
    assert read_column(tmp_path, 'step') == list(range(1, 61))
    expected, found = read_column(tmp_path / 'one', 'loss'), read_column(tmp_path, 'loss')
    assert found[:8] == pytest.approx(expected, rel=1e-3) and abs(expected[7] / expected[0] - 1) > 0.02


@pytest.mark.slow
def test_a_chief_that_is_stopped_keeps_its_step_and_ends_all(tmp_path, record):
    """Without a parameter server: the chief holds the variables."""
    flags = short_run(record, tmp_path, '--max_steps', 10000, '--log_steps', '1')
    with Processes(tmp_path, flags) as processes:
        del processes.cluster['ps']
        processes.start('worker', 'chief')
        processes.wait_for_step(3)
        processes.running['chief'].terminate()
        assert [processes.wait(job) for job in ('chief', 'worker')] == [143, 1]
    assert 'the chief has ended the run: stopped by SIGTERM after step ' in processes.last_error('worker')
    step, = checkpoints.list_steps(tmp_path / 'train')
    assert step == max(read_column(tmp_path, 'step'))
