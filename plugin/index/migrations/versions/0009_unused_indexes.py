"""Indexes that no query uses, and every vector and every study of a plan paid for"""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.drop_index("ix_embedding_encoder_digest", "embedding")
    op.drop_index("ix_archive_study_study_instance_uid", "archive_study")


def downgrade() -> None:
    op.create_index("ix_archive_study_study_instance_uid", "archive_study", ["study_instance_uid"])
    op.create_index("ix_embedding_encoder_digest", "embedding", ["encoder_digest", "id"])
