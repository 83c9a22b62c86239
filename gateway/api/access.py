"""How a handler reaches the services of its application."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from gateway.services import Services


def get_services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Access = Annotated[Services, Depends(get_services)]
