"""Training on several machines: who leads, who lends its devices, and what happens when one is lost.

    TF_CONFIG='{"cluster": {"chief": ["a:2222"], "worker": ["b:2222"], "ps": ["c:2222"]},
                "task": {"type": "chief", "index": 0}}' python train.py

On several machines the chief holds the graph and the session, and all others lend it their devices through TensorFlow's
servers: workers for towers, parameter servers (ps) for the variables. So there is one training loop, and one program
that validates and writes. Measured against SyncReplicasOptimizer, it moves the same bytes in the same time, and no
worker's gradients can be counted twice or come too late; against collective all-reduce, whose rings leave every program
to be started again when one is lost, it goes on when that one is back.
"""
import collections
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
from datasets import batches
from training.towers import Placement, place_here, share_out
from utils import UserError

Cluster = collections.namedtuple('Cluster', 'addresses job index')
Cluster.__doc__ = """What TF_CONFIG says.

addresses: dict of 'chief', 'worker', 'ps' to lists of 'host:port'.
job, index: str and int, which of them this process is.
"""
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError,
        tf.errors.DeadlineExceededError)  # what a lost process causes
PATIENCE = 600  # seconds that no step takes: a machine that loses its power breaks no connection
TF_CONFIG_CURE = ('it is {"cluster": {"chief": ["host:port"], "worker": ["host:port", ...], "ps": [...]}, "task": '
                  '{"type": "chief", "worker" or "ps", "index": 0}}; unset it to train on this machine alone')


def read_cluster():
    """The Cluster of the environment variable TF_CONFIG; None where it names none.

    Raises:
        UserError: it cannot be used.
    """
    try:
        config = json.loads(os.environ.get('TF_CONFIG') or '{}')
        if not config.get('cluster'):
            return None
        addresses = {job: [str(address) for address in config['cluster'].get(job, ())]
                     for job in ('chief', 'worker', 'ps')}
        cluster = Cluster(addresses, config['task']['type'], int(config['task'].get('index', 0)))
        unknown = set(config['cluster']) - set(addresses)
        mine = addresses[cluster.job][cluster.index] if cluster.index >= 0 else None
    except (ValueError, TypeError, AttributeError, LookupError):
        unknown = mine = None
    if mine is None or unknown:
        raise UserError(f'TF_CONFIG cannot be used: {TF_CONFIG_CURE}')
    if len(addresses['chief']) != 1:
        raise UserError(f'TF_CONFIG has {len(addresses["chief"])} chiefs, and must have one; {TF_CONFIG_CURE}')
    for address in sum(addresses.values(), []):
        port = re.fullmatch(r'.+:(\d{1,5})', address)
        if not port or not 0 < int(port.group(1)) < 65536:
            raise UserError(f'TF_CONFIG: {address!r} is no host:port; {TF_CONFIG_CURE}')
    return cluster


class Job(NamedTuple):
    """What `run` must know of a training."""
    dataset_train: str
    batch_size: int
    whole_images: bool
    num_gpus: int | None


def run(train, config, job):
    """Trains on this machine, or takes the part that TF_CONFIG gives to this process in a training on several."""
    cluster = read_cluster()
    if cluster is None:
        train(place_here(job.num_gpus, job.batch_size))
        return
    hosts = {address.rsplit(':', 1)[0] for addresses in cluster.addresses.values() for address in addresses}
    os.environ['no_grpc_proxy'] = ','.join(sorted(hosts))  # http_proxy is for the web, and gRPC would take it
    if cluster.job == 'chief':
        lead(job, config, train, cluster)
    else:
        serve(job, config, cluster)


def task(job, index):
    """The device string of a process."""
    return f'/job:{job}/replica:0/task:{index}'


def start_server(config, cluster):
    """TensorFlow's server of this process; UserError if its port is not free."""
    jobs = {job: addresses for job, addresses in cluster.addresses.items() if addresses}
    address = cluster.addresses[cluster.job][cluster.index]
    # What reads and what computes may wait for the other processes, whose requests need a thread meanwhile.
    config.inter_op_parallelism_threads = max(config.inter_op_parallelism_threads, 8)
    if cluster.job == 'ps':
        config.device_count['GPU'] = 0  # it does not compute; its machine's GPUs are for a worker there
    try:
        return tf.train.Server(jobs, cluster.job, cluster.index, config=config)
    except tf.errors.OpError:  # whose reason is no more than "Could not start gRPC server"
        raise UserError(f'{address}: TensorFlow cannot start its server there; is another program on that port?'
                        ) from None


