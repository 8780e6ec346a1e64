# SPDX-License-Identifier: Apache-2.0
"""Image files in and out.

`files` is the entry: it reads, writes and lists image files, as a whole or by
windows. `tiff`, `png_jpeg`, `npy` and `zarr` hold one format each, so that one
file knows each library; `ome_zarr` writes the folders that `zarr` reads. They
give samples as stored: `pixels` makes images of them, `labels` makes labels.
`windows` and `calibration` hold the types that all share. `single_images` reads
files of one image or label. `palettes` and `legends` are for pictures of
results.
"""
