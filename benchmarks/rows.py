"""The rows: which contenders each one sets against each other, and the lines and tables that come of it.

A row is a function of run.Bench that returns Found.
"""
import collections
import dataclasses
import importlib.util
import os

from benchmarks import measure
from benchmarks.measure import Contender, peaks, rates
from benchmarks.tables import Line, Table, Target


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much each row does; the defaults are `make bench`'s."""
    rounds: int | None = None  # of every row; None: each row's own
    fc_channels: int = 4096
    crop_size: int = 224
    steps: int = 2  # in a round of train_4
    window: int = 10  # steps in a round of train_1: the earlier suite logs so often
    torch_steps: int = 3  # in a round of train_1, of PyTorch's contenders
    reading_batches: int = 60  # in a round of reading
    image_size: tuple = (375, 500)  # height and width in predict
    predicted: int = 4  # in a round of predict
    maps: int = 6  # validation images in crf and crf_pool
    crf_images: int = 3  # in a round of crf
    pool_images: int = 24  # in a round of crf_pool
    model_steps: int = 150  # of the network that makes the maps, if none is given
    model_channels: int = 512
    model_crop: int = 128
    run_steps: int = 10  # of the short run in validation
    growth_steps: int = 2
    growth_batches: tuple = (1, 2, 4, 8, 16)
    growth_batch_crop: int = 128
    growth_crops: tuple = (128, 192, 256, 384)
    crf_heights: tuple = (120, 180, 250, 375, 500)
    crf_labels: tuple = (2, 5, 10, 15, 21)
    crf_repeats: int = 2
    converter_workers: tuple = (1, 2, 4)


Found = collections.namedtuple('Found', 'lines tables', defaults=((), ()))
Row = collections.namedtuple('Row', 'function minutes method')
Row.__doc__ = """function: of Bench to Found. minutes: about how long, on two cores. method: str, how it measures."""

NOT_INSTALLED = 'not installed'


def has_torch():
    return importlib.util.find_spec('torch') is not None


def lines_against(row, measured, ours, opponents, figures, targets=None):
    """A Line for each opponent.

    Args:
        row, measured: str. ours: list of Round. figures: function of list of Round to list of float.
        opponents: dict of name to list of Round, or to str: why there are none.
        targets: dict of name to Target.
    """
    return [Line(row, measured, figures(ours), name, theirs if isinstance(theirs, str) else figures(theirs),
                 (targets or {}).get(name)) for name, theirs in opponents.items()]


# ------------------------------------------------------------------------------------------- conversion


def converter(bench, folder, *flags):
    """Arguments of convert_fcn_dataset.py, and the records that it then writes."""
    target = os.path.join(bench.work_dir, folder)
    arguments = ['convert_fcn_dataset.py', '--data_dir', bench.data.folder, '--train_split', bench.data.train_split,
                 '--train_label_dir', bench.data.train_label_dir, '--output_dir', target, *flags]
    return arguments, [os.path.join(target, f'fcn_{role}.record') for role in ('train', 'val')]


def earlier_converter(bench):
    """Arguments of earlier_convert.py for the same images, and its records."""
    records = [os.path.join(bench.work_dir, f'earlier_{role}.record') for role in ('train', 'val')]
    arguments = ['-m', 'benchmarks.earlier_convert']
    for (list_path, label_dir), record in zip(bench.data.splits(), records):
        arguments += [bench.data.path('JPEGImages'), label_dir, list_path, record]
    return arguments, records


