"""What the rules of retention removed, and when"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

MARKS = (
    ("study", "instances_removed_at"),
    ("study", "prepared_removed_at"),
    ("study", "results_removed_at"),
    ("series", "prepared_removed_at"),
    ("instance", "removed_at"),
    ("result", "removed_at"),
)


def upgrade() -> None:
    for table, column in MARKS:
        op.add_column(table, sa.Column(column, sa.Double(), nullable=True))
    op.create_table(
        "removal",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=True),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("marked_at", sa.Double(), nullable=False),
        sa.Column("done_at", sa.Double(), nullable=True),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_removal_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_removal")),
    )
    op.create_index(op.f("ix_removal_study_id"), "removal", ["study_id"])


def downgrade() -> None:
    op.drop_table("removal")
    for table, column in reversed(MARKS):
        with op.batch_alter_table(table) as batch_op:
            batch_op.drop_column(column)
