"""when a run was last queued and claimed, the request that caused it, figures that workers count"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("request_id", sa.String(), nullable=True))
    op.add_column("runs", sa.Column("request_id", sa.String(), nullable=True))
    op.add_column("runs", sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("runs", sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE runs SET queued_at = created_at")
    # The version before makes runs too, and names no such column.
    now = sa.text("clock_timestamp()")
    op.alter_column("runs", "queued_at", nullable=False, server_default=now)
    op.create_table(
        "tallies",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("labels", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("value", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("name", "labels", name=op.f("pk_tallies")),
    )


def downgrade() -> None:
    op.drop_table("tallies")
    op.drop_column("runs", "queued_at")
    op.drop_column("runs", "claimed_at")
    op.drop_column("runs", "request_id")
    op.drop_column("jobs", "request_id")