def convert(bench):
    num_images, sources = bench.data.num_images(), bench.data.sources()
    num_bytes = sum(map(os.path.getsize, bench.records))
    settings = {'ours': converter(bench, 'ours'), 'earlier suite': earlier_converter(bench)}
    contenders = [Contender(name, 'measure', 'whole_process',
                            {'arguments': arguments, 'items': num_images, 'files': files})
                  for name, (arguments, files) in settings.items()]
    limit = 'read and write alone'
    contenders.append(Contender(limit, 'conversion', 'read_and_write',
                                {'sources': sources, 'num_bytes': num_bytes, 'items': num_images,
                                 'target': os.path.join(bench.work_dir, 'limit.bin')}))
    found = bench.take_turns(contenders, rounds=3)
    ours, earlier = found['ours'], {'earlier suite': found['earlier suite']}
    return Found([
        *lines_against('convert', 'images/s', ours, earlier, rates, {'earlier suite': Target('>=', 6)}),
        *lines_against('convert', 'MB of records', ours, earlier, sizes, {'earlier suite': Target('<=', 0.4)}),
        *lines_against('convert', 'peak memory, MB', ours, earlier, peaks, {'earlier suite': Target('<=', 0.5)}),
        *lines_against('convert', 'images/s', ours, {limit: found[limit]}, rates)])


def sizes(rounds):
    """Megabytes on disk of each Round of a converter."""
    return [each.extra / 1e6 for each in rounds]


def grow_convert(bench):
    """Conversion against its number of threads."""
    contenders = []
    for workers in bench.plan.converter_workers:
        arguments, _ = converter(bench, 'grow', '--num_workers', str(workers))
        contenders.append(Contender(str(workers), 'measure', 'whole_process',
                                    {'arguments': arguments, 'items': bench.data.num_images()}))
    found = bench.take_turns(contenders, rounds=3)
    rows = [(int(name), measure.summarise(rates(rounds)).median) for name, rounds in found.items()]
    return Found(tables=[Table('Conversion against --num_workers', 'images/s', ['--num_workers', 'images/s'], rows,
                               'bench_convert.png')])


# ------------------------------------------------------------------------------------------- input


def reading(bench):
    settings = {'record': bench.records[0], 'batch_size': 16, 'crop_size': bench.plan.crop_size,
                'batches': bench.plan.reading_batches}
    whole = 'decode whole, then crop'
    cores = measure.count_cores()
    threads = sorted({1, cores} | {2 ** power for power in range(10) if 2 ** power < cores})
    of_threads = {f'ours, a pool of {number}': {**settings, 'threads': number} for number in threads}
    found = bench.take_turns([
        Contender('ours', 'reading', 'ours', settings), Contender(whole, 'reading', 'whole_then_crop', settings),
        *(Contender(name, 'reading', 'ours', pooled) for name, pooled in of_threads.items())], rounds=5)
    lines = lines_against('reading', 'examples/s', found['ours'], {whole: found[whole]}, rates,
                          {whole: Target('>=', 1.8)})
    if bench.appetite:
        lines.append(Line('reading', 'examples/s', rates(found['ours']), "the training step's appetite, batch 4",
                          [bench.appetite] * len(found['ours'])))
    one, *more = of_threads
    for name in more:
        lines.append(Line('reading', f'examples/s, {name.removeprefix("ours, ")}', rates(found[name]),
                          one, rates(found[one])))
    return Found(lines)


# ------------------------------------------------------------------------------------------- training


def torch_contender(name, **settings):
    return [Contender(name, 'pytorch_fcn', 'training', settings)] if has_torch() else []


def train_4(bench):
    """Batches of 4: against constant input and PyTorch."""
    plan = bench.plan
    settings = {'batch_size': 4, 'crop_size': plan.crop_size, 'fc_channels': plan.fc_channels, 'steps': plan.steps}
    constant, torch = 'one constant batch', 'PyTorch eager'
    of_ours = {**settings, 'record': bench.records[0]}
    found = bench.take_turns([Contender('ours', 'training', 'ours', of_ours),
                              Contender(constant, 'training', 'constant_input', of_ours),
                              *torch_contender(torch, **settings)], rounds=6)
    ours, row = found['ours'], 'train_4'
    bench.appetite = measure.summarise(rates(ours)).median
    against_torch = {torch: found.get(torch, NOT_INSTALLED)}
    return Found([
        *lines_against(row, 'images/s', ours, {constant: found[constant]}, rates, {constant: Target('>=', 0.97)}),
        *lines_against(row, 'images/s', ours, against_torch, rates, {torch: Target('>=', 1.25)}),
        *lines_against(row, 'peak memory, MB', ours, against_torch, peaks, {torch: Target('<=', 1)})])


