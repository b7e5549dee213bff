"""Training on several machines, and what happens when one of them is lost.

    TF_CONFIG='{"cluster": {"chief": ["a:2222"], "worker": ["b:2222"], "ps": ["c:2222"]},
                "task": {"type": "chief", "index": 0}}' python train.py

The chief alone holds the graph and the session, validates and writes files. All other tasks run a TensorFlow server and
lend it their devices: workers compute towers, parameter servers (ps) hold the variables. Unlike with
SyncReplicasOptimizer, no gradient can be late or counted twice. Collective all-reduce would need a restart of all
programs when one is lost; here training waits until it is back.
"""
import contextlib
import json
import os
import re
import socket
import threading
import time
from typing import NamedTuple

import tensorflow.compat.v1 as tf

import utils
from datasets import records
from inference.devices import find_failure
from training.towers import Placement, divide_batch, place_here
from utils import UserError

TASK_TYPES = ('chief', 'worker', 'ps')
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError,
        tf.errors.DeadlineExceededError)  # errors that a lost task causes
TIMEOUT = 600  # seconds, longer than any step: TCP does not notice a machine that has lost its power
TF_CONFIG_CURE = ('write it as {"cluster": {"chief": ["host:port"], "worker": ["host:port", ...], "ps": [...]}, '
                  '"task": {"type": "chief", "worker" or "ps", "index": 0}}; unset it to train on this machine alone')


class Job(NamedTuple):
    """What `run` must know of a training."""
    dataset_train: str  # the record that every machine reads
    batch_size: int  # the examples of all devices together
    whole_images: bool  # whether training uses complete images instead of crops
    num_gpus: int  # see towers.place_here


class Task(NamedTuple):
    """One process of a cluster."""
    type: str  # one of TASK_TYPES
    index: int  # among the tasks of its type
    address: str  # 'host:port'

    def __str__(self):
        return f'{self.type} {self.index} at {self.address}'

    @property
    def device(self):
        """TensorFlow's name of this process, str."""
        return f'/job:{self.type}/replica:0/task:{self.index}'


class Cluster(NamedTuple):
    """The contents of TF_CONFIG."""
    addresses: dict  # of TASK_TYPES to lists of 'host:port'
    task: Task  # of this process

    def tasks(self, *types):
        """The tasks of these types, list of Task."""
        return [Task(kind, *numbered) for kind in types for numbered in enumerate(self.addresses[kind])]


def read_cluster():
    """The Cluster in the environment variable TF_CONFIG, or None; raises UserError if it is malformed."""
    try:
        config = json.loads(os.environ.get('TF_CONFIG') or '{}')
        if not config.get('cluster'):
            return None
        given, kind, index = config['cluster'], config['task']['type'], int(config['task'].get('index', 0))
        if not 0 <= index < len(given.get(kind, ())):
            raise ValueError(f'its cluster has no {kind} {index}')
        if not given.get('chief') and given.get('worker'):  # as managed clusters have it: worker 0 is the chief
            given['chief'], given['worker'] = given['worker'][:1], given['worker'][1:]
            if kind == 'worker':
                kind, index = ('worker', index - 1) if index else ('chief', 0)
        addresses = {kind: given.pop(kind, []) for kind in TASK_TYPES}
        if len(addresses['chief']) != 1:
            raise ValueError(f'it has {len(addresses["chief"])} chiefs instead of one')
        if given:
            raise ValueError(f'{", ".join(given)} is not a task type')
        if wrong := [address for address in sum(addresses.values(), []) if not re.fullmatch(r'.+:\d{1,5}', address)]:
            raise ValueError(f'{wrong[0]!r} is not host:port')
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        reason = f'{error} is missing' if isinstance(error, KeyError) else error
        raise UserError(f'TF_CONFIG cannot be used ({reason}); {TF_CONFIG_CURE}') from None
    return Cluster(addresses, Task(kind, index, addresses[kind][index]))


def run(train, config, job):
    """Trains on this machine, or acts as the task that TF_CONFIG assigns to this process.
    `train` is a function of a Placement, `config` this process's tf.ConfigProto. Raises UserError if TF_CONFIG or a
    flag is wrong, or the run fails on another machine."""
    cluster = read_cluster()
    if cluster is None:
        return train(place_here(job.num_gpus, job.batch_size))
    # gRPC would use http_proxy, which is for the web.
    os.environ['no_grpc_proxy'] = ','.join(task.address.rsplit(':', 1)[0] for task in cluster.tasks(*TASK_TYPES))
    if cluster.task.type == 'chief':
        return run_chief(train, config, job, cluster)
    return serve(config, job, cluster)


def start_server(config, cluster):
    """Starts TensorFlow's server of this process; raises UserError if its port is not free."""
    jobs = {kind: addresses for kind, addresses in cluster.addresses.items() if addresses}
    # Ops that read and compute may wait for other tasks, and the requests of those need threads meanwhile.
    config.inter_op_parallelism_threads = max(config.inter_op_parallelism_threads, 8)
    if cluster.task.type == 'ps':
        config.device_count['GPU'] = 0  # it does not compute; the GPUs are for a worker on its machine
    try:
        return tf.train.Server(jobs, cluster.task.type, cluster.task.index, config=config)
    except tf.errors.OpError as error:
        if find_failure(error):
            raise
        # Its message does not name the reason.
        raise UserError(f'{cluster.task.address}: TensorFlow cannot start its server; check that no other program '
                        'uses this port') from None


