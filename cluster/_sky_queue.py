"""SkyPilot's managed jobs: a run's supervisor is a job on a machine that SkyPilot replaces when it is taken away."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster import ClusterError, JobState, Request, check_project
from cluster import _sky_task as words
from cluster._sky_rent import Landlord
from cluster._ssh_settings import parse_settings

JOB = "SKYPILOT_MANAGED_JOB_ID"  # Source: sky.skylet.constants.MANAGED_JOB_ID_ENV_VAR
_LEAD_S = 30.0


class SkyQueue:
    """Managed jobs of one machine; they begin again by themselves, elsewhere, and the run goes on from a snapshot."""

    def __init__(self, settings: words.SkySettings, project: Path, work: Path, landlord: Landlord) -> None:
        """Make one whose jobs run `project`."""
        self._settings, self._project, self._work, self._landlord = settings, project, work, landlord
        self.lead_s = _LEAD_S
        self.own = os.environ.get(JOB, "")

    def _config(self, request: Request) -> dict[str, Any]:
        if request.nodes != 1:
            raise ClusterError(
                f"--nodes {request.nodes}: with managed = true a run has one machine; leave managed out for more"
            )
        ssh = parse_settings({**self._settings.ssh, "hosts": ["node"]})
        argv = [ssh.python or "python3", *request.args]
        name = words.cluster_name(request.run)
        return words.managed_task(self._settings, name, argv, ssh.passed(os.environ), str(self._project))

    def script(self, request: Request) -> str:
        """See `Queue`: JSON, which SkyPilot reads as the YAML of a task."""
        return json.dumps(self._config(request), indent=1)

    def submit(self, request: Request) -> str:
        """See `Queue`."""
        check_project(self._project)
        config = self._config(request)
        return str(self._landlord.ask("launch_managed", config=config, name=config["name"]))

    def look(self, job: str) -> JobState | None:
        """See `Queue`. Inside a job there is no SkyPilot to ask, nor any doubt."""
        if self.own:
            return JobState(waits=False, text="RUNNING", starts=0, leaving=False)
        return words.parse_job(self._landlord.ask("managed", job=int(job)))

    def cancel(self, job: str) -> None:
        """See `Queue`."""
        self._landlord.ask("cancel_managed", job=int(job))

    def log(self, run: str, job: str) -> Path:
        """See `Queue`. SkyPilot keeps it: `sky jobs logs NUMBER`; the run's own are in its store."""
        return self._work / run / f"sky-{job}.log"

    def again(self, job: str, avoid: Sequence[str]) -> str:
        """See `Queue`: SkyPilot sees to that, and nobody needs to ask."""
        return ""

    def move(self, job: str, avoid: Sequence[str]) -> str:
        """See `Queue`: it cannot be asked for another machine from inside."""
        return ""