def train_1(bench):
    """Batches of 1: against the earlier suite's loop and PyTorch."""
    plan = bench.plan
    settings = {'batch_size': 1, 'crop_size': plan.crop_size, 'fc_channels': plan.fc_channels}
    log_dirs = {name: os.path.join(bench.work_dir, f'events_{name}') for name in ('ours', 'earlier')}
    earlier, torch, fused = "earlier suite's loop", 'PyTorch eager', 'PyTorch eager, Adam(fused=True)'
    contenders = [
        Contender('ours', 'training', 'ours', {**settings, 'record': bench.records[0], 'steps': plan.window,
                                               'log_dir': log_dirs['ours']}),
        Contender(earlier, 'earlier_suite', 'training', {
            **settings, 'train_record': bench.records[0], 'val_record': bench.records[1], 'steps': plan.window,
            'log_dir': log_dirs['earlier']}),
        *torch_contender(torch, **settings, steps=plan.torch_steps),
        *torch_contender(fused, **settings, steps=plan.torch_steps, fused=True)]
    found = bench.take_turns(contenders, rounds=4)
    ours, row = found['ours'], 'train_1'
    plain = [each._replace(seconds=each.extra) for each in ours]  # without the histograms' share
    opponents = {name: found.get(name, NOT_INSTALLED) for name in (torch, fused)}
    return Found([
        *lines_against(row, 'images/s, logs included', ours, {earlier: found[earlier]}, rates,
                       {earlier: Target('>=', 1.3)}),
        *lines_against(row, 'images/s', plain, opponents, rates, {torch: Target('>=', 1.25)}),
        *lines_against(row, 'peak memory, MB', plain, opponents, peaks, {torch: Target('<=', 1)})])


