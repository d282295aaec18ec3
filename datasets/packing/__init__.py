"""Making, indexing and checking splits.

| module | what it holds |
|---|---|
| pack | samples to shards with a manifest |
| repack | existing shards to shards of one size |
| index | a manifest for shards that exist |
| files | image folders and CSV files as samples |
| sources | images that installed packages ship |
| audit | reading a split back, and what it holds |
"""
