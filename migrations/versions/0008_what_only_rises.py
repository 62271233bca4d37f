"""fences only rise, and what a job has ended as it stays, whoever writes"""

from alembic import op

REFUSE = """
CREATE FUNCTION refuse_going_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% %: % would go back', TG_TABLE_NAME, OLD.id, TG_ARGV[0]
        USING ERRCODE = 'check_violation';
END $$
"""
# The conditions are the triggers' own: an update that is in order calls no function.
FENCE = """
CREATE TRIGGER runs_fence BEFORE UPDATE OF fence ON runs
FOR EACH ROW WHEN (NEW.fence < OLD.fence) EXECUTE FUNCTION refuse_going_back('its fence')
"""
ENDED = """
CREATE TRIGGER jobs_ended BEFORE UPDATE OF status ON jobs
FOR EACH ROW WHEN (OLD.status IN ('succeeded', 'failed', 'cancelled') AND NEW.status <> OLD.status)
EXECUTE FUNCTION refuse_going_back('its end')
"""

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for statement in (REFUSE, FENCE, ENDED):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TRIGGER jobs_ended ON jobs")
    op.execute("DROP TRIGGER runs_fence ON runs")
    op.execute("DROP FUNCTION refuse_going_back")
