"""The verb that brings MLflow what it missed: sync."""

from typing import Annotated

import typer

from orchestration.data_verbs import AsJson, Endpoint, embedded, using_store
from orchestration.load import from_dict
from orchestration.tables import kept_for_json, print_json, say


def sync(
    url: Annotated[str, typer.Argument(metavar="RUN", help="URL of the run's folder in storage.")],
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Send MLflow what it did not take while it was away: points, files, the run's end."""
    from orchestration.run_record import load_record

    url = url.rstrip("/")
    with kept_for_json(as_json), using_store(endpoint_url) as store:
        from orchestration.conclude import sync_run
        from orchestration.introduce import run_of

        record = load_record(store, url)
        job = from_dict(record.job)
        with embedded(job.uses() - {"ray"}) as stack:
            sent = sync_run(job, store, run_of(record, job, stack), url)
    if as_json:
        print_json(sent)
        return
    ended = f", and that it has {str(sent['ended']).lower()}" if sent["ended"] else ""
    say(f"sent {sent['points']:,} points and {sent['files']} files of {record.name}{ended}")
