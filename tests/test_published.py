# SPDX-License-Identifier: Apache-2.0
"""Downloads of published weights, from a server on this machine."""

import contextlib
import gc
import hashlib
import http.server
import pathlib
import threading
import warnings

import numpy as np
import pytest
from commands import REPOSITORY
from narrow_nets import VGG16, assert_equal, random_params

from segjax import convert, models, plan
from segjax.errors import InputError
from segjax.weights import files, published

safetensors_numpy = pytest.importorskip('safetensors.numpy')

NAME = 'torchvision:vgg16'
STALLED = 1234  # Bytes after which the server says no more for a while.
DENSE = {'fc6': 'classifier.0', 'fc7': 'classifier.3', 'fc8': 'classifier.6'}


def torchvision_state(params):
  """Names and axes of torchvision, of parameters of a narrow VGG16."""
  convolutions = sorted({p[:7] for p in params if p.startswith('conv')})
  modules = dict(
    zip(
      convolutions,
      [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28],
      strict=True,
    )
  )
  modules = {k: f'features.{i}' for k, i in modules.items()} | DENSE
  state = {}
  for path, array in params.items():
    layer, _, kind = path.rpartition('/')
    if kind == 'kernel' and array.ndim == 4:
      array = array.transpose(3, 2, 0, 1)
    elif kind == 'kernel':
      channels = params['conv5_3/bias'].size
      if layer == 'fc6':  # Rows in the order C, H, W.
        array = array.reshape(7, 7, channels, -1).transpose(2, 0, 1, 3)
      array = array.reshape(-1, array.shape[-1]).T
    kind = {'kernel': 'weight', 'bias': 'bias'}[kind]
    state[f'{modules[layer]}.{kind}'] = array
  return state


class Server:
  """The answers of a server, one a request; the last one again and again.

  Attributes:
    answers: status, length that is announced, and body.
    requests: number of those that came.
  """

  def __init__(self):
    self.answers, self.requests = [], 0

  def answer(self):
    self.requests += 1
    return self.answers[min(self.requests, len(self.answers)) - 1]


@contextlib.contextmanager
def serving(server):
  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      status, length, body = server.answer()
      self.send_response(status)
      self.send_header('Content-Length', str(length))
      self.end_headers()
      self.wfile.write(body)
      if len(body) == STALLED:
        threading.Event().wait(0.5)

    def log_message(self, *_):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as httpd:
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    try:
      yield f'http://127.0.0.1:{httpd.server_port}'
    finally:
      httpd.shutdown()
      thread.join()


@pytest.fixture
def body(tmp_path):
  """A file as torchvision's, of a narrow VGG16."""
  path = tmp_path / 'made.safetensors'
  params = random_params(VGG16(num_classes=7))
  state = torchvision_state(params)
  state = {name: np.ascontiguousarray(array) for name, array in state.items()}
  safetensors_numpy.save_file(state, path)
  return path.read_bytes(), params


@pytest.fixture
def source(tmp_path, monkeypatch, body):
  """Puts a server in the place of torchvision's; yields it."""
  server = Server()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setenv('no_proxy', '*')
  monkeypatch.setattr('time.sleep', lambda seconds: None)
  with serving(server) as url:
    change = dict(
      url=f'{url}/vgg16-397923af.safetensors',
      checksum=f'sha256:{hashlib.sha256(body[0]).hexdigest()}',
      size=len(body[0]),
      package='safetensors',
    )
    changed = published.SOURCES[NAME]._replace(**change)
    monkeypatch.setitem(published.SOURCES, NAME, changed)
    yield server
  with warnings.catch_warnings():  # requests leaves sockets of failures open.
    warnings.simplefilter('ignore', ResourceWarning)
    gc.collect()


def cached(tmp_path):
  return [p for p in (tmp_path / 'cache').rglob('*') if p.is_file()]


def test_whole_files_are_kept_and_not_asked_for_again(
  tmp_path, source, body, monkeypatch
):
  source.answers = [(200, len(body[0]), body[0])]
  path = published.fetch(NAME)
  assert path == tmp_path / 'cache/segjax/weights/vgg16-397923af.safetensors'
  assert path.read_bytes() == body[0]
  changed = published.SOURCES[NAME]._replace(
    url='http://127.0.0.1:9/vgg16-397923af.safetensors'
  )
  monkeypatch.setitem(published.SOURCES, NAME, changed)
  assert published.fetch(NAME) == path
  assert (source.requests, cached(tmp_path)) == (1, [path])


