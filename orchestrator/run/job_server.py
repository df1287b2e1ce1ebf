"""Ray Jobs: the server of a cluster's head that starts jobs, tells their logs and stops them."""

import asyncio
import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ray.job_submission import JobStatus, JobSubmissionClient

from toprovar_batch.worker.errors import JobSpecError, RunFailedError

from .ray_session import REFUSAL_MEND, send_token

_OVERRIDING = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
STOPPED = 143  # exit code of a job that Ray ended with SIGTERM


class JobServer:
    """Ray Jobs behind an address.

    Args:
        address: of the dashboard, such as http://head:8265.

    Raises:
        JobSpecError: nobody answers there, or not Ray Jobs; or this machine lacks what the client needs.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        with self._told(), _without(_OVERRIDING):  # Ray would prefer these to an address that was named
            send_token()
            self._client = JobSubmissionClient(address)

    def submit(self, entrypoint: str, environment: Mapping[str, Any], name: str) -> str:
        """Start a command on the head; gives the id of the job.

        Raises:
            JobSpecError: the server refuses it.
        """
        with self._told():
            submitted: str = self._client.submit_job(
                entrypoint=entrypoint, runtime_env=dict(environment), metadata={"toprovar_job": name}
            )
            return submitted

    def logs(self, job_id: str) -> str:
        """What a job has said so far.

        Raises:
            JobSpecError: the server knows no such job.
        """
        with self._told(job_id):
            text: str = self._client.get_job_logs(job_id)
            return text

    def follow(self, job_id: str, tell: Callable[[str], None]) -> int:
        """Tell what a job says until it ends.

        Returns:
            Its exit code.

        Raises:
            JobSpecError: the server knows no such job.
            RunFailedError: the job ended before its command ran; says why.
        """

        async def listen() -> None:
            async for text in self._client.tail_job_logs(job_id):
                tell(text)

        with self._told(job_id):
            asyncio.run(listen())
            info = self._client.get_job_info(job_id)
        if info.status == JobStatus.SUCCEEDED:
            return 0
        if info.status == JobStatus.STOPPED:
            return STOPPED
        if info.status != JobStatus.FAILED:
            raise RunFailedError(
                f"{self.address}: the log of {job_id} ended while it is {info.status}; follow it again with logs"
            )
        if info.driver_exit_code is None:
            raise RunFailedError(f"{job_id} could not run: {' '.join((info.message or '').split())}")
        code: int = info.driver_exit_code
        return code if code >= 0 else 128 - code  # a signal's number, as shells have it

    def stop(self, job_id: str) -> bool:
        """Ask a job to end; False where it has ended already.

        Raises:
            JobSpecError: the server knows no such job.
        """
        with self._told(job_id):
            stopped: bool = self._client.stop_job(job_id)
            return stopped

    @contextlib.contextmanager
    def _told(self, job_id: str | None = None) -> Iterator[None]:
        """Turn what the client raises into one sentence.

        Raises:
            JobSpecError: with the address.
        """
        try:
            with _quiet():
                yield
        except ConnectionError as error:
            raise JobSpecError(
                f"{self.address}: no Ray Jobs server answers; name the dashboard of the head, such as http://head:8265"
            ) from error
        except Exception as error:  # the client passes on what requests, aiohttp and pydantic raise
            text = " ".join(str(error).split())
            if text.startswith(("Authentication required", "Authentication failed")):
                raise JobSpecError(
                    f"{self.address}: the Ray Jobs server refuses the token; {REFUSAL_MEND}"
                ) from error
            if job_id is not None and ("404" in text or "does not exist" in text):
                raise JobSpecError(f"{self.address}: there is no job {job_id}") from error
            raise JobSpecError(f"{self.address}: {text[:300] or type(error).__name__}") from error


@contextlib.contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """Hide variables of the environment in the block."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the client's news of its uploads, and its own use of what aiohttp deprecates, from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logging.disable(level)