# ------------------------------------------------------------------------------------------- its workers and servers


def serve(args, config, cluster):
    """Lends this process's devices to the chief until that ends the run; a chief that is killed may come back.

    Raises:
        UserError: the run has failed.
    """
    if cluster.job == 'worker':  # better told here than by the chief
        batches.count_examples(args.dataset_train, whole=args.whole_images)
    server = start_server(config, cluster)
    print(f'{cluster.job} {cluster.index} serves the chief, {cluster.addresses["chief"][0]}', flush=True)
    name = task(cluster.job, cluster.index)
    with tf.Graph().as_default(), tf.device(name):
        word = last_word().dequeue()
        with tf.Session(server.target, config=tf.ConfigProto(device_filters=[name])) as session:
            failure = session.run(word).decode()
    if failure:
        raise UserError(failure)
    print('the chief has ended the run', flush=True)


def last_word():
    """The queue in which a process waits for the chief's last word: why the run has failed, or nothing if it has not.

    It is in a container of its own, and stays when a chief clears away what one before it has left.
    """
    with tf.container('lastword'):
        return tf.FIFOQueue(1, tf.string, shared_name='last_word')


def dismiss(cluster, failure):
    """Has all processes but the chief end; those that are gone are left out."""
    for job, index, address in others(cluster):
        if find_fault(address):
            continue
        with tf.Graph().as_default(), tf.device(task(job, index)):
            word = last_word().enqueue(failure)
            try:
                with ask(job, index, address) as session:
                    session.run(word)
            except tf.errors.OpError:
                print(f'{job} {index} at {address} does not answer; end it by hand', flush=True)


# ------------------------------------------------------------------------------------------- its chief


def lead(args, config, train, cluster):
    """Trains on all machines; when a worker is lost, waits for it and goes on at the last checkpoint.

    Raises:
        UserError: a parameter server is lost, or what `train` raises.
    """
    failure = ''
    with utils.StopSignals():
        server = start_server(config, cluster)
        try:
            wait_for_all(cluster)
            births = find_births(cluster)
            while not go_on(args, train, cluster, server, births):
                wait_for_all(cluster, births)
        except BaseException as error:
            failure = f'the chief has ended the run: {(str(error) or type(error).__name__).splitlines()[0]}'
            raise
        finally:
            dismiss(cluster, failure)


def go_on(args, train, cluster, server, births):
    """Trains from the last checkpoint on. False if a worker was lost before the end."""
    try:
        check_parameter_servers(cluster, births)
        with watch(cluster):
            check_records(cluster, args.dataset_train, whole=args.whole_images)
            train(place_on_machines(cluster, server, args.batch_size))
        return True
    except (UserError, *LOST) as error:
        check_parameter_servers(cluster, births)
        if isinstance(error, UserError):
            raise
        print(f'a worker is lost ({type(error).__name__}); when it is back, the run goes on at its last checkpoint',
              flush=True)
        return False


@contextlib.contextmanager
def open_session(placement, config, signals):
    """The session of a training.

    On several machines it is never closed, not even by Python at its end: this would wait for all of them, also for
    one that is lost. It is cleared away when the run goes on, or with the process.

    Args:
        placement: Placement. config: tf.ConfigProto. signals: utils.StopSignals.

    Raises:
        utils.Stopped: a process was lost, and there was a signal: whatever stops a job sends it to all its processes.
    """
    if not placement.target:
        with tf.Session(config=config) as session:
            yield session
        return
    config.operation_timeout_in_ms = PATIENCE * 1000
    session = tf.Session(placement.target, config=config)
    threading.Thread(target=lambda kept: threading.Event().wait(), args=[session], daemon=True).start()
    try:
        yield session
    except LOST:
        signals.check()
        raise


def others(cluster):
    """(job, index, address) of all processes but the chief."""
    return [(job, index, address) for job in ('worker', 'ps')
            for index, address in enumerate(cluster.addresses[job])]


def find_fault(address, seconds=5):
    """Why 'host:port' cannot be reached, str; None if something listens there."""
    host, port = address.rsplit(':', 1)
    try:
        socket.create_connection((host.strip('[]'), int(port)), seconds).close()
    except (OSError, OverflowError, UnicodeError) as error:
        return getattr(error, 'strerror', None) or str(error)


