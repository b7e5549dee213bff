"""Measures training by one process and by two that split the cores, and works out on paper what more machines bring.

    python tools/measure_machines.py --dataset data/fcn_train.record

Writes results/distributed.md. Takes two cores that nothing else uses.
"""
import contextlib
import csv
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import utils  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BYTES_EACH_WAY = {'10 Gbit/s': 1.25e9, 'NVLink, 450 GB/s': 450e9}  # a second; NVLink of the H100
ASSUMED_RATES = (50, 200)  # images a second of a GPU, to set beside what is measured
MACHINES = (1, 2, 4, 8, 16)

# ------------------------------------------------------------------------------------------- measured


def find_ports(number):
    """TCP ports that are free, list of int."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(('127.0.0.1', 0))
        return [one.getsockname()[1] for one in sockets]


def loopback_bytes():
    """Bytes that this machine has sent to itself so far, int."""
    with open('/proc/net/dev') as file:
        return next(int(line.split()[1]) for line in file if line.strip().startswith('lo:'))


def train_on_cores(args, cores_by_job):
    """Trains with a process on each set of cores.

    Args:
        args: of parse_args. cores_by_job: dict of 'chief', 'worker' to a list of cores as taskset takes it, str.

    Returns:
        list of floats, images a second of each step but the first two.
        float, bytes between the processes a step.
    """
    cluster = {job: [f'127.0.0.1:{port}'] for job, port in zip(cores_by_job, find_ports(len(cores_by_job)))}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for job, cores in cores_by_job.items():
            config = json.dumps({'cluster': cluster, 'task': {'type': job, 'index': 0}}) if len(cluster) > 1 else ''
            process = subprocess.Popen(
                ['taskset', '-c', cores, sys.executable, os.path.join(ROOT, 'train.py'), *train_flags(args, folder)],
                env={**os.environ, 'TF_CONFIG': config}, stdout=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            if job == 'chief':
                chief = process
        sent = watch(chief, os.path.join(folder, 'train', 'log.csv'), args.steps)
        with open(os.path.join(folder, 'train', 'log.csv'), newline='') as file:
            rates = [float(row['images_per_second']) for row in csv.DictReader(file)]
    return rates[2:], sent


def train_flags(args, folder):
    """Flags of train.py for one measurement."""
    return ['--dataset_train', args.dataset, '--dataset_val', args.dataset, '--output_dir', folder,
            '--fc_channels', str(args.fc_channels), '--batch_size', str(args.batch_size),
            '--crop_size', str(args.crop_size), '--max_steps', str(args.steps), '--save_steps', str(args.steps),
            '--log_steps', '1', '--val_steps', '0', '--summary_steps', '0', '--num_gpus', '1']


def watch(chief, log, steps):
    """Bytes a step over loopback, float, from the third step to the one before the last.

    Raises:
        UserError: the training has failed.
    """
    seen = {}
    while chief.poll() is None:
        with contextlib.suppress(FileNotFoundError), open(log) as file:
            step = sum(1 for _ in file) - 1
            seen.setdefault(step, loopback_bytes())
        time.sleep(0.02)
    if chief.returncode:
        raise utils.UserError('the training to be measured has failed; its reason stands above')
    first, last = min(step for step in seen if step >= 3), max(step for step in seen if step < steps)
    return (seen[last] - seen[first]) / max(last - first, 1)


# ------------------------------------------------------------------------------------------- on paper


def count_weights(fc_channels, classes=21):
    """Trained weights of FCN-8s, int."""
    channels = (3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6)
    convolutions = sum(9 * before * after + after for before, after in zip(channels, channels[1:]))
    fc6, fc7 = 49 * 512 * fc_channels + fc_channels, fc_channels ** 2 + fc_channels
    scores = sum(depth * classes + classes for depth in (fc_channels, 512, 256))
    return convolutions + fc6 + fc7 + scores + (16 + 16 + 256) * classes ** 2


def seconds_moved(weights, machines, bytes_a_second, servers):
    """Seconds a step that weights and gradients, float32, are on their way; the busiest line decides.

    A server sends its share of the weights to each of the other machines, and then gets as much back in gradients.
    """
    return 2 * 4 * weights / servers * (machines - 1) / bytes_a_second


def paper_rows(weights, batch, rates):
    """Rows of a table: what so many machines make of each rate, which one reaches alone with a batch of its own."""
    rows = []
    for name, speed in BYTES_EACH_WAY.items():
        for rate in rates:
            for spread in (False, True):
                found = [machines * batch / (batch / rate + seconds_moved(weights, machines, speed,
                                                                          machines if spread else 1))
                         for machines in MACHINES]
                rows.append([name, f'{rate:.3g}', 'on all' if spread else 'on one', *(f'{each:.4g}' for each in found)])
    return rows


# ------------------------------------------------------------------------------------------- the page


def table(head, rows):
    """A table of Markdown, str."""
    return '\n'.join('| ' + ' | '.join(map(str, row)) + ' |' for row in [head, ['---'] * len(head), *rows])


HEAD = ['', 'images/s', 'range', 'MB over loopback a step']
PAGE = """# Several processes, several machines

