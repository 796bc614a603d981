"""People who sign in, and what they said of a result"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    create_people()
    create_workers()
    create_assessments()
    create_worklist()


def create_people() -> None:
    op.create_table(
        "page_user",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_page_user")),
        sa.UniqueConstraint("name", name=op.f("uq_page_user_name")),
    )
    op.create_table(
        "web_session",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("token_digest", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.Column("ends_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["page_user.id"], name=op.f("fk_web_session_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_web_session")),
        sa.UniqueConstraint("token_digest", name=op.f("uq_web_session_token_digest")),
    )
    op.create_index(op.f("ix_web_session_user_id"), "web_session", ["user_id"])
    op.create_table(
        "failed_sign_in",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=128), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("last_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_failed_sign_in")),
        sa.UniqueConstraint("key", name=op.f("uq_failed_sign_in_key")),
    )


def create_workers() -> None:
    op.create_table(
        "worker",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("queues", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.Column("stopped_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worker")),
        sa.UniqueConstraint("name", name=op.f("uq_worker_name")),
    )
    op.create_index("ix_event_stage_at", "event", ["stage", "at"])


def downgrade() -> None:
    drop_worklist()
    op.drop_index("ix_event_stage_at", "event")
    for table in ("worker", "failed_sign_in", "web_session", "page_user"):
        op.drop_table(table)


def create_assessments() -> None:
    op.create_table(
        "assessment",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("person", sa.Text(), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_assessment_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assessment")),
    )
    op.create_index(op.f("ix_assessment_study_id"), "assessment", ["study_id"])


def create_worklist() -> None:
    """The order of the list and what studies are found by, filled from what stands."""
    op.add_column("study", sa.Column("attention", sa.Integer(), nullable=False, server_default="1"))
    op.create_index("ix_study_worklist", "study", ["attention", "priority", "first_image_at", "id"])
    op.create_table(
        "positive",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("label", sa.String(length=64), nullable=False),
        sa.Column("critical", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_positive_study_id")),
        sa.PrimaryKeyConstraint("study_id", "label", name=op.f("pk_positive")),
    )
    op.create_index(op.f("ix_positive_label"), "positive", ["label"])
    fill_worklist(op.get_bind())


def fill_worklist(connection: sa.Connection) -> None:
    study = sa.table("study", sa.column("id"), sa.column("attention"))
    positive = sa.table("positive", sa.column("study_id"), sa.column("label"), sa.column("critical"))
    revision = sa.table("revision", sa.column("study_id"), sa.column("current"), sa.column("findings", sa.JSON()))
    stands = sa.select(revision.c.study_id, revision.c.findings).where(revision.c.current == sa.true())
    for study_id, findings in connection.execute(stands).all():
        rows = [
            {"study_id": study_id, "label": row["label"], "critical": bool(row.get("critical", False))}
            for row in findings
            if row.get("positive")
        ]
        if rows:
            connection.execute(sa.insert(positive), rows)
        if any(row.get("critical", False) for row in rows):
            connection.execute(sa.update(study).where(study.c.id == study_id).values(attention=0))


def drop_worklist() -> None:
    for table in ("positive", "assessment"):
        op.drop_table(table)
    op.drop_index("ix_study_worklist", "study")
    with op.batch_alter_table("study") as batch_op:
        batch_op.drop_column("attention")
