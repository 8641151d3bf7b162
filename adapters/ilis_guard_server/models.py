"""The models that may be asked for: the guard, by its name."""

from fastapi import APIRouter, Request

from ilis_guard_server.clients import Client
from ilis_guard_server.openai_responses import ModelCard, ModelList
from ilis_guard_server.problems import RefusedError, responses
from ilis_guard_server.service import Service, TheService

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.get("/models", summary="Which models there are", responses=responses(401, 403, 500))
async def models(service: TheService, client: Client) -> ModelList:
    """One: which tiers stand behind it is the operator's."""
    del client
    return ModelList(data=[_card(service)])


@router.get("/models/{model:path}", summary="One of them", responses=responses(401, 403, 404, 500))
async def model(request: Request, service: TheService, client: Client) -> ModelCard:
    """The guard, if it goes by this name."""
    del client
    if request.path_params["model"] != service.settings.model:
        raise RefusedError(404, "There is no such model.", param="model", code="model_not_found")
    return _card(service)


def _card(service: Service) -> ModelCard:
    return ModelCard(id=service.settings.model, created=service.started_at)