@pytest.mark.parametrize('bad', ['cut', 'wrong', 'busy'])
def test_failures_are_tried_again(tmp_path, source, body, bad):
  whole = (200, len(body[0]), body[0])
  first = {
    'cut': (200, len(body[0]), body[0][:1000]),
    'wrong': (200, len(body[0]), bytes(len(body[0]))),
    'busy': (503, 0, b''),
  }[bad]
  source.answers = [first, first, whole]
  assert published.fetch(NAME).read_bytes() == body[0]
  assert (source.requests, len(cached(tmp_path))) == (3, 1)


@pytest.mark.parametrize(
  ('bad', 'words'),
  [
    ('cut', r'IncompleteRead\(1000 bytes read'),
    ('stalled', 'timed out'),
    ('wrong', 'SHA256 hash .* does not match the known hash'),
    ('absent', '404 Client Error'),
  ],
)
def test_what_stays_wrong_is_refused(
  tmp_path, source, body, monkeypatch, bad, words
):
  if bad == 'stalled':
    monkeypatch.setattr(published, '_TIMEOUT_SECONDS', 0.2)
  size = len(body[0])
  source.answers = {
    'cut': [(200, size, body[0][:1000])],
    'stalled': [(200, size, body[0][:STALLED])],
    'wrong': [(200, size, bytes(size))],
    'absent': [(404, 0, b'')],
  }[bad]
  output = tmp_path / 'net.npz'
  with pytest.raises(InputError, match=words) as error:
    convert.convert_file(NAME, 'vgg16', output)
  url = published.SOURCES[NAME].url
  place = tmp_path / 'cache/segjax/weights/vgg16-397923af.safetensors'
  assert f'get {url} elsewhere and put it at {place}' in str(error.value)
  assert '\n' not in str(error.value)
  assert source.requests == 3 or bad == 'stalled'
  assert cached(tmp_path) == [] and not output.exists()


def test_without_a_server_a_damaged_file_is_named(
  tmp_path, source, monkeypatch
):
  changed = published.SOURCES[NAME]._replace(
    url='http://127.0.0.1:9/a.safetensors'
  )
  monkeypatch.setitem(published.SOURCES, NAME, changed)
  with pytest.raises(InputError, match='Connection refused; without') as error:
    published.fetch(NAME)
  assert 'damaged' not in str(error.value)
  assert cached(tmp_path) == []
  changed.path.write_bytes(b'part of it')
  with pytest.raises(
    InputError, match=r'a\.safetensors is damaged; without network'
  ):
    published.fetch(NAME)
  assert changed.path.read_bytes() == b'part of it'


def test_what_a_kill_left_is_removed(tmp_path, source, body):
  left = tmp_path / 'cache/segjax/weights/.segjax-0123abcd.tmp'
  left.mkdir(parents=True)
  source.answers = [(200, len(body[0]), body[0])]
  path = published.fetch(NAME)
  assert [*left.parent.iterdir()] == [path]


def test_an_interrupt_leaves_nothing(tmp_path, source, monkeypatch):
  def begin(_, url, output, store):
    pathlib.Path(output).write_bytes(b'a half')
    raise KeyboardInterrupt

  monkeypatch.setattr('pooch.HTTPDownloader.__call__', begin)
  with pytest.raises(KeyboardInterrupt):
    published.fetch(NAME)
  assert cached(tmp_path) == []


def test_a_cache_that_cannot_be_written_to_is_named(tmp_path, source):
  (tmp_path / 'cache').write_bytes(b'')
  with pytest.raises(InputError, match='cannot write to .*segjax/weights: '):
    published.fetch(NAME)
  assert source.requests == 0


def test_a_reader_is_there_before_the_file(source, monkeypatch):
  changed = published.SOURCES[NAME]._replace(package='no_such_reader')
  monkeypatch.setitem(published.SOURCES, NAME, changed)
  with pytest.raises(InputError, match='pip install no_such_reader'):
    published.fetch(NAME)
  assert source.requests == 0


