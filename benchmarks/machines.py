"""Two processes that train as a cluster (row `machines`), and a table of what more machines would bring.

    python -m benchmarks.machines --images_per_second 1.3 50 200
"""
import json
import os
import socket
import subprocess
import sys

import utils
from benchmarks.inputs import as_arguments
from benchmarks.measure import ROOT

BYTES_EACH_WAY = {'10 Gbit/s': 1.25e9, 'NVLink, 450 GB/s': 450e9}  # a second; NVLink of the H100
MACHINES = (1, 2, 4, 8, 16)


def find_ports(number):
    """TCP ports that are free, list of int."""
    sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def chief_with_worker(turns, steps, flags, worker_cores):
    """Contender: ours.training as the chief of a cluster, with a worker on other cores."""
    from benchmarks import ours
    cluster = {job: [f'127.0.0.1:{port}'] for job, port in zip(('chief', 'worker'), find_ports(2))}
    chief, worker = (json.dumps({'cluster': cluster, 'task': {'type': job, 'index': 0}}) for job in cluster)
    process = subprocess.Popen([sys.executable, 'train.py', *as_arguments({**ours.ENDLESS, **flags})], cwd=ROOT,
                               env={**os.environ, 'TF_CONFIG': worker})
    os.sched_setaffinity(process.pid, worker_cores)
    os.environ['TF_CONFIG'] = chief
    ours.training(turns, steps, flags)


def count_weights(fc_channels=4096, classes=21):
    """Trained weights of FCN-8s, int."""
    channels = (3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6)
    convolutions = sum(9 * before * after + after for before, after in zip(channels, channels[1:]))
    fc6, fc7 = 49 * 512 * fc_channels + fc_channels, fc_channels ** 2 + fc_channels
    scores = sum(depth * classes + classes for depth in (fc_channels, 512, 256))
    return convolutions + fc6 + fc7 + scores + (16 + 16 + 256) * classes ** 2


def seconds_moved(weights, machines, bytes_a_second, servers):
    """Seconds in each step in which weights and gradients, float32, are moved; the busiest line decides.

    A server sends its share of the weights to each of the other machines, and then gets as much back in gradients.
    """
    return 2 * 4 * weights / servers * (machines - 1) / bytes_a_second


def compute_rows(weights, batch, rates):
    """Rows of the table: what several machines reach, each with its own batch, if one machine reaches `rates`."""
    return [[name, f'{rate:.3g}', f'on {where}', *(
        f'{number * batch / (batch / rate + seconds_moved(weights, number, speed, min(number, servers))):.4g}'
        for number in MACHINES)]
        for name, speed in BYTES_EACH_WAY.items() for rate in rates for where, servers in (('one', 1), ('all', 1000))]


def parse_args(argv=None):
    """The program's flags; see --help."""
    parser = utils.ArgumentParser('Prints what several machines would reach, in images a second: a step computes, and '
                                  'then moves 4 bytes a weight to each machine and back.')
    parser.add_argument('--images_per_second', type=utils.positive_float, nargs='+', default=[50, 200],
                        help='rates of one machine')
    parser.add_argument('--batch_size', type=utils.positive_int, default=16, help='examples a step of each machine')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    head = ['line', 'images/s of one', 'variables', *(f'N = {number}' for number in MACHINES)]
    for row in (head, ['---'] * len(head), *compute_rows(count_weights(), args.batch_size, args.images_per_second)):
        print(f'| {" | ".join(row)} |')


if __name__ == '__main__':
    utils.run_program(main)
