"""What training starts from, what it resumes from, and what is never written."""
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from conftest import full_disk, short_run

import train
import vgg
from datasets import classes
from inference.weights import checkpoint_step, find_checkpoint, network_variables, read_settings, read_shapes
from train import Network
from training import checkpoints, run_folder, towers
from utils import UserError

IMAGES = np.random.RandomState(0).randint(0, 256, (2, 70, 50, 3)).astype(np.uint8)
DATA, INDEX = 'data-00000-of-00001', 'index'

# ------------------------------------------------------------------------------------------- VGG16


def write_slim_checkpoint(path, fc_channels=8, leave_out=(), version=tf.train.SaverDef.V2, fill=None):
    """A checkpoint as tf-slim's training wrote it: vgg_16's variables with a 1000-way fc8, and a global_step.

    Returns:
        dict of variable names to values.
    """
    with tf.Graph().as_default(), tf.Session() as session:
        vgg.vgg_16(tf.zeros([1, 224, 224, 3]), fc_channels=fc_channels)
        step = tf.train.create_global_step()
        session.run(tf.global_variables_initializer())
        session.run(step.assign(77777))
        if fill is not None:
            session.run([v.assign(tf.fill(v.shape, fill)) for v in tf.trainable_variables()])
        kept = [v for v in tf.global_variables() if v.op.name not in leave_out]
        values = {v.op.name: session.run(v) for v in kept} if fill is None else None
        tf.train.Saver(kept, write_version=version).save(session, str(path), write_meta_graph=False,
                                                         write_state=False)
    return values


def restore_into_fcn(path, fc_channels=8):
    """Builds FCN-8s, restores VGG16 from `path`, returns all variables' values and global_step's."""
    train.fcn(tf.zeros([1, 32, 32, 3]), Network(fc_channels=fc_channels))
    step = tf.train.create_global_step()
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        checkpoints.restore_vgg(session, str(path))
        return {v.op.name: session.run(v) for v in tf.trainable_variables()}, session.run(step)


@pytest.mark.slow
@pytest.mark.parametrize('version', [tf.train.SaverDef.V1,  # as the published file
                                     pytest.param(tf.train.SaverDef.V2, marks=pytest.mark.slow)])
def test_a_slim_checkpoint_restores_by_name_up_to_fc7(full_network, tmp_path, version):
    written = write_slim_checkpoint(tmp_path / 'vgg_16.ckpt', version=version)
    assert find_checkpoint(str(tmp_path / 'vgg_16.ckpt'))
    restored, step = restore_into_fcn(tmp_path / 'vgg_16.ckpt')
    assert step == 0  # the checkpoint's own step is not this run's
    old = [name for name in written if name != 'global_step' and 'fc8' not in name]
    assert len(old) == 30
    for name in old:
        np.testing.assert_array_equal(restored[name], written[name])
    assert not restored['vgg_16/fc8/weights'].any() and restored['vgg_16/fc8/weights'].shape == (1, 1, 8, 21)


@pytest.mark.slow
def test_a_slim_checkpoint_of_the_published_size_restores(full_network, tmp_path):
    write_slim_checkpoint(tmp_path / 'vgg_16.ckpt', fc_channels=4096, fill=0.25)
    assert read_shapes(str(tmp_path / 'vgg_16.ckpt'))['vgg_16/fc8/weights'] == [1, 1, 4096, 1000]
    restored, _ = restore_into_fcn(tmp_path / 'vgg_16.ckpt', fc_channels=4096)
    assert restored['vgg_16/fc6/weights'].shape == (7, 7, 512, 4096)
    assert all((restored[name] == 0.25).all() for name in restored if 'fc8' not in name)


