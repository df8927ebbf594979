"""Our loop: `fgtrain.train` itself, as a worker runs it. Its question "asked to stop?" is where it waits its turn."""

from __future__ import annotations

from benchmarks.loops import job as jobs
from fgtrain import place as places
from fgtrain.train import train


def main() -> None:
    """Run one rank."""
    job = jobs.parse()
    place = places.join(timeout_s=3600)
    turn = job.turn("ours", place.rank)
    train(job.run, job.data, job.runs, place, job.folder, begun=lambda _: None, stop_asked=turn.over)
    places.leave()


if __name__ == "__main__":
    main()
