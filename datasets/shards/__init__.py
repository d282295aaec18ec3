"""The shard format.

| module | what it holds |
|---|---|
| manifest | `index.json` and `index.offsets` of a split |
| tar | tar members in bytes |
| labels | label files to class numbers |
"""
