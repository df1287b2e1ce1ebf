"""A double of the Ray Jobs server of Ray 2.60, with the requests that JobSubmissionClient makes of it."""

import asyncio
import threading

from aiohttp import web


class FakeJobServer:
    """Takes packages and jobs, and tells of a job what a test has said beforehand.

    Attributes:
        packages: the zip files it was sent, by name.
        requests: the jobs it was sent, as JSON.
        said: pieces of the log of every job.
        ending: status, message and exit code of every job.
        ray_version: what it claims to run.
        refusal: status and text that a new job gets, or None.
        token: that every request must have, or None.
    """

    def __init__(self):
        self.packages, self.requests = {}, []
        self.said = ["first\n", "last\n"]
        self.ending = {"status": "SUCCEEDED", "message": "", "driver_exit_code": 0}
        self.ray_version, self.refusal, self.address, self.token = "2.60.0", None, "", None
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self):
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=1 << 30, middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/api/version", self._version),
                web.get("/api/packages/gcs/{name}", self._package),
                web.put("/api/packages/gcs/{name}", self._put_package),
                web.post("/api/jobs/", self._submit),
                web.get("/api/jobs/{job}", self._info),
                web.get("/api/jobs/{job}/logs", self._logs),
                web.get("/api/jobs/{job}/logs/tail", self._tail),
                web.post("/api/jobs/{job}/stop", self._stop),
            ]
        )
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    @web.middleware
    async def _guard(self, request, handler):
        given = request.headers.get("Authorization")
        if self.token is None or given == f"Bearer {self.token}":
            return await handler(request)
        if given is None:
            return web.Response(status=401, text="Unauthorized: Missing authentication token")
        return web.Response(status=403, text="Forbidden: Invalid authentication token")

    async def _version(self, _):
        return web.json_response({"version": "4", "ray_version": self.ray_version, "ray_commit": ""})

    async def _package(self, request):
        return web.Response(status=200 if request.match_info["name"] in self.packages else 404)

    async def _put_package(self, request):
        self.packages[request.match_info["name"]] = await request.read()
        return web.Response()

    async def _submit(self, request):
        if self.refusal is not None:
            return web.Response(status=self.refusal[0], text=self.refusal[1])
        self.requests.append(await request.json())
        return web.json_response({"job_id": "raysubmit_1", "submission_id": "raysubmit_1"})

    def _unknown(self, request):
        job = request.match_info["job"]
        known = job == "raysubmit_1" and self.requests
        return None if known else web.Response(status=404, text=f"Job {job} does not exist")

    async def _info(self, request):
        job = {"type": "SUBMISSION", "submission_id": "raysubmit_1", "entrypoint": "", **self.ending}
        return self._unknown(request) or web.json_response(job)

    async def _logs(self, request):
        return self._unknown(request) or web.json_response({"logs": "".join(self.said)})

    async def _tail(self, request):
        if (unknown := self._unknown(request)) is not None:
            return unknown
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for text in self.said:
            await socket.send_str(text)
        await socket.close()
        return socket

    async def _stop(self, request):
        stopped = self.ending["status"] == "RUNNING"
        return self._unknown(request) or web.json_response({"stopped": stopped})
