"""how far the sweep has come, since when an artifact is unreferenced, and what the sweep looks for"""

import sqlalchemy as sa
from alembic import op

DELETED = sa.text("deleted_at IS NOT NULL")
KEPT = sa.text("checkpoint IS NOT NULL AND state IN ('succeeded', 'failed', 'cancelled')")

revision = "0005"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sweeps",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("after", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("stepped_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_sweeps")),
    )
    op.add_column("artifacts", sa.Column("unreferenced_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_jobs_deleted_at", "jobs", ["deleted_at"], unique=False, postgresql_where=DELETED)
    op.create_index("ix_runs_kept_checkpoint", "runs", ["id"], unique=False, postgresql_where=KEPT)


def downgrade() -> None:
    op.drop_index("ix_runs_kept_checkpoint", table_name="runs", postgresql_where=KEPT)
    op.drop_index("ix_jobs_deleted_at", table_name="jobs", postgresql_where=DELETED)
    op.drop_column("artifacts", "unreferenced_at")
    op.drop_table("sweeps")
