"""The shard format.

| module | what it holds |
|---|---|
| manifest | a split's `index.json` and the files beside it |
| split_url | where a split's index and shards are |
| tar | the members of an archive in memory |
| labels | labels from their files |
"""
