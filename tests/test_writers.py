# SPDX-License-Identifier: Apache-2.0
import io
import json
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from segjax.runs import writers


def read_rows(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def read_events(workdir):
  """(step, tag, value) of what TensorBoard would be given, in order."""
  events = []
  for file in sorted((workdir / 'tensorboard').iterdir()):
    data = file.read_bytes()
    while data:  # Length, its checksum, the message, its checksum.
      size = int.from_bytes(data[:8], 'little')
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]
      if event.HasField('session_log'):
        events.append((event.step, 'session', event.session_log.status))
      for value in event.summary.value:
        events.append((event.step, value.tag, value))
  return events


def test_scalars_reach_both_records(tmp_path):
  with writers.MetricWriter(tmp_path / 'new') as writer:
    writer.write_scalars(1, {'loss': 0.5, 'lr': np.float32(0.25)})
    assert read_rows(tmp_path / 'new') == [{'step': 1, 'loss': 0.5, 'lr': 0.25}]
    writer.write_scalars(np.int64(2), {'loss': jnp.float32(0.125)})
    writer.flush()
  assert read_rows(tmp_path / 'new')[1] == {'step': 2, 'loss': 0.125}
  events = [(s, t, v.simple_value) for s, t, v in read_events(tmp_path / 'new')]
  assert events == [(1, 'loss', 0.5), (1, 'lr', 0.25), (2, 'loss', 0.125)]


def test_not_finite_is_null(tmp_path):
  with writers.MetricWriter(tmp_path) as writer:
    writer.write_scalars(1, {'a': float('nan'), 'b': -float('inf'), 'c': 1})

  def refuse(name):
    raise AssertionError(f'{name} is not JSON')

  text = (tmp_path / 'metrics.jsonl').read_text()
  row = json.loads(text, parse_constant=refuse)
  assert row == {'step': 1, 'a': None, 'b': None, 'c': 1.0}


def test_what_is_flushed_is_on_disk_and_nan_is_not_warned_of(tmp_path, caplog):
  writer = writers.MetricWriter(tmp_path)
  threads = threading.active_count()
  for step in range(100):
    writer.write_scalars(step, {'a': float('nan'), 'b': step})
  writer.flush()  # And a kill now.
  assert len(read_events(tmp_path)) == 200
  assert (caplog.text, threading.active_count()) == ('', threads)
  # At the same moment another run goes on.
  with writers.MetricWriter(tmp_path, resume_step=99):
    assert len(read_events(tmp_path)) == 200
  writer.close()


def test_pictures_reach_tensorboard(tmp_path):
  from PIL import Image

  picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
  with writers.MetricWriter(tmp_path) as writer:
    writer.write_images(3, {'panel': picture})
  ((step, tag, value),) = read_events(tmp_path)
  decoded = Image.open(io.BytesIO(value.image.encoded_image_string))
  assert (step, tag) == (3, 'panel')
  np.testing.assert_array_equal(np.asarray(decoded), picture)


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
  with writers.MetricWriter(tmp_path) as writer:
    for step in (10, 20, 30, 40):
      writer.write_scalars(step, {'loss': step / 10})
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 20, "lo')
  with writers.MetricWriter(tmp_path, resume_step=20) as writer:
    assert [row['step'] for row in read_rows(tmp_path)] == [10, 20]
    writer.write_scalars(30, {'loss': 7.0})
  assert read_rows(tmp_path)[1:] == [
    {'step': 20, 'loss': 2.0},
    {'step': 30, 'loss': 7.0},
  ]
  # TensorBoard hides earlier events from the step of a session start (1) on.
  assert (21, 'session', 1) in read_events(tmp_path)


def test_reopening_keeps_complete_rows_alone(tmp_path):
  rows = b'{"step": 1}\n{"step": 2, "a": 3}\n'
  for torn in (b'{"step": 3', b'12', b'null', b'{"a": 1}', b'\xff'):
    (tmp_path / 'metrics.jsonl').write_bytes(rows + torn)
    writers.MetricWriter(tmp_path).close()
    assert (tmp_path / 'metrics.jsonl').read_bytes() == rows


def test_another_process_writes_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(writers.processes, 'is_first', lambda: False)
  with writers.MetricWriter(tmp_path / 'x') as writer:
    writer.write_scalars(1, {'loss': 1.0})
    writer.write_images(1, {'a': np.zeros((2, 2, 3), np.uint8)})
    writer.flush()
  assert list(tmp_path.iterdir()) == []


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """A list whose last entry is the time."""
  times = [1000.0]
  monkeypatch.setattr(writers.time, 'monotonic', lambda: times[-1])
  return times


