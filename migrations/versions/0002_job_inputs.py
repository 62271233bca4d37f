"""all datasets and models of a job, what each stage's model began as, which weak scores are accepted"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

BASES = """
UPDATE stages SET base = jobs.model FROM jobs
WHERE jobs.id = stages.job_id AND stages.kind IN ('sft', 'reward_model', 'dpo', 'ppo')
"""
NAMED_BY_JOBS = """
INSERT INTO job_inputs (job_id, kind, name)
SELECT id, 'dataset', dataset_id FROM jobs
UNION SELECT id, 'dataset', eval_dataset_id FROM jobs WHERE eval_dataset_id IS NOT NULL
UNION SELECT id, 'model', model FROM jobs
"""
# The version before held a job's trained model by the one reference that is no stage's.
TRAINED = """
UPDATE job_inputs SET artifact_id = held.artifact_id FROM artifact_references AS held
WHERE held.job_id = job_inputs.job_id AND held.stage_name = ''
AND job_inputs.kind = 'model' AND position(':' IN job_inputs.name) > 0
"""
ACCEPTED = """
UPDATE jobs SET weak_accepted = ARRAY(
    SELECT stages.name FROM stages
    WHERE stages.job_id = jobs.id AND stages.kind = 'score' AND stages.status = 'succeeded'
    AND stages.summary @> '{"weak": true}'
) WHERE jobs.accepts_weak
"""

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "job_inputs",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("artifact_id", sa.String(), nullable=True),
        sa.CheckConstraint("kind IN ('dataset', 'model')", name=op.f("ck_job_inputs_kind")),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_job_inputs_job_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["artifact_id"], ["artifacts.id"], name=op.f("fk_job_inputs_artifact_id")),
        sa.PrimaryKeyConstraint("job_id", "kind", "name", name=op.f("pk_job_inputs")),
    )
    op.create_index("ix_job_inputs_kind_name", "job_inputs", ["kind", "name"], unique=False)
    op.execute(NAMED_BY_JOBS)
    op.execute(TRAINED)
    op.add_column("stages", sa.Column("base", sa.String(), nullable=True))
    op.execute(BASES)
    weak = sa.Column("weak_accepted", postgresql.ARRAY(sa.String()), server_default="{}", nullable=False)
    op.add_column("jobs", weak)
    op.execute(ACCEPTED)
    op.alter_column("jobs", "model", nullable=True)
    op.alter_column("jobs", "dataset_id", nullable=True)


def downgrade() -> None:
    # Refused by the database where a job names no model or no dataset: the version before knows no such job.
    op.alter_column("jobs", "dataset_id", nullable=False)
    op.alter_column("jobs", "model", nullable=False)
    op.drop_column("jobs", "weak_accepted")
    op.drop_column("stages", "base")
    op.drop_index("ix_job_inputs_kind_name", table_name="job_inputs")
    op.drop_table("job_inputs")
