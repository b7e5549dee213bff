"""docs/first_steps.ipynb runs from top to bottom, here with a few steps and weights that were drawn at random."""
import os
from pathlib import Path

import pytest
import tensorflow.compat.v1 as tf
import tf_slim as slim

import vgg

NOTEBOOK = Path(__file__).parent.parent / 'docs' / 'first_steps.ipynb'
SMALL = {"'out/first_steps'": "{folder!r} + '/run'", "'out/vgg_16.ckpt'": "{folder!r} + '/vgg_16.ckpt'",
         'STEPS = 200': 'STEPS = 2', 'TRAIN, VAL = 160, 20': 'TRAIN, VAL = 8, 2'}


def save_trunk(path):
    """Writes a checkpoint of VGG16's convolutions with random weights."""
    with tf.Graph().as_default(), tf.Session() as session:
        with slim.arg_scope(vgg.vgg_arg_scope()):
            vgg.vgg_16(tf.zeros([1, 32, 32, 3]), num_classes=None, fc_conv_padding='SAME', fc_channels=8)
        session.run(tf.global_variables_initializer())
        convolutions = [variable for variable in tf.trainable_variables() if '/conv' in variable.name]
        tf.train.Saver(convolutions).save(session, path, write_meta_graph=False)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(full_network, tmp_path, monkeypatch):
    nbformat = pytest.importorskip('nbformat', reason='nbformat is not installed')
    nbclient = pytest.importorskip('nbclient', reason='nbclient is not installed')
    pytest.importorskip('ipykernel', reason='ipykernel is not installed')
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    settings = next(cell for cell in notebook.cells if cell.cell_type == 'code')
    for written, small in SMALL.items():
        assert written in settings.source
        settings.source = settings.source.replace(written, small.format(folder=str(tmp_path)))
    save_trunk(str(tmp_path / 'vgg_16.ckpt'))
    monkeypatch.setenv('PIP_DRY_RUN', '1')  # a test installs nothing
    nbclient.NotebookClient(notebook, timeout=600, resources={'metadata': {'path': str(NOTEBOOK.parent)}}).execute()

    outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
    text = ''.join(output.get('text', '') for output in outputs)
    assert 'Traceback' not in text and 'error:' not in text and 'mean IoU' in text and 'photos done: 1' in text
    assert sum('image/png' in output.get('data', ()) for output in outputs) == 3
    assert all(len(str(output)) < 200_000 for output in outputs)
    assert {'index.html', 'predictions', 'eval', 'best'} <= set(os.listdir(tmp_path / 'run'))


def test_the_notebook_is_saved_without_outputs():
    assert NOTEBOOK.stat().st_size < 200_000
    assert '"output_type"' not in NOTEBOOK.read_text(encoding='utf-8')
