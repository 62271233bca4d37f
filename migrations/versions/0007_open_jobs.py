"""an index of the unfinished jobs of each owner: they are counted when one more is asked for"""

import sqlalchemy as sa
from alembic import op

UNFINISHED = sa.text("status IN ('queued', 'running', 'paused')")

revision = "0007"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_jobs_open", "jobs", ["owner"], unique=False, postgresql_where=UNFINISHED)


def downgrade() -> None:
    op.drop_index("ix_jobs_open", table_name="jobs", postgresql_where=UNFINISHED)
