"""A rank's batches, in the canonical order.

| module | what it holds |
|---|---|
| loader | training and evaluation loaders |
| processes | loader processes beside a rank |
| share | how many micro-batches each rank and loader process works on |
| positions | which samples those are |
| stream | samples from shards by byte ranges |
| views | samples fetched, decoded and cropped into batch rows |
| batch | batches filled in place |
| device | batches on the training device: mirrored, recoloured, normalised |
"""