def test_a_trunk_leaves_fc6_and_fc7_at_random_and_says_so(small_runs, tmp_path, capsys):
    fc = [f'vgg_16/{layer}/{kind}' for layer in ('fc6', 'fc7', 'fc8') for kind in ('weights', 'biases')]
    written = write_slim_checkpoint(tmp_path / 'trunk.ckpt', leave_out=fc)
    restored, _ = restore_into_fcn(tmp_path / 'trunk.ckpt')
    np.testing.assert_array_equal(restored['vgg_16/conv5/conv5_1/weights'], written['vgg_16/conv5/conv5_1/weights'])
    assert restored['vgg_16/fc6/weights'].std() > 0
    assert capsys.readouterr().out == (
        f'VGG16 restored from {tmp_path}/trunk.ckpt: 10 variables; it holds the convolutions only: fc6 and fc7 start '
        "at random. That gave others a mean IoU of 30 (FCN-32s, VOC) where ImageNet's gave 57; tools/download.py "
        'fetches the complete file\n')


@pytest.mark.slow
@pytest.mark.parametrize('width, parts', [(4, 1), (2, 2), (1, 1)])
def test_narrower_fc6_and_fc7_take_every_kth_filter(small_runs, tmp_path, capsys, width, parts):
    """From 8 channels; also into a kernel that two machines hold."""
    written = write_slim_checkpoint(tmp_path / 'vgg_16.ckpt', version=tf.train.SaverDef.V1)
    if parts > 1:
        towers.partition_fc6(parts)
    restored, _ = restore_into_fcn(tmp_path / 'vgg_16.ckpt', fc_channels=width)
    kernels = [restored[name] for name in sorted(restored) if name.startswith('vgg_16/fc6/weights')]
    assert len(kernels) == parts
    kept = np.arange(8)[::8 // width]
    np.testing.assert_array_equal(np.concatenate(kernels, axis=3), np.take(written['vgg_16/fc6/weights'], kept, axis=3))
    for layer in ('fc6', 'fc7'):
        np.testing.assert_array_equal(restored[f'vgg_16/{layer}/biases'], written[f'vgg_16/{layer}/biases'][kept])
    np.testing.assert_array_equal(restored['vgg_16/fc7/weights'][0, 0],
                                  [[written['vgg_16/fc7/weights'][0, 0, i, j] for j in kept] for i in kept])
    np.testing.assert_array_equal(restored['vgg_16/conv5/conv5_1/weights'], written['vgg_16/conv5/conv5_1/weights'])
    assert f'{13 + parts} variables; of fc6 and fc7 one filter in {8 // width}\n' in capsys.readouterr().out


@pytest.mark.slow
def test_narrower_fc6_and_fc7_that_do_not_fit_are_refused(small_runs, tmp_path):
    write_slim_checkpoint(tmp_path / 'vgg_16.ckpt')
    for width in (3, 16):
        with tf.Graph().as_default(), pytest.raises(UserError, match='its fc6 has 8 channels; give --fc_channels 8 or '
                                                                     f'a divisor of it, not {width}'):
            restore_into_fcn(tmp_path / 'vgg_16.ckpt', fc_channels=width)
    write_slim_checkpoint(tmp_path / 'damaged.ckpt', leave_out=['vgg_16/fc7/weights'])
    with tf.Graph().as_default(), pytest.raises(UserError, match='variable vgg_16/fc7/weights is missing'):
        restore_into_fcn(tmp_path / 'damaged.ckpt', fc_channels=4)


@pytest.mark.slow
@pytest.mark.parametrize('version', [tf.train.SaverDef.V1, tf.train.SaverDef.V2])
def test_t14_vgg_16_in_the_folder_is_taken(small_runs, record, tmp_path, monkeypatch, capsys, version):
    """And it is not mentioned again when the run resumes."""
    monkeypatch.chdir(tmp_path)
    write_slim_checkpoint('./vgg_16.ckpt', version=version)
    train.main(short_run(record, 'out', '--max_steps', 1))
    out = capsys.readouterr().out
    assert 'vgg_16.ckpt in this folder is used; --checkpoint_path none starts at random\n' in out
    assert 'VGG16 restored from vgg_16.ckpt: ' in out
    assert read_settings('out/train')['vgg_weights_from'] == 'vgg_16.ckpt'
    train.main(short_run(record, 'out', '--max_steps', 2))
    assert 'vgg_16.ckpt' not in capsys.readouterr().out
    assert read_settings('out/train')['vgg_weights_from'] == 'vgg_16.ckpt'


@pytest.mark.parametrize('path, expected, printed', [
    (None, 'vgg_16.ckpt', 'vgg_16.ckpt in this folder is used; --checkpoint_path none starts at random\n'),
    ('none', None, ''), ('./vgg_16.ckpt', './vgg_16.ckpt', '')])
def test_t14_what_a_run_starts_from(small_runs, tmp_path, monkeypatch, capsys, path, expected, printed):
    monkeypatch.chdir(tmp_path)
    write_slim_checkpoint('./vgg_16.ckpt')
    assert checkpoints.find_start(path, 'out') == expected
    assert capsys.readouterr().out == printed


def test_t14_a_random_start_needs_no_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.mkdir('vgg_16.ckpt')  # a folder of that name is not taken
    assert checkpoints.find_start(None, 'out') is checkpoints.find_start('none', 'out') is None
    with pytest.raises(UserError, match='missing.ckpt: no checkpoint there'):
        checkpoints.find_start('missing.ckpt', 'out')
    assert capsys.readouterr().out == ''


def test_a_run_that_resumes_needs_its_start_no_more(tmp_path):
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train' / 'checkpoint').touch()
    assert checkpoints.find_start('missing.ckpt', str(tmp_path)) is None


@pytest.mark.parametrize('harm', [lambda path: path.write_bytes(b'<html>'), lambda path: os.truncate(path, 100)])
def test_t14_a_damaged_file_is_named(small_runs, tmp_path, monkeypatch, harm):
    monkeypatch.chdir(tmp_path)
    write_slim_checkpoint('./vgg_16.ckpt', version=tf.train.SaverDef.V1)
    harm(tmp_path / 'vgg_16.ckpt')
    with pytest.raises(UserError, match='vgg_16.ckpt: not a TensorFlow checkpoint, or damaged'):
        checkpoints.find_start(None, 'out')


@pytest.mark.parametrize('missing', ['vgg_16/conv3/conv3_1/biases', 'vgg_16/fc7/weights'])
def test_a_variable_that_vgg_lacks_is_named(small_runs, tmp_path, missing):
    write_slim_checkpoint(tmp_path / 'vgg_16.ckpt', leave_out=[missing])
    with pytest.raises(UserError, match=f'vgg_16.ckpt: variable {missing} is missing'):
        restore_into_fcn(tmp_path / 'vgg_16.ckpt')


# ------------------------------------------------------------------------------------------- models of the family


def run_network(network, initialise):
    """Logits of IMAGES, and the variables by name, after initialise(session)."""
    with tf.Graph().as_default():
        logits = train.fcn(tf.constant(IMAGES), network)
        with tf.Session() as session:
            initialise(session)
            return session.run([logits, {v.op.name: v.value() for v in network_variables()}])


def write_checkpoint(network, path):
    """Writes a checkpoint of a network whose upsampling and scores are not what they start as; see run_network."""
    def initialise(session):
        session.run(tf.global_variables_initializer())
        random = np.random.RandomState(1)
        for variable in tf.trainable_variables('vgg_16/fc8/'):
            variable.load(session.run(variable) + random.normal(0, 0.1, variable.shape.as_list()), session)
        tf.train.Saver(network_variables()).save(session, path, write_meta_graph=False)
    return run_network(network, initialise)


def start_from(path, class_set=classes.VOC):
    return lambda session: checkpoints.set_starting_weights(session, None, path, class_set)


def test_a_random_start_has_nothing_to_freeze(small_runs):
    with pytest.raises(UserError, match='^--freeze conv3: there are no weights to keep; give --checkpoint_path$'):
        run_network(Network(fc_channels=8), lambda session: checkpoints.set_starting_weights(
            session, None, None, classes.VOC, 'conv3'))


@pytest.mark.parametrize('coarse, fine, skips', [
    pytest.param('fcn_32s', 'fcn_16s', 'pool4', marks=pytest.mark.slow),
    pytest.param('fcn_16s', 'fcn_8s', 'pool3', marks=pytest.mark.slow), ('fcn_32s', 'fcn_8s', 'pool4 and pool3')])
def test_a_finer_model_starts_as_the_coarser_one_has_ended(small_runs, tmp_path, capsys, coarse, fine, skips):
    """Its logits are the coarser one's, at the image's size, whatever that has learned; the new skip is at zero."""
    path = str(tmp_path / 'model.ckpt-7')
    ended, _ = write_checkpoint(Network(coarse, fc_channels=8), path)
    started, variables = run_network(Network(fine, fc_channels=8), start_from(path))
    np.testing.assert_allclose(started, ended, rtol=0, atol=1e-5)
    assert np.abs(ended).max() > 0.1
    for pool in skips.split(' and '):
        assert not variables[f'vgg_16/fc8/conv_{pool}/weights'].any()
    assert f'scores of {skips} start at zero' in capsys.readouterr().out


def test_skips_that_the_coarser_model_lacks_are_named(small_runs, tmp_path, capsys):
    path = str(tmp_path / 'model.ckpt-7')
    write_checkpoint(Network(fc_channels=8), path)
    run_network(Network('fcn_16s', fc_channels=8), start_from(path))
    assert capsys.readouterr().out.endswith('model.ckpt-7; its scores of pool3 are left out: --model has none\n')


def test_the_optimisers_variables_of_a_run_are_no_skips_left_out(small_runs, record, tmp_path, capsys):
    train.main(short_run(record, tmp_path / 'first', '--max_steps', 1))
    train.main(short_run(record, tmp_path / 'second', '--max_steps', 1, '--checkpoint_path', tmp_path / 'first'))
    assert f'network restored from {tmp_path}/first/train/model.ckpt-1\n' in capsys.readouterr().out


def test_kernels_of_a_run_make_up_for_other_scales(small_runs, tmp_path):
    """Scores stay: the kernel of pool4 learned with 0.01 is a hundredth with 1."""
    path = str(tmp_path / 'model.ckpt-7')
    ended, before = write_checkpoint(Network('fcn_16s', fc_channels=8, skip_scales=(0.01, 1)), path)
    started, after = run_network(Network('fcn_8s', fc_channels=8, skip_scales=(1, 0.5)), start_from(path))
    np.testing.assert_allclose(started, ended, rtol=0, atol=1e-4)
    assert [after[f'vgg_16/fc8/scale_{pool}'] for pool in ('pool4', 'pool3')] == [1, 0.5]
    kernel = 'vgg_16/fc8/conv_pool4/weights'
    np.testing.assert_allclose(after[kernel], before[kernel] / 100, rtol=1e-6)


def test_other_classes_start_anew_on_the_trunk_of_a_run(small_runs, trained, capsys):
    checkpoint = find_checkpoint(str(trained))
    own = classes.make_class_set([f'thing {number}' for number in range(21)])
    _, variables = run_network(Network(fc_channels=8), start_from(checkpoint, own))
    assert 'its run has other classes: their scores start anew' in capsys.readouterr().out
    reader = tf.train.load_checkpoint(checkpoint)
    for name in ('vgg_16/conv5/conv5_1/weights', 'vgg_16/fc7/weights'):
        np.testing.assert_array_equal(variables[name], reader.get_tensor(name))
    assert not variables['vgg_16/fc8/weights'].any() and reader.get_tensor('vgg_16/fc8/weights').any()


# ------------------------------------------------------------------------------------------- damaged checkpoints


def write_steps(folder, steps):
    """A run's folder of checkpoints of one variable, which holds the step. Returns the saver."""
    value = tf.get_variable('step', [1000])
    saver = tf.train.Saver(max_to_keep=checkpoints.MAX_TO_KEEP, save_relative_paths=True)
    with tf.Session() as session:
        for step in steps:
            session.run(value.assign(np.full(1000, step)))
            checkpoints.save(session, saver, str(folder), step)
    return saver


def empty(path):
    os.truncate(path, 0)


def truncate(path):
    os.truncate(path, os.path.getsize(path) // 2)


def flip_a_bit(path):
    with open(path, 'r+b') as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize('damage, ending, printed', [
    (truncate, DATA, 'damaged'), (flip_a_bit, DATA, 'damaged'), (empty, DATA, 'damaged'), (os.remove, DATA, ''),
    (truncate, INDEX, 'damaged'), (flip_a_bit, INDEX, 'damaged'), (empty, INDEX, 'damaged'),
    (os.remove, INDEX, 'not there')])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(tmp_path, capsys, damage, ending, printed):
    write_steps(tmp_path, (2, 4, 6))
    damage(tmp_path / f'model.ckpt-6.{ending}')
    assert checkpoints.find_resume(str(tmp_path)) == (str(tmp_path / 'model.ckpt-4'), 4)
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f'{tmp_path}/model.ckpt-6: {printed}') and line.endswith('trying the one before it')


def test_an_intact_checkpoint_is_taken_without_a_word(tmp_path, capsys):
    write_steps(tmp_path, (2, 4, 6))
    assert checkpoints.find_resume(str(tmp_path)) == (str(tmp_path / 'model.ckpt-6'), 6)
    assert not capsys.readouterr().out


def test_weights_that_are_not_finite_are_not_resumed_from(tmp_path, capsys):
    write_steps(tmp_path, (2, 4))
    value = tf.global_variables()[0]
    with tf.Session() as session:
        session.run(value.assign([*range(999), np.nan]))
        tf.train.Saver().save(session, str(tmp_path / 'model.ckpt'), 6, write_meta_graph=False)
    assert checkpoints.find_resume(str(tmp_path))[1] == 4
    assert 'model.ckpt-6: step is not finite' in capsys.readouterr().out


def test_without_an_intact_checkpoint_the_run_is_not_started_anew(tmp_path):
    write_steps(tmp_path, (2, 4))
    for step in (2, 4):
        truncate(tmp_path / f'model.ckpt-{step}.{DATA}')
    with pytest.raises(UserError, match='names no complete checkpoint of train.py; bring it back'):
        checkpoints.find_resume(str(tmp_path))


@pytest.mark.parametrize('state', ['model_checkpoint_path: "model.ckpt-7"\n', 'model_checkpoint_path: "mine.ckpt"\n'])
def test_without_the_named_checkpoint_the_run_is_not_started_anew(tmp_path, state):
    (tmp_path / 'checkpoint').write_text(state)
    with pytest.raises(UserError, match='names no complete checkpoint of train.py'):
        checkpoints.find_resume(str(tmp_path))


def test_a_new_folder_has_nothing_to_resume(tmp_path):
    assert checkpoints.find_resume(str(tmp_path)) == (None, 0)


@pytest.mark.parametrize('text', [None, '', 'no state'])
def test_without_the_state_file_the_newest_checkpoint_is_taken(tmp_path, text):
    write_steps(tmp_path, (2, 4, 10))
    os.remove(tmp_path / 'checkpoint')
    if text is not None:
        (tmp_path / 'checkpoint').write_text(text)
    assert checkpoints.find_resume(str(tmp_path))[1] == 10


@pytest.mark.parametrize('folder', ['out', './out', '../{}/out', '{}/out'])
def test_t12_the_state_file_of_a_resumed_run_names_its_checkpoints(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    train_dir = run_folder.make(folder.format(tmp_path if folder.startswith('{') else tmp_path.name))
    for steps in ((1, 2), (3, 4)):
        with tf.Graph().as_default(), tf.Session() as session:
            session.run(tf.get_variable('a', [2]).initializer)
            saver = checkpoints.RunSaver(session, train_dir, checkpoints.find_resume(train_dir)[0], tf.no_op())
            for step in steps:
                saver.add_step(step, [b'x'], 3.0)
                saver.save()
    state = tf.train.get_checkpoint_state('out/train')
    assert list(state.all_model_checkpoint_paths) == [f'out/train/model.ckpt-{step}' for step in (2, 3, 4)]
    assert state.model_checkpoint_path == 'out/train/model.ckpt-4'
    assert '/' not in (tmp_path / 'out' / 'train' / 'checkpoint').read_text()


def test_an_earlier_checkpoint_that_the_state_file_names_is_taken(tmp_path):
    write_steps(tmp_path, (2, 4, 6))
    (tmp_path / 'checkpoint').write_text('model_checkpoint_path: "model.ckpt-4"\n')
    assert checkpoints.find_resume(str(tmp_path))[1] == 4


def test_a_damaged_checkpoint_is_the_first_to_go(tmp_path, capsys):
    write_steps(tmp_path, (2, 4, 6))
    truncate(tmp_path / f'model.ckpt-6.{DATA}')
    resume_from, _ = checkpoints.find_resume(str(tmp_path))
    checkpoints.keep_newest(str(tmp_path), checkpoint_step(resume_from))
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / 'model.ckpt-4')
    capsys.readouterr()
    assert checkpoints.find_resume(str(tmp_path))[1] == 4 and not capsys.readouterr().out  # printed once
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        checkpoints.save(session, tf.train.Saver(max_to_keep=None), str(tmp_path), 5)
    assert checkpoints.list_steps(str(tmp_path)) == [2, 4, 5]
    assert sorted(name for name in os.listdir(tmp_path) if name.endswith(DATA)) == [
        f'model.ckpt-{step}.{DATA}' for step in (2, 4, 5)]


# ------------------------------------------------------------------------------------------- full disks


@full_disk
def test_a_full_disk_leaves_no_half_checkpoint(tmp_path, limit, number):
    with limit(tmp_path, 16384), pytest.raises(
            UserError, match=rf'model.ckpt-7: cannot be written \(.*{os.strerror(number)}.*\); free some space'):
        variable = tf.get_variable('a', [10000])
        with tf.Session() as session:
            session.run(variable.initializer)
            checkpoints.save(session, tf.train.Saver(), str(tmp_path), 7)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(('model', 'checkpoint'))]


