"""The limit of one-event posts as long as aiohttp's application stack serves them: a handler that does nothing.

Runs as a process; prints its port.
"""

import asyncio

import uvloop
from aiohttp import web


async def nothing(_request: web.Request) -> web.Response:
    return web.Response(body=b'{"accepted":1,"duplicates":0,"rejected":0,"errors":[]}', content_type="application/json")


async def serve() -> None:
    application = web.Application()
    application.router.add_post("/v1/events", nothing)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve())