def validation(bench):
    """What validation pictures and checkpoints cost a run."""
    plan = bench.plan
    settings = {'record': bench.records[0], 'val_record': bench.records[1], 'batch_size': 1,
                'crop_size': plan.crop_size, 'fc_channels': plan.fc_channels, 'steps': plan.run_steps}
    every = {'with both': (plan.run_steps // 2, plan.run_steps), 'without': (0, plan.run_steps + 2)}
    found = bench.take_turns([
        Contender(name, 'training', 'whole_run', {**settings, 'val_steps': val_steps, 'save_steps': save_steps,
                                                  'output_dir': os.path.join(bench.work_dir, f'run_{name[:4]}')})
        for name, (val_steps, save_steps) in every.items()], rounds=2, warm_up=False)
    run = f'images/s of a run, --val_steps {every["with both"][0]} --save_steps {every["with both"][1]}'
    both = found['with both']
    return Found([
        Line('validation', 'seconds a checkpoint', [seconds for each in both for seconds in each.extra['save']]),
        Line('validation', 'seconds that a validation picture holds up the steps',
             [seconds for each in both for seconds in each.extra['validate']]),
        *lines_against('validation', run, both, {'without either': found['without']}, rates)])


def grow_train(bench):
    """Training against batch and crop."""
    plan = bench.plan
    by_batch = [(batch, plan.growth_batch_crop) for batch in plan.growth_batches]
    by_crop = [(1, crop) for crop in plan.growth_crops]
    contender = Contender('grow', 'training', 'grow', {
        'record': bench.records[0], 'configurations': by_batch + by_crop, 'fc_channels': plan.fc_channels,
        'steps': plan.growth_steps})
    figures = rates(bench.run_all(contender, len(by_batch) + len(by_crop)))
    batch_rows = [(batch, rate) for (batch, _), rate in zip(by_batch, figures)]
    crop_rows = [(crop, rate) for (_, crop), rate in zip(by_crop, figures[len(by_batch):])]
    return Found(tables=[
        Table(f'Training against batch size, crop {plan.growth_batch_crop}', 'images/s', ['batch size', 'images/s'],
              batch_rows, 'bench_train_batch.png'),
        Table('Training against crop size, batch 1', 'images/s', ['crop size', 'images/s'], crop_rows,
              'bench_train_crop.png')])


# ------------------------------------------------------------------------------------------- prediction


def predict(bench):
    height, width = bench.plan.image_size
    settings = {'height': height, 'width': width, 'images': bench.plan.predicted}
    torch = 'PyTorch eager'
    contenders = [Contender('ours', 'prediction', 'ours', {**settings, 'checkpoint': bench.checkpoint})]
    if has_torch():
        contenders.append(Contender(torch, 'pytorch_fcn', 'prediction',
                                    {**settings, 'fc_channels': bench.plan.fc_channels}))
    found = bench.take_turns(contenders, rounds=6)
    opponents = {torch: found.get(torch, NOT_INSTALLED)}
    return Found([
        *lines_against('predict', f'images/s of {width} x {height}', found['ours'], opponents, rates,
                       {torch: Target('>=', 1.25)}),
        *lines_against('predict', 'peak memory, MB', found['ours'], opponents, peaks)])


def start(bench):
    """The whole of predict.py for one photo."""
    photo = bench.data.sources()[0]
    least = 'import TensorFlow, read the weights'
    programs = {'ours': ['predict.py', '--checkpoint_path', bench.checkpoint, '--images', photo, '--output_dir',
                         os.path.join(bench.work_dir, 'predictions')],
                least: ['-m', 'benchmarks.read_weights', bench.checkpoint]}
    found = bench.take_turns([Contender(name, 'measure', 'whole_process', {'arguments': arguments, 'items': 1})
                              for name, arguments in programs.items()], rounds=4)
    return Found(lines_against('start', 'seconds', found['ours'], {least: found[least]}, seconds_of,
                               {least: Target('<=', 1.5)}))


def seconds_of(rounds):
    return [each.seconds for each in rounds]


# ------------------------------------------------------------------------------------------- CRF


def crf(bench):
    return Found([line for kind, maps in bench.maps.items() for line in compare_refinements(bench, kind, *maps)])


def compare_refinements(bench, kind, folder, count):
    """Lines of crf.refine against pydensecrf on one kind of maps."""
    settings = {'folder': folder, 'count': count, 'per_round': bench.plan.crf_images}
    plain = 'pydensecrf, 21 labels'
    found = bench.take_turns([
        Contender('ours', 'refinement', 'one_process', {**settings, 'function': 'crf.refine'}, cores=1),
        Contender(plain, 'refinement', 'one_process', {**settings, 'function': 'pydensecrf'}, cores=1)], rounds=10)
    num_compared = min(count, sum(each.items for each in found['ours']))
    equal = 100 * share_equal(found['ours'], found[plain])
    return [*lines_against('crf', f'images/s on one core, {kind} maps', found['ours'], {plain: found[plain]}, rates,
                           {plain: Target('>=', 2.2)}),
            Line('crf', f'% of pixels equal, {num_compared} {kind} maps', [equal], plain, target=Target('>=', 99.99))]


def share_equal(ours, theirs):
    """Share of pixels that have the same label in both, over all images of all rounds, float."""
    pairs = [(own == other) for mine, yours in zip(ours, theirs) for own, other in zip(mine.extra, yours.extra)]
    return sum(int(equal.sum()) for equal in pairs) / sum(equal.size for equal in pairs)


def crf_pool(bench):
    folder, count = next(iter(bench.maps.values()))
    settings = {'folder': folder, 'count': count, 'per_round': bench.plan.pool_images}
    alone = 'one process'
    found = bench.take_turns([
        Contender('ours', 'refinement', 'pool', {**settings, 'processes': 2}),
        Contender(alone, 'refinement', 'one_process', {**settings, 'function': 'crf.refine'})], rounds=6)
    return Found(lines_against('crf_pool', 'images/s, two processes', found['ours'], {alone: found[alone]}, rates,
                               {alone: Target('>=', 1.8)}))


def grow_crf(bench):
    """The CRF against pixels and labels."""
    folder, count = next(iter(bench.maps.values()))
    plan = bench.plan
    contender = Contender('grow', 'refinement', 'grow', {
        'folder': folder, 'number': count // 2, 'heights': plan.crf_heights, 'label_counts': plan.crf_labels,
        'repeats': plan.crf_repeats}, cores=1)
    by_pixels, by_labels = bench.run_all(contender, 1)[0].extra
    y = 'seconds an image, one core'
    return Found(tables=[
        Table('CRF against pixels', y, ['pixels', 'pydensecrf, 21 labels', 'crf.refine, 21 labels in play',
                                        "crf.refine, the network's map"], by_pixels, 'bench_crf_pixels.png'),
        Table('CRF against labels in play', y, ['labels', 'pydensecrf', 'crf.refine'], by_labels,
              'bench_crf_labels.png')])


# ------------------------------------------------------------------------------------------- all rows

ROWS = {
    'convert': Row(convert, 2, (
        'whole processes, from their start to their end, over all images of both splits; memory is the peak of the '
        'process. The opponent works as the earlier suite did: one process, image and mask by cv2.imread, colours '
        'through a table of 256^3, labels as raw bytes. "Read and write alone" reads the same files and writes as many '
        'bytes as our records hold. All files are in the page cache.')),
    'train_4': Row(train_4, 3.5, (
        "train.py's graph and step (build_training, run_step) at batch 4, input pipeline included; against the same "
        'graph fed one constant batch, and against the same network, loss and torch.optim.Adam in PyTorch eager on '
        "one constant batch. Memory is the peak of each one's process.")),
    'train_1': Row(train_1, 4.5, (
        'batch 1. The earlier loop: tf.cond over training and validation input by a placeholder, whole images decoded '
        'and cropped, and every 10th step (a round here) a second session.run for loss and histograms of all variables '
        'and gradients, written for TensorBoard. Ours has its log in the figure too: 10 plain steps and a tenth of '
        'what a step with histograms takes more, as they come every 100 steps. Against PyTorch: the plain steps.')),
    'reading': Row(reading, 2, (
        'the input pipeline without a network, batch 16; each round starts it anew and draws a quarter of its batches '
        'before the clock starts. "A pool of N": in a private thread pool of N. The appetite is what train_4 found.')),
    'predict': Row(predict, 1, (
        'one image after the other, from uint8 to the float32 softmax in NumPy; PyTorch eager in inference_mode.')),
    'start': Row(start, 1.5, (
        'whole processes: `predict.py` of one photo with a checkpoint of full width, against a process that imports '
        'TensorFlow and reads the same weights.')),
    'validation': Row(validation, 3, (
        "train.train at batch 1, from its first step's end to its last's; a checkpoint holds the weights and Adam's "
        'state. A validation picture holds the steps up while it is predicted; its CRF and its files are made by a '
        'process beside them, which only the images/s of the run have in them.')),
    'crf': Row(crf, 3.5, (
        'crf.refine on one core against pydensecrf with the same parameters on all 21 labels, on softmax maps; each '
        'round takes the next images, and the labels of all are compared. Decided maps: by a network that has learnt '
        "these images by heart (tools/overfit.py), whose probabilities are as clear as a well trained one's. "
        'Undecided maps: by the same network after a third of its steps, most labels still in play.')),
    'crf_pool': Row(crf_pool, 1, (
        "the pool of two processes that evaluate.py uses, the images' way there and back included, against the same "
        'images in a loop.')),
    'grow_train': Row(grow_train, 3, "the median step of a few of train.py's, after one that warms up."),
    'grow_crf': Row(grow_crf, 1, (
        'one validation image at several sizes, the fastest of the calls. "In play": the map is mixed with the even '
        'one, so that no label is out of the question; for fewer than 21 labels, it holds its most probable ones.')),
    'grow_convert': Row(grow_convert, 0.5, 'whole processes, as in convert.'),
}