def serve(config, job, cluster):
    """Lends this process's devices to the chief, which may be restarted, until the run ends; UserError if it fails."""
    task = cluster.task
    if task.type == 'worker':  # its own error message is clearer than the chief's
        records.count_examples(job.dataset_train, job.whole_images)
    server = start_server(config, cluster)
    chief, = cluster.addresses['chief']
    print(f'{task.type} {task.index} serves the chief, {chief}', flush=True)
    with tf.Graph().as_default(), tf.device(task.device):
        receive = result_queue().dequeue()
        with tf.Session(server.target, config=tf.ConfigProto(device_filters=[task.device])) as session:
            failure = session.run(receive).decode()
    if failure:
        raise UserError(failure)
    print('the chief has ended the run', flush=True)


def result_queue():
    """The queue on which a task waits for the run's result: '' for success, or the error message."""
    with tf.container('result'):  # a restarted chief clears the default one
        return tf.FIFOQueue(1, tf.string, shared_name='result')


def send_result(cluster, failure):
    """Ends all tasks but the chief; skips those that are lost."""
    for task in cluster.tasks('worker', 'ps'):
        if not find_fault(task):
            with tf.Graph().as_default(), tf.device(task.device):
                send = result_queue().enqueue(failure)
                with connect(task) as session, contextlib.suppress(tf.errors.OpError):
                    session.run(send)


def run_chief(train, config, job, cluster):
    """Trains on all machines; when a task is lost, waits for it and resumes at the last checkpoint."""
    failure = ''
    with utils.StopSignals():
        server = start_server(config, cluster)
        try:
            wait_for_tasks(cluster)
            while not try_training(train, job, cluster, server):
                wait_for_tasks(cluster)
        except BaseException as error:
            failure = f'the chief has ended the run: {(str(error) or type(error).__name__).splitlines()[0]}'
            raise
        finally:
            send_result(cluster, failure)


def try_training(train, job, cluster, server):
    """Trains from the last checkpoint on. Returns False if a task is lost before the end."""
    try:
        train(place_on_machines(cluster, server, job.batch_size))
        return True
    except LOST as error:
        print(f'a machine is lost ({type(error).__name__}); training resumes at the last checkpoint when it is back',
              flush=True)
        return False


@contextlib.contextmanager
def open_session(placement, config, signals):
    """Opens the session of a training, on a towers.Placement. If a task is lost after a signal of `signals`,
    utils.StopSignals, that ends the run, because job managers send signals to all tasks at once."""
    if not placement.target:
        with tf.Session(config=config) as session:
            yield session
        return
    config.operation_timeout_in_ms = TIMEOUT * 1000
    session = tf.Session(placement.target, config=config)
    # This thread keeps the session open, also when Python exits: closing waits for all tasks, lost ones included.
    threading.Thread(target=lambda kept: threading.Event().wait(), args=[session], daemon=True).start()
    try:
        yield session
    except LOST:
        signals.check()
        raise


def connect(task, timeout=10):
    """Opens a session on one task alone, for `with`; raises tf.errors.OpError if it does not respond within seconds."""
    config = tf.ConfigProto(device_filters=[task.device], operation_timeout_in_ms=timeout * 1000)
    session = tf.Session(f'grpc://{task.address}', config=config)
    return contextlib.closing(session)  # tf.Session's own `with` closes in a thread, which prints its errors


def list_devices(task):
    """The devices of a task, list; raises tf.errors.OpError if it does not respond."""
    with tf.Graph().as_default(), connect(task) as session:
        session.run(tf.no_op())  # a session lists no devices before its first run
        return session.list_devices()


def find_fault(task):
    """Why a task does not respond, str; None if it does. Connecting comes first, because TensorFlow waits longer."""
    host, port = task.address.rsplit(':', 1)
    try:
        socket.create_connection((host.strip('[]'), int(port)), timeout=5).close()
        list_devices(task)
    except (OSError, UnicodeError) as error:
        return getattr(error, 'strerror', None) or str(error)
    except tf.errors.OpError:
        return 'the program on that port does not respond like train.py'


def wait_for_tasks(cluster):
    """Waits until all tasks respond; prints once which do not, and why."""
    for task in cluster.tasks('worker', 'ps'):
        printed = None
        while (fault := find_fault(task)):
            if fault != printed:
                print(f'waiting for {task} ({fault})', flush=True)
            printed = fault
            time.sleep(0.5)


def place_on_machines(cluster, server, batch_size):
    """The Placement on all machines: all GPUs of the chief and the workers, or their CPUs. Clears earlier sessions."""
    tf.Session.reset(server.target, ['localhost'])  # TensorFlow's name of the default container
    towers = {}
    for task in cluster.tasks('chief', 'worker'):
        names = [device.name for device in list_devices(task)]
        gpus = [name for name in names if '/device:GPU:' in name]
        towers[f'{task.device}/device:CPU:0'] = gpus or [name for name in names if '/device:CPU:' in name]
    chief = cluster.task.device
    servers = [f'{task.device}/device:CPU:0' for task in cluster.tasks('ps')]
    return Placement(server.target, chief, divide_batch(batch_size, towers),
                     servers or towers[f'{chief}/device:CPU:0'][:1])
