"""Measures training by one process and by two that split the cores, and computes what more machines would bring.

    python -m benchmarks.machines --dataset data/fcn_train.record

Writes results/distributed.md. Takes two cores that nothing else uses.
"""
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile

import utils
from benchmarks.inputs import as_arguments
from benchmarks.measure import ROOT, Contender, find_cores, rates, summarise, take_turns
from benchmarks.page import format_figures

BYTES_EACH_WAY = {'10 Gbit/s': 1.25e9, 'NVLink, 450 GB/s': 450e9}  # a second; NVLink of the H100
ASSUMED_RATES = (50, 200)  # images a second of a GPU, beside the measured rate
MACHINES = (1, 2, 4, 8, 16)
BATCH = 16  # of each machine in the computed table
PAGE = """# Several processes, several machines

Written by `{command}` on {cores} cores: images/s, median and range.

{measured}

The network has {millions:.1f} million weights: {megabytes:.0f} MB of gradients go from the worker to the chief in each
step, after as many MB of weights have come from there.

## Computed

Images/s of N machines, each with a batch of {batch}, for the network of {full:.1f} million weights: a step computes,
and then moves 4 bytes a weight to each machine and back. With the variables on one machine, its line carries
everything; with the variables on all machines, each has a parameter server with its part of them. The first rate of
each line is measured above with all cores; the others are assumed for GPUs.

{computed}
"""


def find_ports(number):
    """TCP ports that are free, list of int."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(('127.0.0.1', 0))
        return [one.getsockname()[1] for one in sockets]


def chief_with_worker(turns, steps, flags, worker_cores):
    """Contender: ours.training as the chief of a cluster, with a worker on other cores."""
    from benchmarks import ours
    cluster = dict(zip(('chief', 'worker'), ([f'127.0.0.1:{port}'] for port in find_ports(2))))
    chief, worker = (json.dumps({'cluster': cluster, 'task': {'type': job, 'index': 0}}) for job in cluster)
    process = subprocess.Popen([sys.executable, 'train.py', *as_arguments({**ours.ENDLESS, **flags})], cwd=ROOT,
                               env={**os.environ, 'TF_CONFIG': worker})
    os.sched_setaffinity(process.pid, worker_cores)
    os.environ['TF_CONFIG'] = chief
    ours.training(turns, steps, flags)


# ------------------------------------------------------------------------------------------- computed


def count_weights(fc_channels, classes=21):
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
    """Rows of a table: what several machines reach, each with a batch of its own, if one alone reaches `rates`."""
    return [[name, f'{rate:.3g}', f'on {where}', *(
        f'{number * batch / (batch / rate + seconds_moved(weights, number, speed, min(number, servers))):.4g}'
        for number in MACHINES)]
        for name, speed in BYTES_EACH_WAY.items() for rate in rates for where, servers in (('one', 1), ('all', 1000))]


# ------------------------------------------------------------------------------------------- the page


def format_table(*rows):
    """A table of Markdown, str; the first row is its head."""
    return '\n'.join(f'| {" | ".join(row)} |' for row in (rows[0], ['---'] * len(rows[0]), *rows[1:]))


def describe(command, fc_channels, measured):
    """The text of results/distributed.md. measured: dict of name to images/s, list of float; first alone on all cores.
    """
    weights, full = count_weights(fc_channels), count_weights(4096)
    alone = summarise(next(iter(measured.values())))[0]
    return PAGE.format(
        command=command, cores=os.cpu_count(), batch=BATCH, millions=weights / 1e6, megabytes=4 * weights / 1e6,
        full=full / 1e6,
        measured=format_table(['', 'images/s'], *([name, format_figures(found)] for name, found in measured.items())),
        computed=format_table(['line', 'images/s of one', 'variables', *(f'N = {number}' for number in MACHINES)],
                              *compute_rows(full, BATCH, [alone, *ASSUMED_RATES])))


def parse_args(argv=None):
    """The program's flags; see --help."""
    parser = utils.ArgumentParser('Measures training by one process and by two that split the cores.')
    parser.add_argument('--dataset', default='data/fcn_train.record', help='record to train on')
    parser.add_argument('--output', default='results/distributed.md', help='page to write')
    parser.add_argument('--fc_channels', type=utils.positive_int, default=4096, help='width of fc6 and fc7')
    parser.add_argument('--crop_size', type=utils.positive_int, default=224, help='side of the crops in pixels')
    parser.add_argument('--rounds', type=utils.positive_int, default=5, help='of two steps each')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    dataset, log_dir, cores = os.path.abspath(args.dataset), os.path.join('out', 'bench', 'logs'), find_cores()
    half = max(1, len(cores) // 2)
    os.makedirs(log_dir, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        flags = {'dataset_train': dataset, 'dataset_val': dataset, 'batch_size': 4, 'num_gpus': 1,
                 'fc_channels': args.fc_channels, 'crop_size': args.crop_size}
        alone, on_half, two = ({'steps': 2, 'flags': {**flags, 'output_dir': os.path.join(folder, name)}}
                               for name in ('alone', 'on_half', 'two'))
        found = take_turns([
            Contender('one process, all cores', 'ours.training', alone),
            Contender('one process, half the cores', 'ours.training', on_half, cores[:half]),
            Contender('two processes, half the cores each', 'machines.chief_with_worker',
                      {**two, 'worker_cores': cores[-half:]}, cores[:half])], args.rounds, log_dir)
    command = f'python -m benchmarks.machines --fc_channels {args.fc_channels} --crop_size {args.crop_size}'
    measured = {name: rates(each) for name, each in found.items()}
    utils.save_text(args.output, describe(command, args.fc_channels, measured))
    print(f'written: {args.output}')


if __name__ == '__main__':
    utils.run_program(main)
