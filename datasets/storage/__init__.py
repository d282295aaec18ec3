"""Objects by URL: read whole or by byte ranges, written, listed.

| module | what it holds |
|---|---|
| store | `Store`, the one interface |
| s3, http, disk | what is behind `s3://`, `http(s)://` and `file://` |
| transfer | retries and resumed transfers |
| cache | byte ranges kept on a local disk |
"""
