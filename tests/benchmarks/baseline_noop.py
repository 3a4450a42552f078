"""Server (a): the least a Starlette route can do with a beacon. It reads the whole body, keeps nothing, answers.

What it serves in a second is what the machine, uvicorn and wrk can do together; the others are measured against it.
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

ANSWER = b'{"success":true,"accepted":1,"duplicate":0,"superseded":0,"rejected":[]}'


async def track(request: Request) -> Response:
    """Read the body (about 0.45 KB) and answer 200 with 72 constant bytes."""
    await request.body()
    return Response(ANSWER, media_type="application/json")


app = Starlette(routes=[Route("/api/track/web-vitals", track, methods=["POST"])])
