"""A rank's batches, in the canonical order.

| module | what it holds |
|---|---|
| loader | training and evaluation loaders |
| processes | loader processes beside a rank |
| share | how a step is shared out over ranks and loader processes |
| positions | which samples a batch is read from, and the rows that they fill |
| stream | samples from shards by byte ranges |
| views | samples fetched, decoded and cropped into batches |
| batch | batches under construction and finished |
| device | batches moved to the training device, mirrored and colour-distorted |
"""
