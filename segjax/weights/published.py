# SPDX-License-Identifier: Apache-2.0
"""Pretrained weights by name: download, checksum and cache, with pooch.

The checksum of torchvision's file is the SHA-256 on which projects that pin it
agree; torchvision itself publishes only its first 8 digits, in the file name.
For Keras's file, it is the MD5 that Keras publishes.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

from segjax.atomic import remove_leftovers, replacing
from segjax.errors import InputError, did_you_mean


class Source(NamedTuple):
  """A published file of weights.

  Attributes:
    url: address, whose last part is the name of the file in the cache.
    checksum: 'ALGORITHM:DIGEST'.
    size: size in bytes.
    package: Python package that reads the file.
    model: network of the weights, a key of `models.CLASSIFIERS`.
  """

  url: str
  checksum: str
  size: int
  package: str
  model: str

  @property
  def path(self) -> Path:
    """The path of the file in the cache, whether it was downloaded or not."""
    import pooch  # Imported late, since it takes .3 s, which --help saves.

    return pooch.os_cache('segjax') / 'weights' / Path(self.url).name


SOURCES = {
  'torchvision:vgg16': Source(
    'https://download.pytorch.org/models/vgg16-397923af.pth',
    'sha256:397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0',
    553_433_881,
    'torch',
    'vgg16',
  ),
  'keras:vgg16': Source(
    'https://storage.googleapis.com/tensorflow/keras-applications/vgg16/'
    'vgg16_weights_tf_dim_ordering_tf_kernels.h5',
    'md5:64373286793e3c8b2b4e3219cbf3544b',
    553_467_096,
    'h5py',
    'vgg16',
  ),
}
_OTHER_NETWORKS = {
  'torchvision:alexnet': 'it has no groups and other widths than AlexNet',
  'torchvision:googlenet': 'it has batch normalisation, unlike GoogLeNet',
}
_PAGE_OF_FCN = 'https://github.com/shelhamer/fcn.berkeleyvision.org'
_PAGE_OF_CAFFE = 'https://github.com/BVLC/caffe/tree/master/models'
# Name of a .caffemodel -> the page of its authors.
CAFFEMODELS = {
  'VGG_ILSVRC_16_layers': (
    'https://gist.github.com/ksimonyan/211839e770f7b538e2d8'
  ),
  **{
    name: f'{_PAGE_OF_CAFFE}/{name}'
    for name in ('bvlc_reference_caffenet', 'bvlc_alexnet', 'bvlc_googlenet')
  },
  **dict.fromkeys(
    (
      *('fcn32s-heavy-pascal', 'fcn16s-heavy-pascal', 'fcn8s-heavy-pascal'),
      *('fcn8s-atonce-pascal', 'fcn-alexnet-pascal'),
      *(f'pascalcontext-fcn{stride}s-heavy' for stride in (32, 16, 8)),
      *(f'siftflow-fcn{stride}s-heavy' for stride in (32, 16, 8)),
      *(f'nyud-fcn32s-{kind}-heavy' for kind in ('color', 'hha', 'color-hha')),
    ),
    _PAGE_OF_FCN,
  ),
}
_RETRIES = 2
_CHUNK_BYTES = 2**20
_TIMEOUT_SECONDS = 30


def is_name(text: str) -> bool:
  """Returns whether the text is a name, `FAMILY:NAME`, and not a path."""
  family, colon, _ = text.partition(':')
  return colon == ':' and family in ('torchvision', 'keras', 'caffe')


def find(name: str) -> Source:
  """Returns the source of this name, such as 'torchvision:vgg16'.

  Raises:
    InputError: there is no such source, or it has another network than segjax,
      or it is a .caffemodel. The message names the sources or the file's page.
  """
  if name in SOURCES:
    return SOURCES[name]
  if name in _OTHER_NETWORKS:
    raise InputError(
      f"{name} is another network than Caffe's: {_OTHER_NETWORKS[name]}; of "
      "torchvision's, vgg16 can be converted"
    )
  family, _, rest = name.partition(':')
  if family == 'caffe' and rest == 'bvlc_alexnet':
    raise InputError(
      f'{name} normalises before it pools, which no network here does; FCN '
      'starts from caffe:bvlc_reference_caffenet'
    )
  if family == 'caffe' and rest in CAFFEMODELS:
    raise InputError(
      f'caffemodels are not downloaded: get {rest}.caffemodel from '
      f'{CAFFEMODELS[rest]} and give --input={rest}.caffemodel'
    )
  known = (*SOURCES, *(f'caffe:{model}' for model in CAFFEMODELS))
  raise InputError(
    f'{name} is not one of {", ".join(SOURCES)}{did_you_mean(name, known)}; '
    'other weights are given as a file'
  )


def fetch(name: str) -> Path:
  """Returns the path of published weights, downloaded if they are not cached.

  Files are kept in the folder `weights` of the user's cache of segjax, on Linux
  ~/.cache/segjax or $XDG_CACHE_HOME/segjax. The checksum is verified at each
  call. A download that fails or is damaged is tried again, twice. A file
  appears whole or not at all, and the next download removes what a kill left.

  Args:
    name: key in `SOURCES`.

  Raises:
    InputError: there is no such name; the package that reads the file is
      missing; or the download fails or has another checksum.
  """
  source = find(name)
  if importlib.util.find_spec(source.package) is None:
    raise InputError(f'{name} needs a package: pip install {source.package}')
  import pooch
  from requests.exceptions import RequestException

  from segjax.devices.processes import say

  def download(url, output, store):
    from segjax.runs.writers import progress_bar

    with progress_bar(
      source.size, 0, desc=path.name, unit='B', unit_scale=True, disable=None
    ) as bar:
      # Pooch's types lack the bars that its documentation allows.
      get = pooch.HTTPDownloader(
        bar,  # pyright: ignore[reportArgumentType]
        _CHUNK_BYTES,
        timeout=_TIMEOUT_SECONDS,
      )
      get(url, output, store)

  path = source.path
  algorithm, _, digest = source.checksum.partition(':')
  logger = pooch.get_logger()  # Shared with other users of pooch.
  level = logger.level
  try:
    if path.exists() and pooch.file_hash(path, algorithm) == digest:
      return path
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    say(f'downloading {source.url}, {source.size / 1e6:.0f} MB, to {path}')
    logger.setLevel('WARNING')
    with replacing(path) as temporary:
      store = pooch.create(
        temporary.parent,
        base_url='',
        registry={path.name: source.checksum},
        urls={path.name: source.url},
        retry_if_failed=_RETRIES,
      )
      # Pooch's types name arguments that it passes by position.
      store.fetch(
        path.name,
        downloader=download,  # pyright: ignore[reportArgumentType]
      )
  except (RequestException, ValueError) as e:
    cause = e
    while cause.__context__ is not None:  # The system's error is innermost.
      cause = cause.__context__
    there = f'; the file {path} is damaged' if path.exists() else ''
    raise InputError(
      f'cannot download {name}: {cause}{there}; without network, get '
      f'{source.url} elsewhere and put it at {path}'
    ) from e
  except OSError as e:
    raise InputError(f'cannot write to {path.parent}: {e.strerror or e}') from e
  finally:
    logger.setLevel(level)
  return path