# ------------------------------------------------------------------------------------------- not finite


@pytest.fixture
def saver(tmp_path):
    """A RunSaver of one variable `a`, which is at the session's hand as `saver.variable`."""
    variable = tf.get_variable('a', [2])
    with tf.Session() as session:
        session.run(variable.initializer)
        saver = checkpoints.RunSaver(session, str(tmp_path), None, tf.check_numerics(variable, 'a').op)
        saver.variable = variable
        yield saver


def test_each_step_is_saved_once(saver, tmp_path):
    for step in (1, 2):
        saver.add_step(step, [b'x'], 3.0)
    saver.save()
    assert (saver.start, saver.done, saver.saved) == (0, 2, 2)
    saver.save()
    assert checkpoints.list_steps(str(tmp_path)) == [2]


def test_a_loss_that_is_not_finite_names_the_last_two_batches(saver):
    for step in (1, 2):
        saver.add_step(step, [b'image%d' % step, b'caf\xc3\xa9\n'], 3.0)
    with pytest.raises(UserError, match=r'^the loss is not finite at step 3: examples of step 2 image2, café; step 3 '
                                        r'image3, café\. No checkpoint was written\. .*--learning_rate'):
        saver.add_step(3, [b'image3', b'caf\xc3\xa9\n'], float('inf'))
    assert saver.done == 2


def test_weights_that_are_not_finite_are_not_written(saver, tmp_path):
    saver.add_step(1, [b'x'], 3.0)
    saver.save()
    saver.add_step(2, [b'y'], 3.0)
    saver.variable.load([1, np.inf], saver.session)
    with pytest.raises(UserError, match=r'^the weights are not finite at step 2, by an update after step 1 \(a : '
                                        r'Tensor had Inf values\): examples of step 1 x; step 2 y\.'):
        saver.save()
    assert checkpoints.list_steps(str(tmp_path)) == [1]
