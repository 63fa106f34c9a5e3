"""Sends the journals of trainings whose values MLflow did not receive. `recipe sync` and the register stage use it."""

from collections.abc import Callable

from recipe.core.errors import DataError, TrackingError
from recipe.core.format import first_line, shorten, without_credentials
from recipe.tracking.failures import AWAY
from recipe.tracking.journal import Journal, paths_in
from recipe.tracking.replay import Replay
from recipe.tracking.server import Server
from recipe.tracking.settings import URI


def send_pending(server: Server, say: Callable[[str], None], *, every: bool = False) -> tuple[int, list[DataError]]:
    """Send all journals to this server, and pass a line about each of them to `say`.

    Journals that were written for a different server are sent only if `every` is true. Returns the number of journals
    that remain, and the errors of damaged ones. Raises TrackingError if the server fails. Then no journal is lost.
    """
    paths = paths_in(server.pending)
    remaining, damaged, answered = len(paths), [], False
    for path in paths:
        try:
            journal = Journal.open(path)
        except DataError as error:
            damaged.append(error)
            continue
        if journal is None:
            if path.exists():
                say(f"{path} is in use by a training that is running, or by another `recipe sync`")
            else:
                remaining -= 1
            continue
        other = journal.header["server"]
        if other != server.name and not every:
            journal.close()
            say(
                f"{path} is for MLflow at {other or 'the default store'}, not at {without_credentials(server.uri)}. "
                + (f"Set {URI}={other}" if other else f"Unset {URI}")
                + ", or use `recipe sync --all` to send it here"
            )
            continue
        try:
            if not answered:
                server.check_answer()
                answered = True
            say(send(server, journal))
        except (*AWAY, TrackingError) as error:
            journal.close()
            raise TrackingError(
                f"MLflow at {without_credentials(server.uri)} could not take what {path} keeps: "
                f"{shorten(first_line(error), 300).rstrip('.')}. Nothing is lost. Remaining trainings: "
                f"{remaining}. {server.remedy()} Then run `recipe sync`, or continue with `dvc repro`."
            ) from None
        remaining -= 1
    return remaining, damaged


def send(server: Server, journal: Journal) -> str:
    """Send a journal, delete it, and return a line that says what was sent and where it is."""
    if journal.status is None:  # the process was killed; the next `dvc repro` resumes the training in this run
        last = journal.entries[-1]["time"] if journal.entries else journal.header["time"]
        journal.end("KILLED", last)
    replay = Replay(server, journal, live=False)
    replay.send()
    assert replay.run
    journal.delete()
    points = f"{replay.num_points} of {journal.num_points()} points"
    return f"sent {journal.header['name']}: {journal.status}, {points} were missing, {server.link(replay.run)}"
