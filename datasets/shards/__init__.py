"""The shard format.

| module | what it holds |
|---|---|
| manifest | a split's `index.json` and `index.offsets` |
| tar | the members of an archive in memory |
| labels | labels from their files |
"""