@contextlib.contextmanager
def ask(job, index, address, patience=10):
    """A session on one process alone: there, unlike on several, it is an error if that does not answer.

    Args:
        job, index, address: of the process. patience: int, seconds.
    """
    session = tf.Session(f'grpc://{address}', config=tf.ConfigProto(
        device_filters=[task(job, index)], operation_timeout_in_ms=patience * 1000))
    try:
        yield session
    finally:
        session.close()  # tf.Session's own `with` would do so in a thread, whose errors go to the terminal


def list_devices(job, index, address):
    """A process's devices; tf.errors.OpError if it does not answer."""
    with tf.Graph().as_default(), ask(job, index, address) as session:
        session.run(tf.no_op())  # before it, a session has none
        return session.list_devices()


def wait_for_all(cluster, births=None):
    """Waits until all processes answer; says once which do not, and why.

    Raises:
        UserError: a parameter server, whose `births` are known, is lost meanwhile.
    """
    for job, index, address in others(cluster):
        said = None
        while (silence := find_silence(job, index, address)):
            if silence != said:
                print(f'waiting for {job} {index} at {address} ({silence})', flush=True)
            said = silence
            if births:
                check_parameter_servers(cluster, births)
            time.sleep(0.5)


def find_silence(job, index, address):
    """Why a process does not answer, str; None if it does."""
    fault = find_fault(address)
    if fault:
        return fault
    try:
        list_devices(job, index, address)
    except tf.errors.OpError:
        return 'what listens there does not answer as train.py would'


@contextlib.contextmanager
def watch(cluster, seconds=10):
    """Tells meanwhile which processes can no longer be reached: TensorFlow may wait for these in silence."""
    ended = threading.Event()

    def tell():
        told = set()
        while not ended.wait(seconds):
            for job, index, address in others(cluster):
                fault = find_fault(address)
                if fault and address not in told and not ended.is_set():
                    print(f'{job} {index} at {address} cannot be reached ({fault})', flush=True)
                (told.add if fault else told.discard)(address)

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def find_births(cluster):
    """A number for each parameter server that it keeps as long as it lives: list of int, 0 for one that is gone."""
    births = []
    for index, address in enumerate(cluster.addresses['ps']):
        try:
            births.append(0 if find_fault(address) else list_devices('ps', index, address)[0].incarnation)
        except tf.errors.OpError:
            births.append(0)
    return births


def check_parameter_servers(cluster, births):
    """Raises UserError if a parameter server is gone, or is another than it was: its variables are lost."""
    for index, (before, now) in enumerate(zip(births, find_births(cluster))):
        if now != before:
            raise UserError(f'parameter server {index} at {cluster.addresses["ps"][index]} is lost, and its variables '
                            'with it; start all again: training resumes at the last checkpoint')


def place_on_machines(cluster, server, batch_size):
    """The Placement on all machines, whose devices are asked for; clears away what a run before has left there."""
    tf.Session.reset(server.target, ['localhost'])  # TensorFlow's name for the container of all that names none
    towers = {}
    for job in ('chief', 'worker'):
        for index, address in enumerate(cluster.addresses[job]):
            mine = [device.name for device in list_devices(job, index, address)]
            gpus = [name for name in mine if '/device:GPU:' in name]
            towers[f'{task(job, index)}/device:CPU:0'] = gpus or [name for name in mine if '/device:CPU:' in name]
    home = task('chief', 0)
    servers = [f'{task("ps", index)}/device:CPU:0' for index in range(len(cluster.addresses['ps']))]
    return Placement(server.target, home, share_out(batch_size, towers),
                     servers or [towers[f'{home}/device:CPU:0'][0]])


def check_records(cluster, record, whole):
    """Compares the training record on all machines: each is to read its part of the same batches.

    Args:
        cluster: Cluster. record: str. whole: bool, see batches.count_examples.

    Raises:
        UserError: a machine has none, or another one than the chief.
    """
    batches.count_examples(record, whole)  # before TensorFlow's reader sees it
    chief = None
    for job, index, address in [('chief', 0, cluster.addresses['chief'][0]), *others(cluster)]:
        if job == 'ps':
            continue
        place = f'{record}: {job} {index} at {address}'
        with tf.Graph().as_default(), ask(job, index, address, PATIENCE) as session:
            try:
                found = session.run(batches.fingerprint(record))
            except (tf.errors.NotFoundError, tf.errors.DataLossError, tf.errors.PermissionDeniedError) as error:
                raise UserError(f'{place} cannot read it ({utils.find_reason(error)}); copy the file that the '
                                'chief has') from None
        chief = chief or found
        if found != chief:
            raise UserError(f'{place} has another file of that name, with {found[0]} examples where the chief has '
                            f'{chief[0]}; copy the file that the chief has')
