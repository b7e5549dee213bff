"""Measures the suite against other ways of doing the same work, and writes out/bench/benchmarks.md.

    python -m benchmarks --data_dir VOCdevkit/VOC2012
    python -m benchmarks --rows crf predict --rounds 3

Takes about half an hour on two cores. PyTorch is an opponent where it is installed (pip install torch==2.13.0). `make
bench` copies the page to results/.
"""
import os
import sys
import tempfile

import utils
from benchmarks import inputs, measure, page, rows


def parse_args(argv=None):
    parser = utils.ArgumentParser('Measures the suite against other ways of doing the same work.')
    parser.prog = 'benchmarks'
    parser.add_argument('--data_dir', help='folder in the layout of VOC; without it, pictures are drawn')
    parser.add_argument('--output_dir', default='out/bench', help='folder for the page, benchmarks.md, and for logs')
    parser.add_argument('--rows', nargs='+', choices=list(rows.ROWS), default=list(rows.ROWS), metavar='ROW',
                        help=f'measure only these: {", ".join(rows.ROWS)}')
    parser.add_argument('--rounds', type=utils.positive_int, default=4, help='of every row')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    os.environ['CUDA_VISIBLE_DEVICES'] = '-1'  # for all processes: the comparison is on CPU cores
    output_dir = os.path.abspath(args.output_dir)
    log_dir = os.path.join(output_dir, 'logs')
    os.makedirs(log_dir, exist_ok=True)
    with utils.StopSignals(), tempfile.TemporaryDirectory(prefix='work-', dir=output_dir) as work_dir:
        data_dir = os.path.abspath(args.data_dir or os.path.join(work_dir, 'VOC'))
        shared = inputs.Inputs(data_dir, log_dir, work_dir, args.rounds)
        if not args.data_dir:
            measure.run_script(log_dir, 'tools/make_sample_dataset.py', output_dir=data_dir)
        measure_rows(args.rows, shared, os.path.join(output_dir, 'benchmarks.md'))


def measure_rows(names, shared, page_path):
    """Measures rows, list of str, and writes the page, anew after each row: if one fails, it has those before."""
    facts, lines, methods = page.describe_surroundings(), [], {}
    facts.append(f'- data: {os.path.basename(shared.data_dir)}, {len(shared.photos)} images')
    for name in names:
        print(f'{name}:', flush=True)
        lines += [[name, *cells] for cells in rows.ROWS[name](shared)]
        methods[name] = rows.ROWS[name].__doc__
        page.write_page(page_path, facts, lines, methods)
    print(f'written: {page_path}')


if __name__ == '__main__':
    sys.argv[0] = 'benchmarks'  # what messages begin with
    utils.run_program(main)
