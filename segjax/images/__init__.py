# SPDX-License-Identifier: Apache-2.0
"""Image files in and out.

`files` is the entry: it reads and writes images as a whole or by windows, and
lists them. `tiff`, `png_jpeg`, `npy` and `zarr` hold one format each, so that
one file knows each library; `ome_zarr` writes what `zarr` reads. `windows` is
what they share, and `calibration` holds axes and pixel sizes. They give samples
as stored: `pixels` makes images of them, `labels` makes labels. `pages` reads
files of one image or label; `palettes` and `legends` are for pictures of
results.
"""
