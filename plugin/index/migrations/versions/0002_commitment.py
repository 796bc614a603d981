"""Storage commitment: which studies are held for good"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("study", sa.Column("committed_at", sa.Double(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("study") as batch_op:
        batch_op.drop_column("committed_at")
