"""Object storage by URL: objects are read whole or by byte ranges, written, listed.

| module | what it holds |
|---|---|
| store | `Store`, the one interface |
| s3, http, disk | what is behind `s3://`, `http(s)://` and `file://` |
| s3_errors | what an error of S3 means, with its remedy |
| proxy | the proxy that the environment names for a URL |
| transfer | retried and continued downloads |
| socket_folder | a temporary folder short enough for sockets |
| cache | parts of remote objects on a local disk |
| checksums | CRC-32C, of bytes and of JSON documents |
"""
