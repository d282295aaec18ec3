"""Object storage by URL: objects are read whole or by byte ranges, written, listed.

| module | what it holds |
|---|---|
| store | `Store`, the one interface |
| s3, http, disk | what is behind `s3://`, `http(s)://` and `file://` |
| transfer | retried and continued downloads |
| cache | parts of remote objects on a local disk |
"""
