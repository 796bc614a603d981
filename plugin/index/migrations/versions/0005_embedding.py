"""Embeddings of analysed studies and their series"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

MODALITY = "SELECT min(s.modality) FROM series s WHERE s.study_id = r.study_id AND s.state = 'prepared'"


def upgrade() -> None:
    op.create_table(
        "embedding",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("revision_id", sa.Integer(), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("bundle_digest", sa.String(length=64), nullable=False),
        sa.Column("encoder_digest", sa.String(length=64), nullable=False),
        sa.Column("preprocessing", sa.String(length=64), nullable=False),
        sa.Column("modality", sa.Text(), nullable=False),
        sa.Column("station_name", sa.Text(), nullable=False),
        sa.Column("patient_age", sa.Double(), nullable=True),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["revision_id"], ["revision.id"], name=op.f("fk_embedding_revision_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_embedding")),
        sa.UniqueConstraint("revision_id", "series_instance_uid", name=op.f("uq_embedding_revision_id")),
    )
    op.create_index("ix_embedding_encoder_digest", "embedding", ["encoder_digest", "id"])
    op.execute(
        "INSERT INTO embedding (revision_id, series_instance_uid, bundle_digest, encoder_digest, preprocessing, "
        "modality, station_name, patient_age, vector) "
        f"SELECT r.id, '', r.bundle_digest, '', r.preprocessing, coalesce(({MODALITY}), ''), '', NULL, r.embedding "
        "FROM revision r WHERE r.embedding IS NOT NULL ORDER BY r.id"
    )
    op.drop_column("revision", "embedding")


def downgrade() -> None:
    op.add_column("revision", sa.Column("embedding", sa.LargeBinary(), nullable=True))
    op.execute(
        "UPDATE revision SET embedding = (SELECT e.vector FROM embedding e "
        "WHERE e.revision_id = revision.id AND e.series_instance_uid = '')"
    )
    op.drop_table("embedding")
