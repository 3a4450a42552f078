"""The dashboard's door: the form to sign in with, and the way out."""

from __future__ import annotations

from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from sidecar.web.access import COOKIE_LIFETIME_S, is_same_origin
from sidecar.web.frame import FOREIGN_FORM, FORM_BYTES_MAX, Frame, safe_path


class Door:
    """Sign-in and sign-out; they stand before the access rule."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    async def sign_in_form(self, request: Request) -> Response:
        """GET /sign-in."""
        if self._frame.context.access.refusal(request.scope) is None:
            return RedirectResponse(safe_path(request.query_params.get("next", "/")), 303)
        if not self._frame.context.access.has_token:
            return self._frame.refuse(request, self._frame.context.access.refusal(request.scope) or "")
        return self._frame.sign_in_page(request, 200, request.query_params.get("next", "/"), None)

    async def sign_in(self, request: Request) -> Response:
        """POST /sign-in: `token` and `next` of a form. The cookie does not hold the token, only a proof of it."""
        access = self._frame.context.access
        if not access.has_token:
            return self._frame.refuse(request, "There is no token to sign in with: set SIDECAR_DASHBOARD_TOKEN.")
        if not is_same_origin(request.scope):
            return self._frame.error(403, FOREIGN_FORM, None, request)
        wait_s = access.wait_s(request.scope)
        if wait_s:
            line = f"Too many attempts from this address. Try again in {wait_s} s."
            return self._frame.sign_in_page(request, 429, "/", line, {"Retry-After": str(wait_s)})
        form = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=10)
        wanted = form.get("next", ["/"])[0]
        if not access.is_token(form.get("token", [""])[0]):
            return self._frame.sign_in_page(request, 403, wanted, "That is not the token.")
        response = RedirectResponse(safe_path(wanted), 303)
        response.set_cookie(
            access.cookie_name,
            access.make_cookie(),
            max_age=COOKIE_LIFETIME_S,
            httponly=True,
            samesite="strict",
            secure=request.headers["origin"].startswith("https://"),  # true behind a proxy that ends TLS, too
        )
        return response

    async def sign_out(self, request: Request) -> Response:
        """POST /sign-out: the browser forgets its cookie."""
        if not is_same_origin(request.scope):
            return self._frame.error(403, FOREIGN_FORM, None, request)
        response = RedirectResponse("/sign-in", 303)
        response.delete_cookie(self._frame.context.access.cookie_name, httponly=True, samesite="strict")
        return response


def routes(frame: Frame) -> list[Route]:
    """The routes of the door."""
    door = Door(frame)
    return [
        Route("/sign-in", door.sign_in_form, methods=["GET"], middleware=frame.safe),
        Route("/sign-in", door.sign_in, methods=["POST"], middleware=frame.safe, max_body_size=FORM_BYTES_MAX),
        Route("/sign-out", door.sign_out, methods=["POST"], middleware=frame.safe, max_body_size=FORM_BYTES_MAX),
    ]
