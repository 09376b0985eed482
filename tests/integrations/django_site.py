"""The least that Django calls a site."""

import django
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import path


def saved(request: HttpRequest) -> HttpResponse:
    """Says who the user is in the two ways that a middleware around Django can see."""
    if hasattr(request, "scope"):
        request.scope["user"] = "user@example.com"
    else:
        request.META["usage.email"] = "user@example.com"
    return HttpResponse("saved", status=201)


def stranger(_: HttpRequest) -> HttpResponse:
    return HttpResponse("hello")


urlpatterns = [path("saved", saved), path("stranger", stranger)]


def configure() -> None:
    """Django is set up, once in a process."""
    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="secret", LOGGING_CONFIG=None)
        django.setup()
