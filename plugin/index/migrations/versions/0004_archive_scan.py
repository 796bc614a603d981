"""Scans of an archive: what was chosen, and how far each study of it is"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "archive_scan",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("selection", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("store", sa.Boolean(), nullable=False),
        sa.Column("keep_instances", sa.Boolean(), nullable=False),
        sa.Column("keep_prepared", sa.Boolean(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("listed", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("listed_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_archive_scan")),
        sa.UniqueConstraint("name", name=op.f("uq_archive_scan_name")),
    )
    op.create_table(
        "archive_study",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("scan_id", sa.Integer(), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("expected", sa.Integer(), nullable=False),
        sa.Column("instances", sa.Integer(), nullable=False),
        sa.Column("megabytes", sa.Double(), nullable=False),
        sa.Column("troubles", sa.JSON(), nullable=False),
        sa.Column("fetch_seconds", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("lease_owner", sa.String(length=128), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_try_at", sa.Double(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["scan_id"], ["archive_scan.id"], name=op.f("fk_archive_study_scan_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_archive_study")),
        sa.UniqueConstraint("scan_id", "study_instance_uid", name=op.f("uq_archive_study_scan_id")),
    )
    op.create_index("ix_archive_study_scan_state", "archive_study", ["scan_id", "state"])
    op.create_index(op.f("ix_archive_study_study_instance_uid"), "archive_study", ["study_instance_uid"])
    op.add_column("study", sa.Column("scan_id", sa.Integer(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("study") as batch_op:
        batch_op.drop_column("scan_id")
    op.drop_table("archive_study")
    op.drop_table("archive_scan")
