"""Instances of 2 GiB and more"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":  # whose integers have 64 bits
        op.alter_column("instance", "size", type_=sa.BigInteger(), existing_type=sa.Integer(), existing_nullable=False)


def downgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        op.alter_column("instance", "size", type_=sa.Integer(), existing_type=sa.BigInteger(), existing_nullable=False)
