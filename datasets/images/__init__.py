"""Image bytes to pixels: functions of the bytes and the sample's identity alone.

| module | what it holds |
|---|---|
| decode | decoding on the CPU |
| region | decoding a part of a JPEG |
| nvjpeg | decoding on a GPU |
| augment | crops, mirroring and colour |
| randaugment | RandAugment |
"""
