"""Making, indexing and checking splits.

| module | what it holds |
|---|---|
| pack | samples to shards with a manifest |
| repack | existing shards to shards of one size |
| index | a manifest for existing shards |
| checksum | the checksums of existing shards |
| files | image folders and CSV files to samples |
| sources | images that installed packages ship |
| audit | what a split contains, and whether it is intact |
"""