def test_weights_are_converted_as_a_file_is(
  tmp_path, source, body, monkeypatch
):
  monkeypatch.setitem(models.MODELS, 'vgg16', VGG16)
  source.answers = [(200, len(body[0]), body[0])]
  output = tmp_path / 'net.npz'
  convert.convert_file(NAME, 'vgg16', output)
  assert_equal(files.read_arrays(output), body[1])
  metadata = {'model': 'vgg16', 'pixels': 'standardised'}
  assert files.read_metadata(output) == metadata
  other = tmp_path / 'other.npz'
  convert.convert_file(tmp_path / 'made.safetensors', 'vgg16', other)
  assert other.read_bytes() == output.read_bytes()


@pytest.mark.parametrize(
  ('name', 'words'),
  [
    (
      'torchvision:vgg61',
      'vgg61 is not one of torchvision:vgg16, keras:vgg16;',
    ),
    ('torchvision:vgg61', 'did you mean torchvision:vgg16'),
    ('keras:resnet50', 'is not one of torchvision:vgg16, keras:vgg16'),
    ('torchvision:alexnet', 'another network .* vgg16 can be converted'),
    ('torchvision:googlenet', 'another network .* vgg16 can be converted'),
    ('caffe:bvlc_alexnet', 'starts from caffe:bvlc_reference_caffenet'),
    ('caffe:bvlc_googlenet', 'from .*BVLC/caffe/.*/bvlc_googlenet and give'),
    ('caffe:fcn8s-heavy-pascal', 'get fcn8s-heavy-pascal.caffemodel from http'),
    ('caffe:fcn8s-heavy', 'did you mean caffe:fcn8s-heavy-pascal'),
  ],
)
def test_other_names_are_refused(tmp_path, name, words):
  with pytest.raises(InputError, match=words) as error:
    convert.convert_file(name, 'vgg16', tmp_path / 'net.npz')
  assert '\n' not in str(error.value)


def test_a_name_without_a_family_is_told_the_names(tmp_path):
  with pytest.raises(InputError, match='not torchvision:vgg16 or keras:vgg16'):
    convert.convert_file('vgg16', 'vgg16', tmp_path / 'net.npz')


def test_the_page_lists_all_of_them():
  page = (REPOSITORY / 'docs' / 'weights.md').read_text()
  for name, source in published.SOURCES.items():
    assert f'`{name}`' in page and source.url in page
  for name, url in published.CAFFEMODELS.items():
    assert f'`{name}`' in page and url in page


def test_checksums_begin_with_what_is_published():
  """torchvision's name has 8 digits; the MD5 is the one in Keras's code."""
  source = published.SOURCES[NAME]
  digits = source.path.stem.partition('-')[2]
  assert len(digits) == 8 and source.checksum.startswith(f'sha256:{digits}')
  assert len(source.checksum) == len('sha256:') + 64


def test_a_plan_starts_from_published_weights(
  tmp_path, source, body, monkeypatch
):
  """Downloaded and converted once; then neither server nor download counts."""
  monkeypatch.setitem(models.MODELS, 'vgg16', VGG16)
  source.answers = [(200, len(body[0]), body[0]), (404, 0, b'')]
  path = plan.local_weights('fcn8s', NAME)
  assert path == str(published.SOURCES[NAME].path.with_suffix('.npz'))
  assert_equal(files.read_arrays(path), body[1])
  assert files.read_metadata(path)['pixels'] == 'standardised'
  published.SOURCES[NAME].path.unlink()
  assert plan.local_weights('fcn8s', NAME) == path
  assert source.requests == 1
  for network in ('fcn8s', 'unet'):
    assert plan.local_weights(network, 'random') == 'random'


@pytest.mark.parametrize(
  ('network', 'init', 'words'),
  [
    ('fcn8s', 'torchvision:vgg61', 'is not one of torchvision:vgg16'),
    ('unet', NAME, 'unet starts from random weights'),
  ],
)
def test_a_plan_refuses_weights_before_it_reads_images(network, init, words):
  with pytest.raises(InputError, match=words):
    plan.plan(None, network, init=init)
