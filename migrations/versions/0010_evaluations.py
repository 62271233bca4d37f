"""evaluations outside of jobs"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    json, moment = postgresql.JSONB(astext_type=sa.Text()), sa.DateTime(timezone=True)
    json_or_null = postgresql.JSONB(none_as_null=True, astext_type=sa.Text())
    op.create_table(
        "evaluations",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("status", sa.String(), server_default=sa.text("'queued'"), nullable=False),
        sa.Column("models", postgresql.ARRAY(sa.String()), nullable=False),
        sa.Column("request", json, server_default=sa.text("'{}'"), nullable=False),
        sa.Column("run_id", sa.String(), nullable=True),
        sa.Column("report", json_or_null, nullable=True),
        sa.Column("warnings", postgresql.ARRAY(sa.String()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("progress", json_or_null, nullable=True),
        sa.Column("error", json_or_null, nullable=True),
        sa.Column("created_at", moment, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("started_at", moment, nullable=True),
        sa.Column("finished_at", moment, nullable=True),
        sa.Column("deleted_at", moment, nullable=True),
        sa.Column("version", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled')",
            name=op.f("ck_evaluations_status"),
        ),
        sa.CheckConstraint(
            "status <> 'succeeded' OR report IS NOT NULL", name=op.f("ck_evaluations_succeeded_has_report")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
    )
    op.create_index("ix_evaluations_owner_id", "evaluations", ["owner", "id"], unique=False)
    op.create_index("ix_evaluations_run_id", "evaluations", ["run_id"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_evaluations_run_id", table_name="evaluations")
    op.drop_index("ix_evaluations_owner_id", table_name="evaluations")
    op.drop_table("evaluations")