def test_progress_line(clock):
  stream = io.StringIO()
  with writers.Progress(4000, 1000, batch_size=2, stream=stream) as progress:
    clock.append(1050.0)
    progress.update(1100, loss=0.25)  # 2 steps a second, with the compilation.
    clock.append(1060.0)
    progress.update(1200, loss=0.18734, error=jnp.float32(2.0))  # 10 a second.
    clock.append(1080.0)
    progress.update(1300)  # 200 steps in 30 s, since the first call.
  wait = 'data wait 0.0%'
  assert stream.getvalue().splitlines() == [
    'compiling (about a minute the first time)',  # Before step 1001.
    f'step 1100/4000  loss 0.25  4 images/s  {wait}  eta 24:10',
    f'step 1200/4000  loss 0.1873  error 2  20 images/s  {wait}  eta 04:40',
    f'step 1300/4000  10 images/s  {wait}  eta 06:45',
  ]


def test_progress_shows_the_share_of_waiting_for_data(clock):
  stream = io.StringIO()
  progress = writers.Progress(40, stream=stream)
  for now, wait in ((1010.0, 4.0), (1020.0, 3.0), (1040.0, 2.0), (1050.0, 0.0)):
    with progress.waiting_for_data():
      clock.append(clock[-1] + wait)
    clock.append(now)
    progress.update(int(now) - 1000)
  shares = [
    line.split('data wait ')[1].split()[0]
    for line in stream.getvalue().splitlines()
  ]
  assert shares == ['40.0%', '30.0%', '10.0%', '0.0%']


def test_progress_is_one_bar_on_a_terminal(clock, monkeypatch):
  monkeypatch.setenv('COLUMNS', '100')
  monkeypatch.setenv('LINES', '20')
  stream = Terminal()
  with writers.Progress(10, batch_size=4, stream=stream) as progress:
    for step in (5, 10):
      with progress.waiting_for_data():
        clock.append(clock[-1] + 0.5)
      clock.append(clock[-1] + 1.5)
      progress.update(step, loss=1 / step)
  first, *frames, last = stream.getvalue().split('\r')
  assert first == 'compiling (about a minute the first time)'  # It goes away.
  assert '\n' not in ''.join(frames) and last.count('\n') == 1
  assert '| 10/10 [' in last
  assert 'loss 0.1, 10 images/s, data wait 25.0%]' in last
  assert max(map(len, frames)) <= 100


def test_table():
  assert writers.table({'v_rand': 0.95551, 'slices': 30}) == (
    'v_rand  0.9555\nslices      30'
  )
  rows = [('fold 0', 1.5, 'a'), ('fold 10', 1234, 'bc')]
  assert writers.table(rows, header=('split', 'score', 'note')) == (
    'split     score  note\nfold 0   1.5000  a\nfold 10   1,234  bc'
  )
  assert writers.table({}) == ''


def test_parameter_table():
  kernel = np.random.default_rng(0).normal(0.5, 2, (3, 3, 8, 16))
  params = {'down0': {'kernel': jnp.asarray(kernel, jnp.float32)}}
  params['head'] = {'bias': jnp.zeros(2), 'scale': jnp.float32(3)}
  lines = writers.parameter_table(params).split('\n')
  assert [line.split() for line in lines] == [
    ['block', 'parameters', 'mean', 'std'],
    [
      'down0',
      '1,152',
      f'{kernel.sum() / 1152:.4f}',
      f'{((kernel - kernel.mean()) ** 2).mean() ** 0.5:.4f}',
    ],
    ['head', '3', '1.0000', '1.4142'],
    ['total', '1,155'],
  ]


def test_progress_of_another_process_is_silent(monkeypatch):
  monkeypatch.setattr(writers.processes, 'is_first', lambda: False)
  stream = io.StringIO()
  with writers.Progress(10, stream=stream) as progress:
    progress.update(1, loss=1.0)
  assert stream.getvalue() == ''


def test_nothing_compiles_where_no_step_is_left():
  for stream in (io.StringIO(), Terminal()):
    with writers.Progress(10, 10, stream=stream):
      pass
    assert stream.getvalue() == ''


def test_rows_are_read_back(tmp_path):
  assert writers.read_rows(tmp_path) == []
  with writers.MetricWriter(tmp_path) as writer:
    writer.write_scalars(1, {'loss': 0.5})
    writer.write_scalars(2, {'loss': float('nan')})
    rows = writers.read_rows(tmp_path)
  assert rows == [{'step': 1, 'loss': 0.5}, {'step': 2, 'loss': None}]
