"""Artifacts, and what is read out of a job's, over HTTP.

What computes (NumPy, Arrow) is imported by the first request that needs it: a server starts without.
"""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.artifacts import pictures, service
from app.artifacts.negotiation import MEDIA_TYPES, Format, accepted_format
from app.artifacts.queries import GapQuery, PairQuery
from app.artifacts.schemas import ArtifactView, PairView, RewardGaps, SplitPreviewView
from app.artifacts.scored_job import find_scored_job
from app.dependencies import ReadCaller, SessionDep
from app.pagination import Limit, Page
from app.problems import responses
from app.streams import POLLED, PollDep, Subject
from core.database import open_session
from mpo.parts import Order, Part

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])
job_router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["reward gaps"])

FARTHEST = 1e9
"""Ends of bins, in reward units, beyond which a histogram shows nothing."""

Bins = Annotated[int, Query(ge=1, le=1000, description="Bins of equal width.")]
End = Annotated[
    float | None,
    Query(ge=-FARTHEST, le=FARTHEST, allow_inf_nan=False, description="End of the bins, in reward units."),
]
WhichPart = Annotated[Part, Query(description="Pairs of one part of the split alone.")]
Threshold = Annotated[float | None, Query(allow_inf_nan=False, description="Easy from this gap on.")]
Share = Annotated[float | None, Query(gt=0, lt=1, allow_inf_nan=False)]
FORMS = {form: {"schema": {"type": "string"}} for name, form in MEDIA_TYPES.items() if name != "json"}


@router.get("/{artifact_id}", response_model=ArtifactView, responses=responses(404) | POLLED)
async def read_artifact(caller: ReadCaller, artifact_id: str, poll: PollDep) -> Response:
    """Read an artifact and where it comes from: its inputs lead back to what was uploaded."""
    return await poll.answer_by_content(lambda s: service.read_artifact(s, caller.owner, artifact_id))


@job_router.get(
    "/reward-gaps",
    response_model=RewardGaps,
    responses={**POLLED, 200: {"content": FORMS}, **responses(404, 409)},
)
async def read_reward_gaps(
    caller: ReadCaller,
    job_id: str,
    poll: PollDep,
    bins: Bins = 40,
    lower: End = None,
    upper: End = None,
    part: WhichPart = "all",
    format: Format | None = None,
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    """Read the histogram of the pairs' reward gaps: as JSON, as a table (CSV), or drawn (PNG, SVG)."""
    from app.artifacts import reward_gaps

    query = GapQuery(bins, lower, upper, part)
    form = format or accepted_format(accept)

    def read(session: Session) -> RewardGaps:
        return reward_gaps.read_reward_gaps(find_scored_job(session, caller.owner, job_id), query)

    if form == "json":
        job = Subject("job", job_id, caller.owner, RewardGaps)
        return await poll.answer_by_content(read, made_from=job, headers={"Vary": "Accept"})
    return await run_in_threadpool(_shown, caller.owner, job_id, query, form)


@job_router.get("/reward-gaps/preview", responses=responses(404, 409))
def preview_split(
    caller: ReadCaller,
    session: SessionDep,
    job_id: str,
    threshold: Threshold = None,
    quantile: Share = None,
    easy_fraction: Share = None,
) -> SplitPreviewView:
    """Preview another split: by threshold, quantile or easy_fraction; the job's own where none is given."""
    from app.artifacts import reward_gaps

    scored = find_scored_job(session, caller.owner, job_id)
    split = reward_gaps.preview_config(
        scored, threshold=threshold, quantile=quantile, easy_fraction=easy_fraction
    )
    return reward_gaps.preview(scored, split)


@job_router.get("/pairs", responses=responses(404, 409))
def list_pairs(
    caller: ReadCaller,
    session: SessionDep,
    job_id: str,
    part: WhichPart = "all",
    order: Annotated[Order | None, Query(description="By gap; in the data's order where not given.")] = None,
    after: Annotated[str | None, Query(description="Id of the last pair of the page before.")] = None,
    limit: Limit = 20,
) -> Page[PairView]:
    """List the scored pairs with their rewards, and the part of the split that each belongs to."""
    from app.artifacts import pairs

    scored = find_scored_job(session, caller.owner, job_id)
    return pairs.list_pairs(scored, PairQuery(part, order, after, limit))


def _shown(owner: str, job_id: str, query: GapQuery, form: Format) -> Response:
    from app.artifacts import reward_gaps

    with open_session() as session:
        scored = find_scored_job(session, owner, job_id)
    gaps = reward_gaps.read_reward_gaps(scored, query)
    counts = reward_gaps.bin_parts(scored, gaps)
    if form == "csv":
        content: bytes = pictures.write_csv(gaps, counts).encode()
    else:
        content = pictures.draw_reward_gaps(gaps, counts, "svg" if form == "svg" else "png")
    return Response(content, media_type=MEDIA_TYPES[form], headers={"Vary": "Accept"})
