"""Measures the suite against other ways of doing the same work, and writes out/bench/benchmarks.md.

    python -m benchmarks --data_dir VOCdevkit/VOC2012
    python -m benchmarks --rows crf predict --rounds 3

Takes about half an hour on two cores. PyTorch is an opponent where it is installed (pip install torch==2.13.0). `make
bench` copies the page to results/.
"""
import os
import signal
import sys
import tempfile
import time

import utils
from benchmarks import inputs, page, rows
from utils import UserError

VOC = os.path.join('VOCdevkit', 'VOC2012')


def run_rows(names, shared):
    """Runs rows, list of str, one after the other, on an inputs.Inputs; one that fails does not end the others.

    Returns:
        lines: list of (row, page.Line). problems: list of str, 'row: reason'.
    """
    lines, problems = [], []
    for number, name in enumerate(names, start=1):
        print(f'{name} (row {number} of {len(names)}):', flush=True)
        try:
            lines += [(name, line) for line in rows.ROWS[name](shared)]
        except UserError as error:
            problems.append(f'{name}: {error}')
            print(f'  failed: {error}', flush=True)
    return lines, problems


def measure_rows(names, data, plan, output_dir):
    """Measures rows, list of str, and writes OUTPUT_DIR/benchmarks.md. For data and plan see inputs.Inputs.

    Raises:
        UserError: rows failed; they are named, and the page has the others.
    """
    log_dir, path = os.path.join(output_dir, 'logs'), os.path.join(output_dir, 'benchmarks.md')
    os.makedirs(log_dir, exist_ok=True)
    train, val = (len(ids) for *_, ids in data.splits())
    surroundings, started = page.describe_surroundings(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix='work-', dir=output_dir) as work_dir:
        shared = inputs.Inputs(data, plan, log_dir, work_dir)
        lines, problems = run_rows(names, shared)
    minutes = (time.perf_counter() - started) / 60
    surroundings += [f'- data: {data.origin}: {train} training images (list {data.train_split}, masks '
                     f'{data.train_label_dir}), {val} validation images',
                     *shared.notes, f'- took {minutes:.0f} minutes']
    page.write_page(path, surroundings, lines, {name: rows.ROWS[name].__doc__ for name in names})
    print(f'written: {path}')
    if problems:
        raise UserError(f'{len(problems)} of {len(names)} rows failed: {"; ".join(problems)}')


def parse_args(argv=None):
    """The program's flags; see --help."""
    parser = utils.ArgumentParser('Measures the suite against other ways of doing the same work.')
    parser.prog = 'benchmarks'
    parser.add_argument('--data_dir', help=f'folder in the layout of VOC; without it {VOC}, and if that is missing, '
                                           'drawn pictures')
    parser.add_argument('--output_dir', default='out/bench', help='folder for the page, benchmarks.md, and for logs')
    parser.add_argument('--rows', nargs='+', choices=list(rows.ROWS), default=list(rows.ROWS), metavar='ROW',
                        help=f'measure only these: {", ".join(rows.ROWS)}')
    parser.add_argument('--rounds', type=utils.positive_int, help="of every row, instead of each row's own number")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    output_dir = os.path.abspath(args.output_dir)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the work folder is removed
    os.environ['CUDA_VISIBLE_DEVICES'] = '-1'  # for all processes: the comparison is on CPU cores
    data = inputs.find_data(args.data_dir or (VOC if os.path.isdir(VOC) else None), output_dir)
    measure_rows(args.rows, data, rows.Plan(rounds=args.rounds), output_dir)


if __name__ == '__main__':
    sys.argv[0] = 'benchmarks'  # what messages begin with
    utils.run_program(main)