Written by `tools/measure_machines.py --fc_channels {args.fc_channels} --batch_size {args.batch_size} --crop_size
{args.crop_size} --steps {args.steps}` on {cores} cores. Batches of {args.batch_size} in all; medians of the steps'
images/s, with their range.

{measured}

The network has {millions:.1f} million weights: {megabytes:.0f} MB of gradients go from the worker to the chief in each
step, after as much in weights has come from there.

## On paper

Images/s of N machines, each with a batch of {args.model_batch}, for the network of {full:.1f} million weights: a step
computes, and moves 4 bytes a weight to each machine and back, nothing of it at the same time. With the variables on one
machine, its line carries all; on all, each has a parameter server with its part of them. The first rate of each line is
the one measured above with all cores, the others are assumed for GPUs.

{paper}
"""


def describe(args, measured):
    """The text of results/distributed.md. measured: dict of str to what train_on_cores returned."""
    weights = count_weights(args.fc_channels)
    rows = [[name, f'{statistics.median(rates):.3g}', f'{min(rates):.3g} to {max(rates):.3g}', f'{sent / 1e6:.0f}']
            for name, (rates, sent) in measured.items()]
    alone = statistics.median(measured['one process, all cores'][0])
    paper = table(['line', 'images/s of one', 'variables', *(f'N = {number}' for number in MACHINES)],
                  paper_rows(count_weights(4096), args.model_batch, [alone, *ASSUMED_RATES]))
    return PAGE.format(args=args, cores=os.cpu_count(), measured=table(HEAD, rows), paper=paper, millions=weights / 1e6,
                       megabytes=4 * weights / 1e6, full=count_weights(4096) / 1e6)


def parse_args(argv=None):
    """The program's flags; see --help."""
    parser = utils.ArgumentParser('Measures training by one process and by two that split the cores.')
    parser.add_argument('--dataset', default='data/fcn_train.record', help='record to train on')
    parser.add_argument('--output', default='results/distributed.md', help='page to write')
    parser.add_argument('--fc_channels', type=utils.positive_int, default=4096, help='width of fc6 and fc7')
    parser.add_argument('--batch_size', type=utils.positive_int, default=4, help='examples a step, even')
    parser.add_argument('--crop_size', type=utils.positive_int, default=224, help='side of the crops in pixels')
    parser.add_argument('--steps', type=utils.positive_int, default=12, help='steps of each training, at least 6')
    parser.add_argument('--model_batch', type=utils.positive_int, default=16,
                        help='examples a step of each machine on paper')
    args = parser.parse_args(argv)
    if args.batch_size % 2 or args.steps < 6:
        parser.error('--batch_size must be even, and --steps at least 6')
    return args


def main(argv=None):
    args = parse_args(argv)
    half = max(os.cpu_count() // 2, 1)
    lower, upper = f'0-{half - 1}', f'{half}-{2 * half - 1}'
    measured = {
        'one process, half the cores': train_on_cores(args, {'chief': lower}),
        'one process, all cores': train_on_cores(args, {'chief': f'0-{2 * half - 1}'}),
        'two processes, half the cores each': train_on_cores(args, {'worker': upper, 'chief': lower}),
    }
    utils.save_text(args.output, describe(args, measured))
    print(f'written: {args.output}')


if __name__ == '__main__':
    utils.run_program(main)
